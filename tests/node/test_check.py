"""Two real nodes, and one bit flipped in each of many files, rows of the index and kept versions: found and healed."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from p2psync import Node
from p2psync.errors import UsageError
from p2psync.index import tables
from p2psync.index.reader import history_key
from p2psync.model.entries import Fingerprint
from p2psync.model.paths import RelPath
from p2psync.node.node import NodeOperations, init, open_offline
from p2psync.node.views import CheckReport
from p2psync.ports import Kind
from p2psync.sync import rot, scrub
from p2psync.sync.folder import Folder

KIB, MIB = 1024, 1024 * 1024
LABEL = "docs"


@pytest.fixture(autouse=True)
def _settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What users wrote counts as durable soon."""
    monkeypatch.setattr(scrub, "SETTLE_INTERVAL", 0.1)


class Two:
    """Two homes whose nodes share a folder, running or not."""

    def __init__(self, base: Path) -> None:
        self.homes = {name: base / f"home-{name}" for name in "ab"}
        self.paths = {name: base / f"docs-{name}" for name in "ab"}
        self.ids = {name: init(home, name).id for name, home in self.homes.items()}
        for path in self.paths.values():
            path.mkdir()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, NodeOperations]]:
        """Both nodes, connected."""
        async with self.node("a") as a, self.node("b") as b:
            await b.operations.device_add(self.ids["a"], "a", a.addresses)
            await a.operations.device_add(self.ids["b"], "b", b.addresses)
            with trio.fail_after(30):
                while not all(node.synchronizer.peers for node in (a.operations, b.operations)):
                    await trio.sleep(0.02)
            yield {"a": a.operations, "b": b.operations}

    def node(self, name: str) -> Node:
        """One node."""
        return Node(self.homes[name], listen=["127.0.0.1:0"], discovery=False, control=False)

    async def share(self, nodes: dict[str, NodeOperations]) -> None:
        """The folder of `a`, accepted by `b`."""
        folder = await nodes["a"].folder_add(bytes(self.paths["a"]), LABEL)
        await nodes["a"].folder_share(folder.id, self.ids["b"], "editor")
        with trio.fail_after(30):
            while not await nodes["b"].folder_offers():
                await trio.sleep(0.02)
        await nodes["b"].folder_accept(folder.id, bytes(self.paths["b"]))
        await settle(nodes)

    @asynccontextmanager
    async def offline(self, name: str) -> AsyncIterator[tuple[NodeOperations, Folder]]:
        """The operations of a home whose node does not run, and its folder."""
        async with open_offline(self.homes[name]) as operations:
            (folder,) = operations.synchronizer.folders.values()
            yield operations, folder

    def trees(self) -> dict[str, dict[str, bytes]]:
        """What both devices show."""
        return {name: dict(files(path)) for name, path in self.paths.items()}


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Visible files below a directory, with their content."""
    for directory, names, found in os.walk(path):
        if ".p2psync" in names:
            names.remove(".p2psync")
        for file in found:
            at = Path(directory) / file
            yield str(at.relative_to(path)), at.read_bytes()


async def settle(nodes: dict[str, NodeOperations]) -> None:
    """Wait until both are identical."""
    result = await nodes["a"].wait(60)
    assert result.identical, result.missing


class Rot:
    """Flips bits as a failing disk does: without a trace in times or in the watcher."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def bit(self, data: bytes) -> bytes:
        """The same with one bit flipped."""
        flipped = bytearray(data)
        flipped[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        return bytes(flipped)

    def file(self, path: Path) -> None:
        """Flip a bit of a file; its times stay, apart from the one that cannot be set."""
        stat = path.stat()
        with path.open("r+b") as file:
            at = self.rng.randrange(stat.st_size)
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(self.bit(byte))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def synced_file(self, folder: Folder, path: str) -> None:
        """Flip a bit of a shared file; the index learns the time that could not be set."""
        at = Path(os.fsdecode(folder.context.path)) / path
        self.file(at)
        relative, ctime_ns = RelPath(os.fsencode(path)), at.stat().st_ctime_ns

        def follow(writer):  # type: ignore[no-untyped-def]
            entry = writer.synced(relative)
            seen = Fingerprint(
                entry.fingerprint.dev, entry.fingerprint.ino, entry.size, entry.mtime_ns, ctime_ns, ctime_ns + 10**10
            )
            writer.put_synced(replace(entry, fingerprint=seen))

        folder.context.index.write(follow)

    def rows(self, folder: Folder, table: str, count: int, spared: set[bytes]) -> list[bytes]:
        """Flip a bit in some rows of a table, but not in those `spared`; their keys."""
        store = folder.context.index._rows
        with store.read() as txn:
            rows = [(key, value) for key, value in txn.range(table) if key not in spared]
        chosen = self.rng.sample(rows, min(count, len(rows)))
        store.write(lambda txn: [txn.put(table, key, self.bit(value)) for key, value in chosen])
        return [key for key, _ in chosen]


def place_of(paths: list[str]) -> set[bytes]:
    """Keys of the synced entries of these paths."""
    return {tables.place(RelPath(os.fsencode(path))) for path in paths}


async def populate(two: Two, rng: random.Random, count: int, versions: int) -> None:
    """Files of many sizes on both devices, and kept versions on `b` whose content still stands somewhere."""
    sizes = [rng.choice((1, 100, 5 * KIB, 60 * KIB, 300 * KIB)) for _ in range(count)]
    sizes[:3] = [5 * MIB, 9 * MIB, 4 * MIB + 1]
    for number, size in enumerate(sizes):
        path = two.paths["a"] / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(size))
    old = [rng.randbytes(3 * KIB) for _ in range(versions)]
    for number, content in enumerate(old):
        (two.paths["a"] / f"archive{number}").write_bytes(content)
        (two.paths["a"] / f"work{number}").write_bytes(content)
    async with two.running() as nodes:
        await two.share(nodes)
        for number in range(versions):
            (two.paths["a"] / f"work{number}").write_bytes(b"a second version %d" % number)
        await settle(nodes)
        (folder,) = nodes["a"].synchronizer.folders.values()
        (two.paths["b"] / "of-b").write_bytes(b"written on b")
        await settle({"a": nodes["b"]})
        assert (await nodes["a"].check()).findings == [], folder.label
        for node in nodes.values():
            (folder,) = node.synchronizer.folders.values()
            with trio.fail_after(30):
                while not is_durable(folder):
                    await trio.sleep(0.05)


def is_durable(folder: Folder) -> bool:
    """Whether a crash could no longer explain that a file is not what it was."""
    with folder.context.index.read() as reader:
        return rot.durable(reader) == rot.Durable(reader.sequence(), reader.clock())


def told(report: CheckReport) -> str:
    """Everything a report says."""
    return "\n".join(f"{finding.path}: {finding.text}" for finding in report.findings)


FILES, ROWS, VERSIONS = 120, 60, 20
FROM_PEERS = (tables.RECORDS, tables.BATCHES, tables.MANIFESTS)
"""What only other devices can give back: damaged on one of the two."""
ELSEWHERE = {tables.META, tables.INTENTS, tables.HELD, tables.PROBLEMS, tables.PENDING}
ELSEWHERE |= {tables.EPOCH_KEYS, tables.GRANTS, tables.MAILBOXES, tables.CHAINS}
ELSEWHERE |= {tables.OUTBOX, tables.POSTED, tables.UPLOADS}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.large) for seed in range(2, 12))])
async def test_one_flipped_bit_in_each_of_200_things_is_found_and_healed(tmp_path: Path, seed: int) -> None:
    rng, rotten = random.Random(seed), Rot(seed)
    two = Two(tmp_path)
    await populate(two, rng, FILES + 20, VERSIONS + 5)
    before = two.trees()
    assert before["a"] == before["b"]
    victims = rng.sample(sorted(path for path in before["a"] if path.startswith("d")), FILES)
    broken = {"a": victims[: FILES // 2], "b": victims[FILES // 2 :]}
    done = 0
    roots = {}
    for name in "ab":
        expected: list[str] = []
        async with two.offline(name) as (operations, folder):
            with folder.context.index.read() as reader:
                roots[name] = reader.root()
                kept = [entry for entry in reader.history_all() if entry.kind is Kind.FILE][:VERSIONS]
            for path in broken[name]:
                rotten.synced_file(folder, path)
                expected.append(f"{path}: it has changed")
            # Where both a row and the bytes it vouches for are damaged, nothing is left to tell.
            hit = place_of(broken[name]) | {history_key(entry.order) for entry in kept}
            some = [t for t in tables.TABLES if t not in ELSEWHERE and (name == "b" or t not in FROM_PEERS)]
            for table in [*some, *rng.choices(some, k=ROWS // 2)]:
                keys = rotten.rows(folder, table, 1, hit)
                hit.update(keys)
                expected += [f"row {key.hex()} of {table} is damaged" for key in keys]
            if name == "b":
                for entry in kept:
                    rotten.file(two.paths[name] / os.fsdecode(entry.stored))
                    expected.append(f"a kept version is damaged: {os.fsdecode(entry.stored)}")
                assert len(kept) == VERSIONS
            report = await operations.check()
            assert not report.ok
            assert [what for what in expected if what not in told(report)] == []
            done += len(expected)
    assert done >= FILES + ROWS + VERSIONS
    async with two.running() as nodes:
        for name in "ab":
            report = await nodes[name].check(repair=True)
            assert [f for f in report.findings if not f.repaired] == []
        await settle(nodes)
        for name in "ab":
            assert (await nodes[name].check()).findings == []
    assert two.trees() == before
    for name in "ab":
        async with two.offline(name) as (_, folder):
            with folder.context.index.read() as reader:
                assert reader.root() == roots[name]
                assert reader.totals().conflicts == 0


async def test_a_broken_index_is_set_aside_and_made_anew(tmp_path: Path) -> None:
    two = Two(tmp_path)
    await populate(two, random.Random(1), 12, 2)
    before = two.trees()
    (data,) = two.homes["b"].glob("folders/*/index/data.mdb")
    pages = bytearray(data.read_bytes())
    for at in range(8192, len(pages), 4096):
        pages[at] ^= 1
    data.write_bytes(pages)
    async with open_offline(two.homes["b"]) as operations:
        report = await operations.check()
        assert (report.ok, [f.code for f in report.findings]) == (False, ["index"])
        report = await operations.check(repair=True)
        assert (report.ok, [f.code for f in report.findings]) == (True, ["index"])
    assert list(two.homes["b"].glob("folders/*/index.damaged-*/data.mdb"))
    async with two.running() as nodes:
        await settle(nodes)
        for name in "ab":
            assert (await nodes[name].check()).findings == []
            assert (await nodes[name].status()).folders[0].conflicts == 0
    assert two.trees() == before


@pytest.mark.large
async def test_what_no_device_has_is_published_on_a_persons_word_only(tmp_path: Path) -> None:
    two = Two(tmp_path)
    await populate(two, random.Random(1), 5, 1)
    before, rotten = two.trees()["a"], Rot(1)
    for name in "ab":
        async with two.offline(name) as (operations, folder):
            rotten.synced_file(folder, "d4/f4")
            if name == "b":
                with pytest.raises(UsageError, match="--repair"):
                    await operations.check(accept_local=True)
                assert [f.code for f in (await operations.check(quick=True)).findings] == []
            (finding,) = (await operations.check(repair=True)).findings
            assert (finding.path, finding.repaired) == ("d4/f4", False)
            assert "p2psync run" in finding.remedy
    async with two.running() as nodes:
        report = await nodes["a"].check(repair=True)
        assert [(f.path, f.repaired) for f in report.findings] == [("d4/f4", False)]
        report = await nodes["a"].check(repair=True, accept_local=True)
        assert report.ok
        await settle(nodes)
        for node in nodes.values():
            assert (await node.check()).findings == []
            assert (await node.status()).folders[0].scrub is not None
    trees = two.trees()
    assert trees["a"] == trees["b"]
    assert {path for path in before if trees["a"][path] != before[path]} == {"d4/f4"}
