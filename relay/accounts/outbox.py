"""Mail that is not sent yet: queued in the transaction that causes it, sealed, and tried until it is taken."""

from __future__ import annotations

from typing import Final

import msgspec
import trio
from sqlalchemy import Connection, delete, insert, select, update

from p2psync.errors import IntegrityError
from p2psync.ports import Clock, Offload
from relay.accounts.secrets import Secrets
from relay.accounts.tables import outbox
from relay.db.database import Database
from relay.errors import ApiError
from relay.logs import get_logger
from relay.ports import Mail, Mailer

BATCH: Final = 16
LEASE_S: Final = 300
"""A message that is being sent is left to its sender for this long, also when that has died."""
FIRST_PAUSE_S: Final = 15
LONGEST_PAUSE_S: Final = 3600
GIVE_UP_S: Final = 2 * 86_400
POLL_S: Final = 30
NOBODY: Final = ""
"""The address of a message that is queued only so that an answer takes as long, and then thrown away."""

_LOG = get_logger(__name__)
_decoder = msgspec.msgpack.Decoder(tuple[str, str, str])


class Outbox:
    """Queues messages, and sends them while `run` runs. Every message is sent at least once, most of them once."""

    def __init__(self, database: Database, offload: Offload, clock: Clock, secrets: Secrets, mailer: Mailer) -> None:
        self._database = database
        self._offload = offload
        self._clock = clock
        self._secrets = secrets
        self._mailer = mailer
        self._rung = trio.Event()

    def queue(self, c: Connection, mail: Mail, now: int, nonce: bytes) -> None:
        """Send `mail` once this transaction is committed; call `ring` then. `nonce` is 12 random bytes."""
        sealed = self._secrets.seal(msgspec.msgpack.encode((mail.to, mail.subject, mail.body)), nonce)
        c.execute(insert(outbox).values(sealed=sealed, queued=now, failures=0, due=now))

    def ring(self) -> None:
        """There is something to send."""
        self._rung.set()

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        _LOG.info("mail: where messages go", target=self._mailer.target)
        while True:
            self._rung = trio.Event()
            try:
                more = await self.send_due()
            except ApiError as error:
                _LOG.warning("mail: the queue cannot be read", error=str(error))
                more = False
            if not more:
                with trio.move_on_after(POLL_S):
                    await self._rung.wait()

    async def send_due(self) -> bool:
        """Try every message that is due, a batch of them. Whether there may be more."""
        now = self._now()
        taken = await self._database.write(lambda c: _take(c, now))
        for mail_id, sealed, queued, failures in taken:
            await self._send(mail_id, sealed, queued, failures)
        return len(taken) == BATCH

    async def _send(self, mail_id: int, sealed: bytes, queued: int, failures: int) -> None:
        try:
            mail = Mail(*_decoder.decode(self._secrets.unseal(sealed)))
            if mail.to != NOBODY:
                await self._offload.run(lambda: self._mailer.send(mail))
        except (IntegrityError, ValueError) as error:
            # It will not get better by trying, and must not stand in the way of others.
            _LOG.error("mail: a message is lost", error=type(error).__name__)
        except OSError as error:
            now = self._now()
            if now - queued < GIVE_UP_S:
                due = now + min(FIRST_PAUSE_S << min(failures, 16), LONGEST_PAUSE_S)
                _LOG.warning("mail: not sent, trying again later", target=self._mailer.target, error=_reason(error))
                await self._database.write(lambda c: _put_off(c, mail_id, failures + 1, due))
                return
            _LOG.error("mail: not sent, given up", target=self._mailer.target, error=_reason(error))
        await self._database.write(lambda c: c.execute(delete(outbox).where(outbox.c.mail_id == mail_id)))

    def _now(self) -> int:
        return self._clock.wall_ns() // 1_000_000_000


def _take(c: Connection, now: int) -> list[tuple[int, bytes, int, int]]:
    """Messages that are due, put off for the time it takes to send them, so that no other process does."""
    due = c.execute(select(outbox).where(outbox.c.due <= now).order_by(outbox.c.mail_id).limit(BATCH)).all()
    taken = []
    for row in due:
        leased = c.execute(
            update(outbox).where(outbox.c.mail_id == row.mail_id, outbox.c.due == row.due).values(due=now + LEASE_S)
        )
        if leased.rowcount == 1:
            taken.append((row.mail_id, row.sealed, row.queued, row.failures))
    return taken


def _put_off(c: Connection, mail_id: int, failures: int, due: int) -> None:
    c.execute(update(outbox).where(outbox.c.mail_id == mail_id).values(failures=failures, due=due))


def _reason(error: OSError) -> str:
    """What went wrong without the address, which servers repeat in their answers."""
    return type(error).__name__ if error.strerror is None else f"{type(error).__name__}: {error.strerror}"
