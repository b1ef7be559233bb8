"""What every adapter of a port must do alike: the same tests for the real ones and the simulated ones.

Subclass a contract in a test module, give it the fixture it names, and pytest runs it. A difference between a real
adapter and a simulated one is a bug in the simulated one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import trio
import trio.testing

from p2psync.errors import EscapeError, StateError
from p2psync.ports import ByteStream, Kind, KvStore, Network, ReadFile, Rename, Root, StreamListener, WriteTxn

PATIENCE_S = 20.0
"""How long a contract waits for anything before it fails."""


@contextmanager
def fails(number: int) -> Iterator[None]:
    """What is inside must raise an OSError with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        yield
    assert caught.value.errno == number, caught.value


def put(root: Root, path: bytes, data: bytes, mode: int = 0o644) -> None:
    """Create a file with content."""
    with closing(root.create(path, mode)) as file:
        file.pwrite(data, 0)


def content(file: ReadFile) -> bytes:
    """All bytes of an open file, which is closed."""
    try:
        buffer = bytearray(file.stat().size)
        assert file.pread_into(memoryview(buffer), 0) == len(buffer)
        return bytes(buffer)
    finally:
        file.close()


def get(root: Root, path: bytes) -> bytes:
    """The content of a file by path."""
    return content(root.open(path))


class RootContract:
    """For `ports.Root`; needs a fixture `root`: an empty tree on a disk that can do everything."""

    def test_a_new_file_reads_back(self, root: Root) -> None:
        """Create, write, read, stat."""
        put(root, b"f", b"content", 0o600)
        assert get(root, b"f") == b"content"
        stat = root.stat(b"f")
        assert stat is not None
        assert (stat.kind, stat.size, stat.mode) == (Kind.FILE, 7, 0o600)
        assert root.scan(b"") == [(b"f", stat)]

    def test_create_never_replaces(self, root: Root) -> None:
        """Whatever stands there, also a dangling symlink."""
        put(root, b"f", b"1")
        root.mkdir(b"d")
        root.symlink(b"nowhere", b"s")
        for name in (b"f", b"d", b"s"):
            with pytest.raises(FileExistsError):
                root.create(name)
            with pytest.raises(FileExistsError):
                root.mkdir(name)
            with pytest.raises(FileExistsError):
                root.symlink(b"x", name)
            with pytest.raises(FileExistsError):
                root.link(b"f", name)
        assert get(root, b"f") == b"1"

    def test_missing_entries(self, root: Root) -> None:
        """`stat` says None, everything else raises."""
        put(root, b"f", b"")
        assert root.stat(b"x") is None
        assert root.stat(b"x/y") is None
        assert root.stat(b"f/y") is None
        for call in (root.open, root.reopen, root.unlink, root.rmdir, root.readlink, root.scan):
            with pytest.raises(FileNotFoundError):
                call(b"x")
            with pytest.raises(NotADirectoryError):
                call(b"f/y")

    def test_only_regular_files_open(self, root: Root) -> None:
        """Directories and symlinks do not, even when the symlink's target would."""
        put(root, b"f", b"")
        root.mkdir(b"d")
        root.symlink(b"f", b"s")
        with pytest.raises(IsADirectoryError):
            root.open(b"d")
        with fails(errno.ELOOP):
            root.open(b"s")
        with fails(errno.ELOOP):
            root.reopen(b"s")

    def test_no_path_leaves_the_root(self, root: Root) -> None:
        """Neither by its text nor through a symlink in the middle."""
        root.mkdir(b"d")
        root.symlink(b"d", b"s")
        put(root, b"d/f", b"1")
        for path in (b"s/f", b"../x", b"d/../d/f", b"/etc/passwd", b"d//f", b"./d", b"d/"):
            for call in (root.stat, root.open, root.reopen, root.create, root.unlink, root.rmdir, root.mkdir):
                with pytest.raises(EscapeError):
                    pytest.fail(f"{call} of {path!r} gave {call(path)}")
            with pytest.raises(EscapeError):
                root.rename(b"d/f", path, Rename.REPLACE)
        with pytest.raises(EscapeError):
            root.scan(b"s")
        assert get(root, b"d/f") == b"1"

    def test_long_names(self, root: Root) -> None:
        """255 bytes are a name, 256 are ENAMETOOLONG; a deep path may be longer than one system call takes."""
        put(root, b"n" * 255, b"1")
        for call in (root.create, root.stat, root.open, root.mkdir):
            with fails(errno.ENAMETOOLONG):
                call(b"n" * 256)
        path = b"d" * 200
        for _ in range(25):
            root.mkdir(path)
            path += b"/" + b"d" * 200
        put(root, path, b"deep")
        assert get(root, path) == b"deep"

    def test_names_are_bytes(self, root: Root) -> None:
        """Sorted by byte, never interpreted."""
        names = [b"\xff\xfe", b"a\nb", "e\u0301".encode(), "\u00e9".encode(), b" ", b"A", b"a"]
        for name in names:
            put(root, name, name)
        assert [name for name, _ in root.scan(b"")] == sorted(names)
        assert all(get(root, name) == name for name in names)

    def test_noreplace(self, root: Root) -> None:
        """Moves, but never over anything."""
        put(root, b"a", b"1")
        put(root, b"b", b"2")
        root.mkdir(b"d")
        for target in (b"b", b"d"):
            with pytest.raises(FileExistsError):
                root.rename(b"a", target, Rename.NOREPLACE)
        root.rename(b"a", b"d/c", Rename.NOREPLACE)
        assert root.stat(b"a") is None
        assert (get(root, b"d/c"), get(root, b"b")) == (b"1", b"2")
        with pytest.raises(FileNotFoundError):
            root.rename(b"a", b"x", Rename.NOREPLACE)

    def test_replace(self, root: Root) -> None:
        """The target's old inode lives on in what has it open."""
        put(root, b"a", b"new")
        put(root, b"b", b"old")
        held = root.open(b"b")
        root.rename(b"a", b"b", Rename.REPLACE)
        assert get(root, b"b") == b"new"
        assert root.stat(b"a") is None
        assert content(held) == b"old"

    def test_replace_across_kinds(self, root: Root) -> None:
        """As rename(2) says."""
        put(root, b"f", b"1")
        root.mkdir(b"full")
        put(root, b"full/x", b"")
        root.mkdir(b"empty")
        with pytest.raises(IsADirectoryError):
            root.rename(b"f", b"empty", Rename.REPLACE)
        with pytest.raises(NotADirectoryError):
            root.rename(b"empty", b"f", Rename.REPLACE)
        with fails(errno.ENOTEMPTY):
            root.rename(b"empty", b"full", Rename.REPLACE)
        root.rename(b"full", b"empty", Rename.REPLACE)
        assert [name for name, _ in root.scan(b"empty")] == [b"x"]

    def test_exchange(self, root: Root) -> None:
        """Swaps two entries of any kinds, in one directory or two."""
        put(root, b"f", b"1")
        root.mkdir(b"d")
        put(root, b"d/x", b"2")
        root.rename(b"f", b"d/x", Rename.EXCHANGE)
        assert (get(root, b"f"), get(root, b"d/x")) == (b"2", b"1")
        root.rename(b"f", b"d", Rename.EXCHANGE)
        assert (get(root, b"d"), get(root, b"f/x")) == (b"2", b"1")
        with pytest.raises(FileNotFoundError):
            root.rename(b"d", b"x", Rename.EXCHANGE)

    def test_a_directory_never_moves_into_itself(self, root: Root) -> None:
        """EINVAL, however deep."""
        root.mkdir(b"d")
        root.mkdir(b"d/e")
        for target in (b"d/x", b"d/e/x"):
            with fails(errno.EINVAL):
                root.rename(b"d", target, Rename.NOREPLACE)

    def test_hard_links(self, root: Root) -> None:
        """Two names of one inode; renaming one over the other does nothing."""
        put(root, b"a", b"1")
        root.link(b"a", b"b")
        one, other = root.stat(b"a"), root.stat(b"b")
        assert one is not None
        assert other is not None
        assert one.ino == other.ino
        root.rename(b"a", b"b", Rename.REPLACE)
        assert root.stat(b"a") is not None
        root.unlink(b"a")
        assert get(root, b"b") == b"1"

    def test_symlinks_are_data(self, root: Root) -> None:
        """Any target text is stored, nothing is followed."""
        root.symlink(b"../../etc/passwd", b"s")
        assert root.readlink(b"s") == b"../../etc/passwd"
        stat = root.stat(b"s")
        assert stat is not None
        assert (stat.kind, stat.size) == (Kind.SYMLINK, 16)
        root.utime(b"s", 5_000_000_000)
        stat = root.stat(b"s")
        assert stat is not None
        assert stat.mtime_ns == 5_000_000_000
        put(root, b"f", b"")
        with fails(errno.EINVAL):
            root.readlink(b"f")
        with fails(errno.EOPNOTSUPP):
            root.chmod(b"s", 0o600)
        root.unlink(b"s")

    def test_directories(self, root: Root) -> None:
        """Removed only when empty, and only as directories."""
        root.mkdir(b"d")
        put(root, b"d/f", b"")
        with fails(errno.ENOTEMPTY):
            root.rmdir(b"d")
        with pytest.raises(NotADirectoryError):
            root.rmdir(b"d/f")
        with pytest.raises(IsADirectoryError):
            root.unlink(b"d")
        root.unlink(b"d/f")
        root.rmdir(b"d")
        assert root.scan(b"") == []

    def test_metadata(self, root: Root) -> None:
        """Mode and mtime are set, and ctime does not go back."""
        put(root, b"f", b"")
        root.mkdir(b"d")
        before = root.stat(b"f")
        assert before is not None
        for path in (b"f", b"d"):
            root.chmod(path, 0o750)
            root.utime(path, 1_234_567_890_123_456_789)
            stat = root.stat(path)
            assert stat is not None
            assert (stat.mode, stat.mtime_ns) == (0o750, 1_234_567_890_123_456_789)
            assert stat.ctime_ns >= before.ctime_ns

    def test_sparse_files(self, root: Root) -> None:
        """A hole costs nothing, reads as zeros, and is skipped by `next_data`."""
        file = root.create(b"f")
        file.truncate(50 << 30)
        assert file.next_data(0) is None
        file.pwrite(b"data", 20 << 30)
        assert file.next_data(0) == 20 << 30
        assert file.next_data((20 << 30) + 2) == (20 << 30) + 2
        assert file.next_data(50 << 30) is None
        buffer = memoryview(bytearray(b"x" * 10))
        assert file.pread_into(buffer, (20 << 30) - 3) == 10
        assert bytes(buffer) == b"\0\0\0data\0\0\0"
        assert file.pread_into(buffer, (50 << 30) - 4) == 4
        file.truncate(2)
        file.utime(987_654_321)
        assert (file.stat().size, file.stat().mtime_ns) == (2, 987_654_321)
        file.truncate(6000)
        file.close()
        assert get(root, b"f") == bytes(6000)

    def test_syncs_succeed(self, root: Root) -> None:
        """Files, directories and the whole file system."""
        root.mkdir(b"d")
        file = root.create(b"d/f")
        file.pwrite(memoryview(b"1"), 0)
        file.write_back()
        file.sync()
        file.close()
        root.sync_directory(b"d")
        root.sync_directory(b"")
        root.sync_all()
        free, total = root.free_space()
        assert 0 < free <= total

    def test_identity_is_the_directory(self, root: Root) -> None:
        """The same entry as b""."""
        here, root_stat = root.identity(), root.stat(b"")
        assert root_stat is not None
        assert (here.kind, here.dev, here.ino) == (Kind.DIRECTORY, root_stat.dev, root_stat.ino)


class KvStoreContract:
    """For `ports.KvStore`; needs a fixture `store`: an empty store with the tables "a" and "b"."""

    def test_a_transaction_is_all_or_nothing(self, store: KvStore) -> None:
        """An exception undoes puts and deletes and comes through."""
        store.write(lambda txn: txn.put("a", b"k", b"1"))

        def fail(txn: WriteTxn) -> None:
            txn.put("a", b"k", b"2")
            txn.put("b", b"x", b"3")
            assert txn.delete("a", b"k")
            assert txn.get("a", b"k") is None
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            store.write(fail)
        with store.read() as txn:
            assert txn.get("a", b"k") == b"1"
            assert txn.get("b", b"x") is None
            assert (txn.count("a"), txn.count("b")) == (1, 0)

    def test_writes_return_values_and_see_themselves(self, store: KvStore) -> None:
        """A transaction reads what it wrote."""

        def work(txn: WriteTxn) -> list[tuple[bytes, bytes]]:
            txn.put("a", b"2", b"two")
            txn.put("a", b"1", b"one")
            assert not txn.delete("a", b"3")
            return list(txn.range("a"))

        assert store.write(work) == [(b"1", b"one"), (b"2", b"two")]

    def test_ranges_are_half_open_and_ordered(self, store: KvStore) -> None:
        """By bytes; tables are apart."""
        keys = [bytes([i]) + b"k" * (i % 3) for i in range(1, 200, 7)]

        def work(txn: WriteTxn) -> None:
            for key in reversed(keys):
                txn.put("a", key, key)
            txn.put("b", b"\x05", b"other")

        store.write(work)
        with store.read() as txn:
            assert [key for key, _ in txn.range("a")] == keys
            assert [key for key, _ in txn.range("a", keys[3], keys[9])] == keys[3:9]
            assert [key for key, _ in txn.range("a", keys[-2])] == keys[-2:]
            assert list(txn.range("a", b"\xff")) == []
            assert list(txn.range("a", keys[4], keys[4])) == []

    def test_transactions_do_not_nest(self, store: KvStore) -> None:
        """A write inside a view would keep the store from growing; the view stays usable."""
        store.write(lambda txn: txn.put("a", b"k", b"1"))
        with store.read() as view, store.read() as second:
            with pytest.raises(StateError):
                store.write(lambda txn: txn.put("a", b"k", b"2"))
            assert view.get("a", b"k") == second.get("a", b"k") == b"1"
        with pytest.raises(StateError):
            store.write(lambda _: store.write(lambda txn: txn.put("a", b"k", b"3")))
        with store.read() as view:
            assert view.get("a", b"k") == b"1"

    def test_long_keys_and_values(self, store: KvStore) -> None:
        """511 bytes of key, megabytes and nothing as values."""

        def work(txn: WriteTxn) -> None:
            txn.put("a", b"k" * 511, b"v" * 5_000_000)
            txn.put("a", b"e", b"")

        store.write(work)
        with store.read() as txn:
            assert txn.get("a", b"k" * 511) == b"v" * 5_000_000
            assert txn.get("a", b"e") == b""


class NetworkContract:
    """For `ports.Network`; needs a fixture `network`, in which the host 127.0.0.1 reaches itself."""

    async def _connected(self, network: Network) -> tuple[StreamListener, ByteStream, ByteStream]:
        [listener] = await network.listen("127.0.0.1:0")
        near: list[ByteStream] = []

        async def dial() -> None:
            near.append(await network.dial(_dialable(listener)))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                far = await listener.accept()
        return listener, near[0], far

    async def test_bytes_arrive_in_order_both_ways(self, network: Network) -> None:
        """More than every buffer holds, while both sides send."""
        listener, near, far = await self._connected(network)
        data = bytes(range(256)) * 12_000
        received: dict[str, bytes] = {}

        async def receive(name: str, stream: ByteStream) -> None:
            buffer, parts = memoryview(bytearray(70_000)), bytearray()
            while len(parts) < len(data):
                count = await stream.receive_into(buffer)
                assert count
                parts += buffer[:count]
            received[name] = bytes(parts)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for name, stream in (("near", near), ("far", far)):
                    nursery.start_soon(stream.send_all, memoryview(data))
                    nursery.start_soon(receive, name, stream)
        assert received == {"near": data, "far": data}
        for thing in (near, far, listener):
            await thing.aclose()

    async def test_a_closed_stream_ends_after_its_data(self, network: Network) -> None:
        """The other side reads the rest, then 0, and cannot send for ever."""
        listener, near, far = await self._connected(network)
        await near.send_all(b"last words")
        await near.aclose()
        buffer = memoryview(bytearray(100))
        with trio.fail_after(PATIENCE_S):
            assert await far.receive_into(buffer) == 10
            assert await far.receive_into(buffer) == 0
            with pytest.raises(trio.BrokenResourceError):
                await _send_for_ever(far)
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_into(buffer)
        await far.aclose()
        await listener.aclose()

    async def test_closing_wakes_our_own_reader(self, network: Network) -> None:
        """With ClosedResourceError."""
        listener, near, far = await self._connected(network)

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_into(memoryview(bytearray(1)))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                await near.aclose()
        await far.aclose()
        await listener.aclose()

    async def test_an_unread_stream_holds_its_sender(self, network: Network) -> None:
        """Buffers are bounded."""
        listener, near, far = await self._connected(network)
        with trio.move_on_after(0.5) as scope:
            await near.send_all(bytes(64 << 20))
        assert scope.cancelled_caught
        for thing in (near, far, listener):
            await thing.aclose()

    async def test_meeting_from_the_port_that_we_listen_on(self, network: Network) -> None:
        """Who is not meeting us is reached where it listens, and sees our own port; ours goes on listening."""
        [ours], [theirs] = [await network.listen("127.0.0.1:0") for _ in range(2)]
        port = int(_dialable(ours).rpartition(":")[2])
        with trio.fail_after(PATIENCE_S):
            near = await network.meet(_dialable(theirs), port)
            far = await theirs.accept()
            assert near.remote.rpartition(":")[2] == _dialable(theirs).rpartition(":")[2]
            assert far.remote.rpartition(":")[2] == str(port)
            await near.send_all(b"hello")
            assert await far.receive_into(memoryview(bytearray(10))) == 5
            other = await network.dial(_dialable(ours))
            accepted = await ours.accept()
        for thing in (near, far, other, accepted):
            await thing.aclose()
        await theirs.aclose()
        with trio.fail_after(PATIENCE_S), pytest.raises(ConnectionRefusedError):
            await network.meet(_dialable(theirs), port)
        with fails(errno.EADDRINUSE):
            await network.listen(_dialable(ours))
        await ours.aclose()

    async def test_nobody_listens(self, network: Network) -> None:
        """Dialling fails with OSError; an address in use cannot be listened on; a closed listener accepts nothing."""
        [listener] = await network.listen("127.0.0.1:0")
        address = _dialable(listener)
        with fails(errno.EADDRINUSE):
            await network.listen(address)
        await listener.aclose()
        with trio.fail_after(PATIENCE_S), pytest.raises(ConnectionRefusedError):
            await network.dial(address)
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def _send_for_ever(stream: ByteStream) -> None:
    while True:
        await stream.send_all(bytes(1000))
        await trio.sleep(0.01)


def _dialable(listener: StreamListener) -> str:
    return f"127.0.0.1:{listener.addresses[0].rpartition(':')[2]}"
