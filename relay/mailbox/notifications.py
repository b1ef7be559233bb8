"""News: durable events that a device reads by a cursor, whatever way it waits for them.

An event says that something is new and where to read it; it carries no content. A newer event about the same topic
takes the older one's place with a new number. So the table is bounded by what there is to be said, and a device that
was away for long reads one event per folder, not one per entry. Delivery is at least once.

An event is forgotten after `RETENTION_S`. A cursor from before something that was forgotten is answered with `reset`:
its device reads again what events are about (folders, entries, grants, the account's chain), each by its own cursor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec
from sqlalchemy import Connection, delete, func, insert, or_, select, update

from relay.db.upsert import insert_if_missing
from relay.mailbox.tables import EVENTS_FLOOR, counters, events, folder_access, last_number

RETENTION_S = 30 * 86400
MAX_PAGE = 256
"""Events read at once."""
MAX_CALL = 4096
"""Bytes that one event may carry for its receiver."""

Id = Annotated[bytes, msgspec.Meta(max_length=32)]


class EventKind(StrEnum):
    """What is new."""

    OBJECTS = "objects"
    """A folder has entries up to `seq` and `object_id`."""
    GRANT = "grant"
    """There is a grant of a folder's key for this device."""
    CHAIN = "chain"
    """The account's chain of devices is longer."""
    ACCESS = "access"
    """What the account may do in a folder; without `rights` it may not see it any more."""
    QUOTA = "quota"
    """The account's plan or storage calls for attention."""
    CALL = "call"
    """Another device wants to connect: `body` is for this device, from `sender`."""
    PRESENCE = "presence"
    """A device of a folder or of the account came or went."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of news. Which fields are there depends on `kind`; a client ignores kinds and fields it does not know.

    `device_id` is the device an event is about, `sender` that which a call comes from.
    """

    kind: EventKind
    event_id: int = 0
    folder_id: Id = b""
    seq: int = 0
    object_id: int = 0
    rights: str | None = None
    device_id: Id = b""
    sender: Id = b""
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_CALL)] = b""

    @property
    def topic(self) -> bytes:
        """What a newer event takes the place of."""
        return b"\0".join((self.kind.encode(), self.folder_id, self.device_id, self.sender))


class Batch(msgspec.Struct, frozen=True):
    """News after a cursor, oldest first. `cursor` goes into the next question."""

    events: list[Event]
    cursor: int
    reset: bool = False
    """Something before was forgotten, or the cursor is not of this relay: read everything again."""


@dataclass(frozen=True, slots=True)
class Found:
    """A batch, and all audiences that its device belongs to now."""

    batch: Batch
    audiences: frozenset[bytes]


def emit(
    c: Connection,
    audience: bytes,
    event: Event,
    number: int,
    now: int,
    *,
    only: bytes | None = None,
    lifetime_s: int = RETENTION_S,
) -> None:
    """Store an event for a folder's or an account's devices (`only`: one of them); then wake them after the commit.

    `number` comes from `tables.take_numbers`, in the same transaction.
    """
    topic = event.topic if only is None else event.topic + b"\0" + only
    c.execute(delete(events).where(events.c.audience == audience, events.c.topic == topic))
    c.execute(
        insert(events).values(
            audience=audience,
            topic=topic,
            event_id=number,
            device_id=only,
            created=now,
            expires=now + lifetime_s,
            data=_encoder.encode(event),
        )
    )


def read(c: Connection, account_id: bytes, device_id: bytes, after: int | None, now: int) -> Found:
    """Up to `MAX_PAGE` events after a cursor (None: from now on)."""
    present = last_number(c)  # before everything else: what is numbered up to here can be seen below
    shared = select(folder_access.c.folder_id).where(folder_access.c.account_id == account_id)
    audiences = frozenset((account_id, *c.execute(shared).scalars()))
    if after is None:
        return Found(Batch([], present), audiences)
    if after > present or after < last_number(c, EVENTS_FLOOR):
        return Found(Batch([], present, reset=True), audiences)
    rows = c.execute(
        select(events.c.event_id, events.c.data)
        .where(
            events.c.audience.in_(sorted(audiences)),
            events.c.event_id > after,
            events.c.event_id <= present,
            events.c.expires > now,
            or_(events.c.device_id.is_(None), events.c.device_id == device_id),
        )
        .order_by(events.c.event_id)
        .limit(MAX_PAGE)
    ).all()
    found = [msgspec.structs.replace(_decoder.decode(row.data), event_id=row.event_id) for row in rows]
    return Found(Batch(found, found[-1].event_id if len(found) == MAX_PAGE else present), audiences)


def forget_old(c: Connection, now: int) -> int:
    """Delete what has expired or is too old; returns how many. Run it now and then."""
    old = events.c.created <= now - RETENTION_S
    greatest = c.execute(select(func.max(events.c.event_id)).where(old)).scalar_one()
    if greatest is not None:
        insert_if_missing(c, counters, name=EVENTS_FLOOR, value=0)
        floor = counters.c.name == EVENTS_FLOOR
        c.execute(update(counters).where(floor, counters.c.value < greatest).values(value=greatest))
    # What expired sooner, such as a call, is void and no loss.
    return c.execute(delete(events).where(or_(old, events.c.expires <= now))).rowcount


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)
