"""Whatever happens in whatever order, and wherever the relay dies: nothing is lost that was acknowledged and needed.

The machine runs the real service, upkeep and ledger over SQLite and a store in memory. A rule may crash at any step:
before or after any transaction or any operation of the store takes effect. After a crash nothing of the old process
acts, and the next begins with what is durable.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TypeVar

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Connection, select

from p2psync.testing.determinism import run_deterministic
from p2psync.testing.world import SimRng
from relay.accounts.ledger import Ledger, Usage, reservations
from relay.accounts.plans import Plans
from relay.api.routes import all_routes
from relay.blocks.maintenance import Maintenance
from relay.blocks.refs import unpack
from relay.blocks.service import Blocks, Body, Settings, World
from relay.blocks.tables import chunks, object_key, refs
from relay.config import Allowance, Size
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.errors import ApiError
from relay.mailbox import folders
from relay.mailbox.folders import Rights
from relay.ports import StoredBlock
from tests.relay.blocks.helpers import ALICE, FOLDER, check_books, check_objects, name, set_up
from tests.relay.stack import Inline, ManualClock, MemoryStore

T = TypeVar("T")
DAY = 86_400
LIMIT = 20_000


class CrashError(BaseException):
    """The process is gone: nothing catches this, and nothing it still tries has an effect."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and at which step of an operation."""

    step: int
    is_crash: bool


class Fuse:
    """Lets things go wrong at a step chosen beforehand."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.steps = 0
        self.dead = False

    def arm(self, fault: Fault | None) -> None:
        self.fault, self.steps = fault, 0

    def step(self, failure: Exception) -> None:
        """One moment between two effects: the process may die, or what it waits for may fail."""
        if self.fault is not None and self.steps == self.fault.step:
            if not self.fault.is_crash:
                self.fault = None
                raise failure
            self.dead = True
        self.steps += 1
        if self.dead:
            raise CrashError


class FusedDatabase(Database):
    """A database whose process may die before or after each commit."""

    fuse: Fuse

    def write_now(self, work: Callable[[Connection], T]) -> T:
        self.fuse.step(no_database())
        result = super().write_now(work)
        self.fuse.step(no_database())
        return result


class FusedStore:
    """A store whose client may die before or after each change."""

    def __init__(self, behind: MemoryStore, fuse: Fuse) -> None:
        self._behind = behind
        self._fuse = fuse

    def put(self, key: str, data: bytes) -> None:
        self._fuse.step(OSError("the store failed"))
        self._behind.put(key, data)
        self._fuse.step(OSError("the store failed"))

    def delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self._fuse.step(OSError("the store failed"))
            self._behind.delete([key])
        self._fuse.step(OSError("the store failed"))

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        self._fuse.step(OSError("the store failed"))
        return self._behind.get(key, start, stop)

    def list(self, prefix: str, after: str = "") -> Iterator[StoredBlock]:
        for block in self._behind.list(prefix, after):
            self._fuse.step(OSError("the store failed"))
            yield block

    def size(self, key: str) -> int | None:
        return self._behind.size(key)

    def presign(self, method: str, key: str, expires_s: int) -> str | None:
        return None

    def probe(self) -> None:
        pass


def no_database() -> ApiError:
    return ApiError(503, "unavailable", "nobody knows whether it was committed")


def content(number: int) -> bytes:
    return hashlib.sha256(b"content %d" % number).digest() * (20 * number + 1)


NUMBERS = st.integers(1, 6)
FAULTS = st.none() | st.builds(Fault, st.integers(0, 12), st.booleans())
SEEDS = st.integers(0, 1000)


class CrashMachine(RuleBasedStateMachine):
    """What clients were promised, beside the relay."""

    def __init__(self) -> None:
        super().__init__()
        all_routes()
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.rng = SimRng("crashes")
        self.database = database_from_url(IN_MEMORY, Inline(), self.rng)
        metadata.create_all(self.database.engine)
        self.ledger = Ledger(Plans(Allowance(bytes=Size(LIMIT))))
        self.database.write_now(set_up)
        # When a chunk was last acknowledged, and what acknowledged references name.
        self.stored: dict[int, float] = {}
        self.refs: dict[int, set[int]] = {}
        self.restart()

    def restart(self) -> None:
        self.fuse = Fuse()
        database = FusedDatabase(self.database.engine, Inline(), self.rng)
        database.fuse = self.fuse
        world = World(
            database, FusedStore(self.store, self.fuse), self.ledger, self.clock, self.rng, Inline(), bytes(32)
        )
        self.blocks = Blocks(world, Settings(wait_s=DAY, orphan_s=0, scrub_every_s=3 * DAY))
        self.upkeep = Maintenance(self.blocks)
        self.run(self.blocks.end_interrupted, None)
        assert self.database.read_now(lambda c: self.ledger.usage(c, ALICE)).reserved == 0

    def run(self, work: Callable[[], Awaitable[T]], fault: Fault | None, seed: int = 0) -> T | ApiError | None:
        """The result, the refusal, or None after a crash."""
        self.fuse.arm(fault)
        try:
            return run_deterministic(seed, work)
        except ApiError as error:
            return error
        except BaseException as error:
            if not _is_crash(error):
                raise
            self.restart()
            return None
        finally:
            self.fuse.arm(None)

    async def put(self, number: int) -> None:
        data = content(number)

        async def fill(target: memoryview) -> None:
            await trio.lowlevel.checkpoint()
            self.fuse.step(ApiError(408, "timeout"))
            target[:] = data

        body = Body(len(data), hashlib.sha256(data).digest(), fill)
        await self.blocks.put(ALICE, FOLDER, name(number), body)
        self.stored[number] = self.clock.now

    def upload(self, number: int, fault: Fault | None = None) -> bool:
        """Whether it was acknowledged."""
        before = self.stored.pop(number, None)
        result = self.run(lambda: self.put(number), fault)
        assert fault is not None or result is None or result.code == "over-quota"
        if number in self.stored:
            return True
        if before is not None:
            self.stored[number] = before
        return False

    def change_refs(self, work: Callable[[Connection], None], fault: Fault | None) -> bool:
        async def run() -> bool:
            await self.blocks.world.database.write(work)
            return True

        return self.run(run, fault) is True

    @rule(number=NUMBERS, fault=FAULTS)
    def put_chunk(self, number: int, fault: Fault | None) -> None:
        self.upload(number, fault)

    @rule(ref=st.integers(1, 3), numbers=st.sets(NUMBERS, max_size=3), fault=FAULTS)
    def put_ref(self, ref: int, numbers: set[int], fault: Fault | None) -> None:
        """As a client does: what is missing is uploaded, then all of it referred to."""

        def work(c: Connection) -> None:
            folder = folders.require(c, FOLDER, ALICE, Rights.APPEND, lock=True)
            wanted = [name(number) for number in sorted(numbers)]
            self.blocks.refs.put(c, folder, {bytes([ref]) * 32: wanted}, int(self.clock.now))

        if all(self.upload(number) for number in sorted(numbers)):
            before = self.refs.pop(ref, None)
            if self.change_refs(work, fault):
                self.refs[ref] = set(numbers)
            else:
                self.recall(ref, before, set(numbers))

    @rule(numbers=st.lists(NUMBERS, min_size=2, max_size=4), hours=st.sampled_from([0, 25]), fault=FAULTS, seed=SEEDS)
    def together(self, numbers: list[int], hours: int, fault: Fault | None, seed: int) -> None:
        """Uploads, also of the same chunk, while upkeep removes what it thinks nobody needs."""
        self.clock.advance(hours * 3600)

        async def put(number: int) -> None:
            with contextlib.suppress(ApiError):
                await self.put(number)

        async def upkeep(round_of: Callable[[], Awaitable[object]]) -> None:
            with contextlib.suppress(ApiError):
                for _ in range(3):
                    await round_of()

        async def work() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upkeep, self.upkeep.list_store)
                for number in numbers:
                    nursery.start_soon(put, number)
                nursery.start_soon(upkeep, self.upkeep.collect)

        self.run(work, fault, seed)

    @rule(ref=st.integers(1, 3), fault=FAULTS)
    def delete_ref(self, ref: int, fault: Fault | None) -> None:
        def work(c: Connection) -> None:
            folder = folders.require(c, FOLDER, ALICE, Rights.APPEND, lock=True)
            self.blocks.refs.delete(c, folder, bytes([ref]) * 32, int(self.clock.now))

        before = self.refs.pop(ref, None)
        if not self.change_refs(work, fault):
            self.recall(ref, before, None)

    def recall(self, ref: int, before: set[int] | None, after: set[int] | None) -> None:
        """Nobody was told how it ended: it is one or the other."""

        def read(c: Connection) -> set[int] | None:
            packed = c.execute(select(refs.c.chunk_ids).where(refs.c.ref_id == bytes([ref]) * 32)).scalar_one_or_none()
            if packed is None:
                return None
            return {number for number in range(1, 7) if name(number) in unpack(packed)}

        found = self.database.read_now(read)
        assert found in (before, after)
        if found is not None:
            self.refs[ref] = found

    @rule(hours=st.sampled_from([1, 12, 25]))
    def wait(self, hours: int) -> None:
        self.clock.advance(hours * 3600)

    @rule(fault=FAULTS)
    def collect(self, fault: Fault | None) -> None:
        self.run(self.upkeep.collect, fault)

    @rule(fault=FAULTS)
    def list_store(self, fault: Fault | None) -> None:
        self.run(self.upkeep.list_store, fault)

    @rule(fault=FAULTS)
    def scrub(self, fault: Fault | None) -> None:
        self.run(self.upkeep.scrub, fault)

    @rule(data=st.data(), whole=st.booleans())
    def rot(self, data: st.DataObject, whole: bool) -> None:
        """The disk loses or damages one object; the next look at it notices, and devices send it again."""
        keys = sorted(key for key in self.store.objects if key.startswith("chunks/"))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if whole:
            del self.store.objects[key]
        else:
            self.store.objects[key] = b"\xff" + self.store.objects[key][1:]
        self.clock.advance(4 * DAY)
        self.run(self.upkeep.scrub, None)
        needed = sorted(set().union(*self.refs.values()))
        for number in needed:
            self.upload(number)
            assert self.read(number) == content(number)

    def read(self, number: int) -> bytes:
        async def work() -> bytes:
            chunk = await self.blocks.find(ALICE, FOLDER, name(number))
            return await self.blocks.read(chunk, 0, chunk.size)

        result = self.run(work, None)
        assert isinstance(result, bytes), f"chunk {number} is lost: {result}"
        return result

    @invariant()
    def nothing_is_lost(self) -> None:
        recent = {number for number, when in self.stored.items() if self.clock.now - when < DAY}
        needed = {name(number): content(number) for number in recent.union(*self.refs.values())}

        def read(c: Connection) -> dict[bytes, bytes]:
            rows = c.execute(select(chunks).where(chunks.c.upload_id.is_not(None)))
            return {row.chunk_id: self.store.objects[object_key(FOLDER, row.chunk_id, row.upload_id)] for row in rows}

        found = self.database.read_now(read)
        assert {chunk_id: found.get(chunk_id) for chunk_id in needed} == needed

    @invariant()
    def books_and_objects_agree(self) -> None:
        def check(c: Connection) -> None:
            check_books(c, self.ledger, ALICE, [FOLDER])
            check_objects(c, self.store)
            usage = self.ledger.usage(c, ALICE)
            promised = sum(c.execute(select(reservations.c.size)).scalars())
            assert usage.reserved == promised
            assert usage.used + usage.reserved <= LIMIT

        self.database.read_now(check)

    def teardown(self) -> None:
        """Once clients have gone and time has passed, nothing is left that nobody needs."""
        for _ in range(2):
            self.clock.advance(2 * DAY)
            self.run(self.upkeep.collect, None)
            self.run(self.upkeep.list_store, None)
        needed = set().union(*self.refs.values())

        def check(c: Connection) -> None:
            rows = c.execute(select(chunks.c.chunk_id)).scalars().all()
            assert set(rows) == {name(number) for number in needed}
            assert self.ledger.usage(c, ALICE) == Usage(self.ledger.usage(c, ALICE).used, 0)

        self.database.read_now(check)
        assert len([key for key in self.store.objects if key.startswith("chunks/")]) == len(needed)
        self.database.close()


def _is_crash(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_crash(inner) for inner in error.exceptions)
    return isinstance(error, CrashError)


TestCrashMachine = CrashMachine.TestCase
TestCrashMachine.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
