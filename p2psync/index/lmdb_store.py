"""LMDB as the embedded store: durable transactions on one writer thread, growth, and refusal of what LMDB cannot bear.

LMDB trusts its file completely: a truncated or damaged one can kill the process. So a file that was not closed
cleanly, or changed since, is verified page by page (`lmdb.verify`) before LMDB maps it. For the same reason an
environment that has met an error of its disk is never used again: the store has failed until it is opened anew.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import lmdb
import lmdb.verify

from p2psync.errors import IntegrityError, StateError, StoreFailedError, StoreFullError
from p2psync.ports import ReadTxn, WriteTxn

T = TypeVar("T")

GIB = 2**30
DEFAULT_MAP = 64 * GIB if sys.platform == "linux" and sys.maxsize > 2**32 else GIB // 4
"""First size of the map. On Linux the file is as large as what is in it; elsewhere maybe as large as the map."""
MAX_MAP = 1024 * GIB

READERS = 512
SPARE = 16
"""Views kept ready for the next who reads: as many as there are worker threads."""
MIN_FREE = 2**20
"""Free bytes below which a failed write counts as a full disk."""
_PATIENCE = 60.0
"""Seconds to wait for views to end before the map is resized or closed; they are meant to last milliseconds."""

DATA = "data.mdb"
CONDITION = "condition"
"""Beside the data file: "open", or "clean SIZE MTIME_NS" after an orderly close; absent until the index is made."""
MOUNTS = Path("/proc/self/mountinfo")

_NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|afs|9p|ncpfs|ceph|lustre|gpfs|orangefs|davfs|drvfs"
    r"|fuse\.(sshfs|rclone|s3fs|gcsfuse|davfs|glusterfs|ceph|\w*nfs\w*)"
)


class LmdbDatabase:
    """Opens LMDB environments; the `Database` port. `map_size` is the first size of the map in bytes."""

    def __init__(self, map_size: int = DEFAULT_MAP) -> None:
        self._map_size = map_size

    def open(self, path: bytes, tables: tuple[str, ...]) -> LmdbStore:
        """Open or create the environment in the directory `path`.

        StateError on a network file system or when it is open already; IntegrityError when the file is damaged;
        StoreFailedError when the disk does not do what it is asked to, StoreFullError when it is full.
        """
        where = Path(os.fsdecode(path))
        try:
            return LmdbStore(where, tables, self._map_size)
        except lmdb.DiskError as error:
            raise _full(where) from error
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
            raise _damaged(where, str(error)) from error
        except (lmdb.Error, OSError) as error:
            raise _failed(where, error) from error


class _View:
    """The `ReadTxn` and `WriteTxn` ports over one LMDB transaction."""

    __slots__ = ("_tables", "_txn")

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        self._txn = txn
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key, db=self._tables[table])
        return value

    def range(self, table: str, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            for key, value in cursor.iternext():
                if stop is not None and key >= stop:
                    return
                yield key, value

    def count(self, table: str) -> int:
        entries: int = self._txn.stat(self._tables[table])["entries"]
        return entries

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._tables[table]))


class _Views:
    """Counts open views, so that the map is resized only when there is none (LMDB leaves that to the caller)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = 0
        self._mine = threading.local()

    def begin(self) -> None:
        """This thread opens a view."""
        with self._changed:
            self._open += 1
        self._mine.open = self.held_here() + 1

    def end(self) -> None:
        """It has ended."""
        self._mine.open -= 1
        with self._changed:
            self._open -= 1
            if not self._open:
                self._changed.notify_all()

    def held_here(self) -> int:
        """Views this thread holds."""
        count: int = getattr(self._mine, "open", 0)
        return count

    @contextmanager
    def none(self, timeout: float) -> Iterator[bool]:
        """Wait until no view is open and keep new ones from opening; False when `timeout` seconds were not enough."""
        with self._changed:
            yield self._changed.wait_for(lambda: not self._open, timeout)


class _Reading(AbstractContextManager[ReadTxn]):
    """A view of a store while it is used. Not a generator, as there are many and most are over at once."""

    __slots__ = ("_begin", "_fail", "_tables", "_txn", "_views")

    def __init__(
        self,
        views: _Views,
        begin: Callable[[], Any],
        fail: Callable[[lmdb.Error], StoreFailedError],
        tables: dict[str, Any],
    ) -> None:
        self._views = views
        self._begin = begin
        self._fail = fail
        self._tables = tables

    def __enter__(self) -> ReadTxn:
        self._views.begin()
        try:
            self._txn = self._begin()
            return _View(self._txn.__enter__(), self._tables)
        except BaseException as error:
            self._views.end()
            self._judge(error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._txn.__exit__(kind, error, traceback)
        except lmdb.Error as failure:
            self._judge(failure)
            raise
        finally:
            self._views.end()
        self._judge(error)

    def _judge(self, error: BaseException | None) -> None:
        if isinstance(error, lmdb.Error) and not isinstance(error, lmdb.BadValsizeError):
            raise self._fail(error) from error


class LmdbStore:
    """One LMDB environment; the `KvStore` port. Reads run on the calling thread, writes on the store's own."""

    def __init__(self, path: Path, tables: tuple[str, ...], map_size: int) -> None:
        self._path = path
        self._views = _Views()
        self._failure: BaseException | None = None
        self._requests: queue.SimpleQueue[tuple[Callable[[WriteTxn], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = self._released = False
        _refuse_network(path)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_before_open(path)
        self._env = self._open_environment(map_size, len(tables))
        self._tables: dict[str, Any] = {}
        try:
            self._open_tables(tables)
            self._env.reader_check()
            _set_condition(path, "open")
        except BaseException:
            self._env.close()
            raise
        self._writer = threading.Thread(target=self._serve, name=f"index {path.name}", daemon=True)
        self._writer.start()

    # ── the port ────────────────────────────────────────────────────────────────────────────────────────────────────
    def read(self) -> AbstractContextManager[ReadTxn]:
        """A consistent view, on this thread. StateError when the store is closed, StoreFailedError when it failed."""
        return _Reading(self._views, self._begin, self._fail, self._tables)

    def write(self, work: Callable[[WriteTxn], T]) -> T:
        """Run `work` on the writer thread in one transaction and return once it is durable.

        StateError from within a view of the same thread: the store could then never grow. StoreFullError when the disk
        is full: nothing is changed and later writes may succeed. After any other failure (StoreFailedError) the store
        refuses to go on, because the state on disk is not known any more.
        """
        if self._views.held_here() or threading.current_thread() is self._writer:
            raise StateError("a write cannot begin inside a view of the same index; end the view first")
        return self._submit(work)

    def close(self) -> None:
        """Finish queued writes, close the file and mark it as closed cleanly. Idempotent; once more after StateError.

        What cannot be marked as closed cleanly is verified when it is opened again.
        """
        with self._gate:
            if not self._closed:
                self._closed = True
                self._requests.put(None)
        self._writer.join()
        with self._views.none(_PATIENCE) as quiet:
            if self._released:
                return
            if not quiet:
                raise StateError(f"the index in {self._path} cannot be closed while a view of it stays open")
            self._released = True
            self._env.close()
        if self._failure is None:
            with suppress(OSError):
                _set_condition(self._path, _clean_text(self._path / DATA))

    # ── the writer thread ───────────────────────────────────────────────────────────────────────────────────────────
    def _submit(self, work: Callable[[WriteTxn], T]) -> T:
        future: Future[T] = Future()
        with self._gate:
            self._usable()
            self._requests.put((work, future))
        return future.result()

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            work, future = request
            try:
                future.set_result(self._transact(work))
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                future.set_exception(error)
            del request, work, future

    def _transact(self, work: Callable[[WriteTxn], T]) -> T:
        try:
            while True:
                try:
                    return self._attempt(work)
                except lmdb.MapFullError:
                    self._grow()
        except lmdb.BadValsizeError:
            raise
        except lmdb.Error as error:
            # A short write is reported as an I/O error: look whether the disk is merely full. LMDB panics when it
            # cannot say which of two states is on the disk, and then refuses everything, whatever the cause was.
            full = isinstance(error, lmdb.DiskError) or _nearly_full(self._path)
            if full and not isinstance(error, lmdb.PanicError):
                raise _full(self._path) from error
            self._failure = error
            raise _failed(self._path, error) from error

    def _attempt(self, work: Callable[[WriteTxn], T]) -> T:
        if self._failure is not None:
            raise _failed(self._path, self._failure)
        txn = self._env.begin(write=True)
        try:
            result = work(_View(txn, self._tables))
        except BaseException:
            txn.abort()
            raise
        txn.commit()
        return result

    def _grow(self) -> None:
        size = self._env.info()["map_size"] * 2
        if size > MAX_MAP:
            raise StoreFullError(f"the index in {self._path} has reached its limit of {MAX_MAP // GIB} GiB")
        with self._views.none(_PATIENCE) as quiet:
            if not quiet:
                raise StoreFullError(f"the index in {self._path} cannot grow while a view of it stays open; try again")
            self._env.set_mapsize(size)

    # ── opening and failing ─────────────────────────────────────────────────────────────────────────────────────────
    def _open_environment(self, map_size: int, tables: int) -> Any:
        try:
            return lmdb.open(
                str(self._path),
                map_size=map_size,
                max_dbs=tables,
                max_readers=READERS,
                max_spare_txns=SPARE,
                mode=0o600,
            )
        except lmdb.Error as error:
            if "already open" in str(error):
                raise StateError(f"the index in {self._path} is open already in this process") from error
            raise

    def _open_tables(self, tables: tuple[str, ...]) -> None:
        """Create what is missing. Each table is its own transaction: LMDB wants handles made one at a time."""
        for table in tables:
            self._tables[table] = self._env.open_db(table.encode())

    def _begin(self) -> Any:
        self._usable()
        return self._env.begin()

    def _fail(self, error: lmdb.Error) -> StoreFailedError:
        self._failure = error
        return _failed(self._path, error)

    def _usable(self) -> None:
        if self._closed:
            raise StateError(f"the index in {self._path} is closed")
        if self._failure is not None:
            raise _failed(self._path, self._failure)


# ── what a file must be before LMDB may map it ──────────────────────────────────────────────────────────────────────
def _check_before_open(path: Path) -> None:
    """IntegrityError when the data file is not whole; verified page by page unless it was closed cleanly."""
    data, condition = path / DATA, path / CONDITION
    known = condition.read_text().strip() if condition.exists() else ""
    size = data.stat().st_size if data.exists() else 0
    if not size:
        if known:
            raise _damaged(path, f"{DATA} is {'empty' if data.exists() else 'missing'}")
        return
    if known == _clean_text(data):
        return
    try:
        findings: list[str] = lmdb.verify.verify(str(path))  # type: ignore[no-untyped-call]
    except lmdb.verify.VerifyError as error:
        findings = [str(error)]
    # Pages that nothing reaches cost space, not data.
    serious = [text for text in findings if "a leak" not in text]
    if serious:
        raise _damaged(path, serious[0] + (f" and {len(serious) - 1} more" if len(serious) > 1 else ""))


def _clean_text(data: Path) -> str:
    """What the condition file says about a data file that nobody has touched since it was closed."""
    stat = data.stat()
    return f"clean {stat.st_size} {stat.st_mtime_ns}"


def _set_condition(path: Path, text: str) -> None:
    """Durably replace the condition file."""
    temporary = path / f"{CONDITION}.new"
    with temporary.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / CONDITION)
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"the index in {path} is damaged ({what}); move that directory away and start again: it is rebuilt from the "
        "files and the other devices, and nothing in the folder is touched"
    )


def _failed(path: Path, why: BaseException) -> StoreFailedError:
    return StoreFailedError(
        f"the index in {path} cannot be used ({why}); check the disk: the index is verified when it is opened again"
    )


def _full(path: Path) -> StoreFullError:
    return StoreFullError(f"the disk that holds the index {path} is full; free some space on it")


def _nearly_full(path: Path) -> bool:
    return shutil.disk_usage(path).free < MIN_FREE


def _refuse_network(path: Path) -> None:
    kind = filesystem_type(path)
    if kind is not None and _NETWORK.fullmatch(kind):
        raise StateError(
            f"{path} is on a network file system ({kind}), where the index would be damaged sooner or later; set "
            "--home or P2PSYNC_HOME to a directory on a local disk (synchronised folders may stay where they are)"
        )


def filesystem_type(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Type of the file system a path is (or would be) on, from proc(5) mountinfo; None where there is none."""
    try:
        text = os.fsdecode(mounts.read_bytes())
    except OSError:
        return None
    real, best, found = Path(os.path.realpath(path)), -1, None
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        # Of several mounts on one point the last one is on top.
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), right.split(" ")[0]
    return found
