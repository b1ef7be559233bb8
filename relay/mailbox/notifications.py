"""News: durable events that a device reads by a cursor, whatever way it waits for them.

An event says that something is new and where to read it; it carries no content. A newer event about the same topic
takes the older one's place with a new number. So the table is bounded by what there is to be said, and a device that
was away for long reads one event per folder, not one per entry. Delivery is at least once.

An event is forgotten after `RETENTION_S`. A cursor from before something that was forgotten is answered with `reset`:
its device reads again what events are about (folders, entries, grants, the account's chain), each by its own cursor.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from p2psync.protocol.relay_api import MAX_EVENTS, Batch, Event
from relay.db.upsert import insert_if_missing
from relay.mailbox.tables import EVENTS_FLOOR, counters, events, folder_access, last_number

RETENTION_S = 30 * 86400


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


# Built once: every subscription asks this when its bell rings, and building takes longer than asking.
_SHARED = select(folder_access.c.folder_id).where(folder_access.c.account_id == bindparam("account"))
_NEWS = (
    select(events.c.event_id, events.c.data)
    .where(
        events.c.audience.in_(bindparam("audiences", expanding=True)),
        events.c.event_id > bindparam("after"),
        events.c.event_id <= bindparam("present"),
        events.c.expires > bindparam("now"),
        or_(events.c.device_id.is_(None), events.c.device_id == bindparam("device")),
    )
    .order_by(events.c.event_id)
    .limit(MAX_EVENTS)
)


def read(c: Connection, account_id: bytes, device_id: bytes, after: int | None, now: int) -> Found:
    """Up to `MAX_EVENTS` events after a cursor (None: from now on)."""
    present = last_number(c)  # before everything else: what is numbered up to here can be seen below
    audiences = frozenset((account_id, *c.execute(_SHARED, {"account": account_id}).scalars()))
    if after is None:
        return Found(Batch([], present), audiences)
    if after > present or after < last_number(c, EVENTS_FLOOR):
        return Found(Batch([], present, reset=True), audiences)
    place = {"audiences": sorted(audiences), "after": after, "present": present, "now": now, "device": device_id}
    rows = c.execute(_NEWS, place).all()
    found = [msgspec.structs.replace(_decoder.decode(row.data), event_id=row.event_id) for row in rows]
    return Found(Batch(found, found[-1].event_id if len(found) == MAX_EVENTS else present), audiences)


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
