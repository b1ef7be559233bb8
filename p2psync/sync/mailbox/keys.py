"""Keys of epochs: starts an epoch when one is due, keeps the keys, and grants them to everybody who reads.

Nothing here happens in a folder that no mailbox is used for: there the first epoch is never founded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog
import trio

from p2psync.crypto.epochs import EPOCH_KEY_SIZE, EpochKey, KeyRing
from p2psync.crypto.hpke import EPHEMERAL_SIZE
from p2psync.crypto.identity import DeviceCard
from p2psync.errors import AuthenticationError, InputError
from p2psync.index import mailbox as rows
from p2psync.index.writer import Writer
from p2psync.membership.fold import Membership
from p2psync.membership.grants import Grant, decode_grant, make_epoch, make_grant, open_early, open_grant
from p2psync.membership.links import Role
from p2psync.model.ids import DeviceId, device_id_of
from p2psync.sync.context import FolderContext
from p2psync.sync.pulse import Pulse

_log = structlog.get_logger(__name__)

OWNER_PATIENCE = 3.0
"""Seconds that an owner leaves an epoch that is due to the first one: two at the same time are one too many."""
EDITOR_PATIENCE = 60.0
"""Seconds that an editor leaves an epoch that is due, or a grant, to the owners."""
KEY_PATIENCE = 600.0
"""Seconds that a device waits to be granted the current key before it starts the next epoch."""
LOOK_AGAIN = 60.0
PAUSE = 0.2
"""Seconds between two looks at least: much changes that has nothing to do with keys."""
MAX_EARLY = 64
"""Grants kept for whose epoch the link has not come."""


# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────
def sealing_key(membership: Membership, ring: KeyRing) -> EpochKey | None:
    """The key that something may be sealed under now; None while a new epoch is due or its key is not here."""
    epoch = membership.current_epoch
    return None if epoch is None or epoch.stale else ring.get(epoch.key_id)


def start_after(membership: Membership, device: bytes, ring: KeyRing) -> float | None:
    """Seconds after which this device starts the next epoch if nobody else has; None when that is not for it to do."""
    if not membership.may_edit(device) or sealing_key(membership, ring) is not None:
        return None
    if not membership.epoch_stale:
        return KEY_PATIENCE
    if membership.role(device) is not Role.OWNER:
        return EDITOR_PATIENCE
    first = next(member for member in membership.members if membership.role(member) is Role.OWNER)
    return 0.0 if device == first else OWNER_PATIENCE


def keys_to_grant(membership: Membership, ring: KeyRing) -> list[EpochKey]:
    """The keys a reader needs to reach every other one that is held here, the newest first."""
    chosen: list[EpochKey] = []
    covered = KeyRing(membership.folder)
    for epoch in membership.epochs.values():
        key = ring.get(epoch.key_id)
        if key is not None and key.id not in covered:
            chosen.append(key)
            covered = covered.climb(membership.rungs, key)
    return chosen


def recipients(membership: Membership, known: Iterable[bytes]) -> list[DeviceId]:
    """Members who read and, as far as is `known`, have not been given a key.

    Who makes one gives it to itself as well: what it has left at a relay is then not lost to it with its index.
    """
    given = frozenset(known)
    return [d for d in membership.members if membership.may_read(d) and d not in given]


# ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class KeyKeeper:
    """The epoch keys of one folder on this device."""

    def __init__(
        self,
        context: FolderContext,
        absorb_links: Callable[[Sequence[bytes]], Awaitable[None]],
        has_read: Callable[[], bool],
    ) -> None:
        """`has_read` says whether the mailboxes were read to their ends: another's epoch may wait there."""
        self._context = context
        self._has_read = has_read
        self._absorb_links = absorb_links
        self._early: dict[bytes, Grant] = {}
        self.ready = trio.Event()
        """Set once the keys in the index have been read."""
        self._made: set[bytes] = set()
        """Ids of the keys made here since the start."""
        self._due_since: float | None = None
        self._lacking_since: float | None = None
        self.ring = KeyRing(context.folder)
        self.wanted = False
        """Whether the folder has a mailbox: then there has to be an epoch."""
        self.changed = Pulse()
        """Fires when keys or grants have come or been made."""

    async def load(self) -> None:
        """Read the keys that the index holds."""
        context = self._context

        def read() -> KeyRing:
            with context.index.read() as reader:
                return rows.key_ring(reader)

        self.ring = await context.world.offload.run(read)
        self.ready.set()

    @property
    def in_use(self) -> bool:
        """Whether there are epochs, or have to be."""
        return self.wanted or self._context.membership.current_epoch is not None

    async def run(self) -> None:
        """See to epochs and grants whenever members or keys change. Never returns."""
        context = self._context
        await self.load()
        while True:
            seen = context.state_changed.count
            wait = await self.tend()
            if self.in_use:
                await trio.sleep(PAUSE)
            with trio.move_on_after(wait):
                await context.state_changed.wait_beyond(seen)

    async def tend(self) -> float:
        """Do what is due; seconds after which to look again at the latest."""
        context = self._context
        await self._settle_early()
        if not self.in_use:
            return LOOK_AGAIN
        wait = LOOK_AGAIN
        delay = start_after(context.membership, context.device, self.ring)
        if delay is None:
            self._due_since = None
        else:
            self._due_since = trio.current_time() if self._due_since is None else self._due_since
            left = self._due_since + delay - trio.current_time()
            if left > 0:
                wait = min(wait, left)
            elif self._has_read():
                await self._start_epoch()
        await self.grant()
        return wait

    def keyless(self) -> list[DeviceId]:
        """Members who read and have not been given the key that seals now, as far as is known here. Blocks."""
        key = self.sealing_key()
        if key is None:
            return []
        with self._context.index.read() as reader:
            given = {self._context.device, *rows.grants(reader, key.id)}
            return recipients(self._context.membership, given)

    # ── epochs ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def sealing_key(self) -> EpochKey | None:
        """As the function of this name, now."""
        return sealing_key(self._context.membership, self.ring)

    async def with_epoch(self, link: bytes) -> list[bytes]:
        """The link, and if it takes rights away where keys are in use the epoch that must follow it."""
        context = self._context
        grown = context.membership.extend([link])
        if grown.current_epoch is None or not grown.epoch_stale or not grown.may_edit(context.device):
            return [link]
        return [link, await self._make_epoch(grown)]

    async def _start_epoch(self) -> None:
        await self._absorb_links([await self._make_epoch(self._context.membership)])
        self._due_since = None
        _log.info("a new epoch", folder=self._context.name, number=self._context.membership.epoch)

    async def _make_epoch(self, membership: Membership) -> bytes:
        """The link of a new epoch. Its key is kept first: a key without a link harms nobody."""
        context = self._context
        link, key = make_epoch(context.keys, membership, self.ring, context.world.rng.token(EPOCH_KEY_SIZE))
        self._made.add(key.id)
        await self._keep([key])
        return link

    # ── grants ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def grants_for(self, device: bytes) -> list[bytes]:
        """Grants made here that a device may still need. Blocks."""
        membership = self._context.membership
        if not membership.may_read(device):
            return []
        with self._context.index.read() as reader:
            made = (rows.grants(reader, key.id).get(device) for key in keys_to_grant(membership, self.ring))
            return [encoded for encoded in made if encoded]

    async def note_holder(self, key_id: bytes, device: bytes) -> None:
        """A device has shown that it has a key."""
        context = self._context

        def is_news() -> bool:
            with context.index.read() as reader:
                return key_id in self.ring and device not in rows.grants(reader, key_id)

        if await context.world.offload.run(is_news):
            await context.world.offload.run(
                lambda: context.index.write(lambda writer: rows.put_grant(writer, key_id, device, b""))
            )

    async def take(self, encoded: Iterable[bytes]) -> None:
        """Take grants from anywhere; what is not for this device, or does not count, is passed over."""
        for data in encoded:
            try:
                grant = decode_grant(data)
            except InputError as error:
                _log.warning("a malformed grant", folder=self._context.name, error=str(error))
                continue
            if grant.key_id in self.ring or grant.recipient != self._context.device:
                continue
            self._early.pop(grant.key_id + grant.signer, None)
            self._early[grant.key_id + grant.signer] = grant
            if len(self._early) > MAX_EARLY:
                del self._early[next(iter(self._early))]
        await self._settle_early()

    @property
    def early(self) -> tuple[bytes, ...]:
        """Names the grants whose links have not come."""
        return tuple(self._early)

    def early_key(self, key_id: bytes) -> EpochKey | None:
        """A key that was granted before its link came: good for opening links, which may hold that one."""
        context = self._context
        for grant in self._early.values():
            if grant.key_id == key_id:
                try:
                    return open_early(context.keys, context.membership, grant)
                except AuthenticationError:
                    continue
        return None

    async def _settle_early(self) -> None:
        """Open the grants whose epochs are known by now."""
        context, membership = self._context, self._context.membership
        if not self.ready.is_set():
            return
        ready = [(name, grant) for name, grant in self._early.items() if grant.key_id in membership.epochs]
        opened, holders = [], []
        for name, grant in ready:
            if not membership.has_edited(device_id_of(grant.signer)):
                continue
            if self._early.pop(name, None) is None:
                continue  # reading and tending go on at the same time: the other one has it
            try:
                opened.append(open_grant(context.keys, membership, grant))
            except AuthenticationError:
                _log.warning("a grant does not count", folder=context.name, signer=grant.signer.hex()[:8])
                continue
            holders += [(grant.key_id, device_id_of(grant.signer)), (grant.key_id, context.device)]
        if opened:
            await self._keep(opened)
        for key_id, device in holders:
            await self.note_holder(key_id, device)

    async def _keep(self, keys: Sequence[EpochKey]) -> None:
        """Keep keys, and the earlier ones that they open."""
        context = self._context
        ring = self.ring.climb(context.membership.rungs, *keys)
        fresh = [key for key in ring if key.id not in self.ring]
        if fresh:
            await context.world.offload.run(lambda: context.index.write(lambda writer: rows.put_keys(writer, fresh)))
            # Others may have been kept meanwhile.
            self.ring = self.ring.climb(context.membership.rungs, *keys)
            self.changed.fire()
            context.state_changed.fire()

    async def grant(self) -> None:
        """Grant the keys in use to readers whose card is known; an editor leaves keys it has not made to the owners."""
        context, membership = self._context, self._context.membership
        if not membership.may_edit(context.device):
            return
        lacking = await context.world.offload.run(lambda: self._lacking(membership))
        if not lacking:
            self._lacking_since = None
            return
        since = self._lacking_since = trio.current_time() if self._lacking_since is None else self._lacking_since
        if membership.role(context.device) is not Role.OWNER and trio.current_time() < since + EDITOR_PATIENCE:
            lacking = [(key, card) for key, card in lacking if key.id in self._made]
        made = []
        for key, card in lacking:
            try:
                made.append(make_grant(context.keys, membership, key, card, context.world.rng.token(EPHEMERAL_SIZE)))
            except (AuthenticationError, InputError) as error:
                _log.warning("cannot grant a key", folder=context.name, error=str(error))

        def work(writer: Writer) -> None:
            for grant in made:
                rows.put_grant(writer, grant.key_id, grant.recipient, grant.encode())

        if made:
            await context.world.offload.run(lambda: context.index.write(work))
            self.changed.fire()
            context.state_changed.fire()

    def _lacking(self, membership: Membership) -> list[tuple[EpochKey, DeviceCard]]:
        """What can be granted and has not been."""
        with self._context.index.read() as reader:
            return [
                (key, card)
                for key in keys_to_grant(membership, self.ring)
                for device in recipients(membership, rows.grants(reader, key.id))
                if (card := membership.members[device].card or self._context.card_of(device)) is not None
            ]
