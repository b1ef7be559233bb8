"""Materialiser: makes the disk show what was decided, durably, atomically, and never over an edit nobody has seen.

Every replacement is an exchange of two names: the old entry comes out, is compared with what was expected, and goes
into history or a conflict copy; anything else is given back (invariant I3). A reader sees the old content or the new
(I8). A directory is removed only after what was moved out of it is durable elsewhere: POSIX lets a removal survive a
power cut without the renames before it. The order around it is the caller's: content staged and synced, intents
journalled, `apply`, index commit.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from msgspec.structs import replace

from p2psync.errors import EscapeError
from p2psync.model.entries import Fingerprint
from p2psync.model.paths import RelPath, display, parent
from p2psync.ports import Kind, Rename, Root, Stat
from p2psync.workspace.displace import UNSUPPORTED, Mover, same
from p2psync.workspace.layout import batch, stat_exact
from p2psync.workspace.operations import (
    Changed,
    Displaced,
    Done,
    Failed,
    Move,
    NotEmpty,
    Operation,
    Outcome,
    ParentMissing,
    Place,
    PlaceDirectory,
    Remove,
    SetMetadata,
    history_path,
    temp_path,
)
from p2psync.workspace.staging import dress, file_mode

_MANY_DIRECTORIES = 16
"""From so many touched directories on, one sync of the file system is cheaper than one of each."""
_LONGEST_WAIT_NS = 20_000_000
_MARGIN_NS = 1_000_000


def apply(
    root: Root,
    operations: Sequence[Operation],
    stamp: bytes,
    *,
    umask: int = 0o022,
    now_ns: Callable[[], int] = time.time_ns,
    pause: Callable[[float], None] = time.sleep,
) -> list[Outcome]:
    """Carry out a batch; one outcome per operation, durable when this returns.

    Operations are carried out in order, but directories are removed last, after one sync for all of them. `stamp` names
    the batch in history and must be the one its `intents` were made with. Operations are independent: an error of one
    is its outcome. When a sync fails, everything this batch touched has failed. `now_ns` is the wall clock; `pause` is
    called once to let the file system's clock tick, so that fingerprints are not racy.
    """
    work = _Batch(root, stamp, umask)
    with batch(root):
        results = work.run_all(operations)
        ended_ns = now_ns()
        try:
            work.sync()
        except OSError as error:
            return [Failed(r.path, error) if isinstance(r, _Effect) else r for r in results]
        wait_ns = ended_ns + root.capabilities.granularity_ns + _MARGIN_NS - now_ns()
        if 0 < wait_ns <= _LONGEST_WAIT_NS and any(isinstance(r, _Effect) for r in results):
            pause(wait_ns / 1e9)
        observed_ns = now_ns()
        return [work.conclude(r, observed_ns) if isinstance(r, _Effect) else r for r in results]


@dataclass(frozen=True, slots=True)
class _Effect:
    """An operation that has succeeded and is not known to be durable yet. `stat`: what we left at `path`."""

    path: RelPath
    stat: Stat | None
    displaced: Displaced | None = None
    racy: bool = False


class _Batch:
    def __init__(self, root: Root, stamp: bytes, umask: int) -> None:
        self._root = root
        self._stamp = stamp
        self._umask = umask
        self._mover = Mover(root)
        self._parents: set[RelPath] = set()
        self._emptied: set[RelPath] = set()
        """Directories that may be removed: what has left them is durable."""
        self._refused: OSError | None = None
        """Why a sync failed. A later one might succeed without what this one has given up."""
        self._metadata = False
        """Whether metadata was set after the last sync of a file; a sync of its directory need not include it.

        What a power cut takes back would be published as a change, and an edit beats a concurrent delete.
        """

    def run_all(self, operations: Sequence[Operation]) -> list[Outcome | _Effect]:
        """Carry out all; what came of each, in the order given."""
        last = {n: o.path for n, o in enumerate(operations) if isinstance(o, Remove) and o.kind is Kind.DIRECTORY}
        results = {number: self.run(number, o) for number, o in enumerate(operations) if number not in last}
        if last:
            with suppress(OSError):
                self._settle(last.values())
        results |= {number: self.run(number, operations[number]) for number in last}
        return [results[number] for number in range(len(operations))]

    # ── one operation ───────────────────────────────────────────────────────────────────────────────────────────────
    def run(self, number: int, operation: Operation) -> Outcome | _Effect:
        path = operation.target if isinstance(operation, Move) else operation.path
        try:
            problem = self._parent_problem(path)
            if isinstance(problem, ParentMissing) and isinstance(operation, Remove):
                return _Effect(path, None)
            return problem or self._dispatch(number, operation)
        except EscapeError as error:
            return Failed(path, error)
        except OSError as error:
            self._parents.clear()
            with suppress(OSError, EscapeError):
                return self._parent_problem(path) or Failed(path, error)
            return Failed(path, error)

    def _dispatch(self, number: int, operation: Operation) -> Outcome | _Effect:
        match operation:
            case Place():
                return self._place(operation, temp_path(self._stamp, number))
            case PlaceDirectory():
                return self._place_directory(operation)
            case Remove(kind=Kind.DIRECTORY):
                return self._remove_directory(operation)
            case Remove():
                return self._remove(operation)
            case Move():
                return self._move(operation)
            case SetMetadata():
                return self._set_metadata(operation)

    def _parent_problem(self, path: RelPath) -> Outcome | None:
        directory = parent(path)
        if not directory or directory in self._parents:
            return None
        stat = stat_exact(self._root, directory)
        if stat is None:
            return ParentMissing(path)
        if stat.kind is not Kind.DIRECTORY:
            return Failed(path, EscapeError(f"{display(directory)} is no directory; nothing is written through it"))
        self._parents.add(directory)
        return None

    # ── files and symlinks ──────────────────────────────────────────────────────────────────────────────────────────
    def _place(self, op: Place, temp: bytes) -> Outcome | _Effect:
        # Whether a name is free shows when it is taken.
        current = self._root.stat(op.path) if op.expect is not None else None
        if op.expect is not None and (current is None or not op.expect.matches(current)):
            return Changed(op.path, current)
        source, new = self._prepare(op, temp, current)
        if current is not None and current.kind is not Kind.DIRECTORY:
            return self._replace(op, source, temp, new)
        try:
            if current is not None and not self._remove_empty(op.path):
                self._unstage(op, source)
                return NotEmpty(op.path)
            self._mover.rename_free(source, op.path)
        except FileExistsError:
            self._unstage(op, source)
            return Changed(op.path, self._root.stat(op.path))
        except OSError:
            self._unstage(op, source)
            raise
        return _Effect(op.path, new)

    def _prepare(self, op: Place, temp: bytes, current: Stat | None) -> tuple[bytes, Stat]:
        """Give the new entry its metadata while nobody can see it; where it stands and what it is."""
        if op.kind is Kind.SYMLINK:
            self._root.symlink(op.target, temp)
            with suppress(OSError):
                self._root.utime(temp, op.mtime_ns)
            stat = self._root.stat(temp)
            if stat is None:
                raise FileNotFoundError(errno.ENOENT, "the symlink is gone", temp)
            return temp, stat
        assert op.staged is not None
        stat, changed = dress(self._root, op.staged, file_mode(op.mode, self._umask, current), op.mtime_ns)
        self._metadata |= changed
        return op.staged, stat

    def _unstage(self, op: Place, source: bytes) -> None:
        """Put our own content at `source`, which was not placed, back where it can be placed from again."""
        if op.staged is None:
            with suppress(FileNotFoundError):
                self._root.unlink(source)
        elif source != op.staged:
            self._mover.rename_free(source, op.staged)

    def _replace(self, op: Place, source: bytes, temp: bytes, new: Stat) -> Outcome | _Effect:
        if not self._root.capabilities.exchange:
            return self._replace_by_rename(op, source, new)
        try:
            # First of all, so that a full disk shows before anything has moved.
            if not op.keep:
                with suppress(NotADirectoryError):
                    self._mover.make_parents(history_path(self._stamp, op.path))
            if source != temp:
                self._mover.rename_free(source, temp)
        except OSError:
            self._unstage(op, source)
            raise
        try:
            self._root.rename(temp, op.path, Rename.EXCHANGE)
        except FileNotFoundError:
            self._unstage(op, temp)
            return Changed(op.path, self._root.stat(op.path))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                self._unstage(op, temp)
                raise
            if source != temp:
                self._unstage(op, temp)
            return self._replace_by_rename(op, source, new)
        self._mover.touch(op.path)
        assert op.expect is not None
        if not self._is(self._root.stat(temp), op.expect):
            return self._give_back(op, temp, new)
        try:
            displaced = self._mover.put_aside(temp, op.path, self._stamp, op.keep)
        except OSError:
            self._give_back(op, temp, new)
            raise
        return _Effect(op.path, new, displaced)

    def _give_back(self, op: Place, temp: bytes, new: Stat) -> Changed:
        """What came out is not what was expected: it goes back, and our content comes out again.

        When the path was written once more meanwhile, the newest version keeps it; the one in between goes to history.
        """
        displaced = None
        try:
            self._root.rename(temp, op.path, Rename.EXCHANGE)
        except FileNotFoundError:
            try:
                self._mover.rename_free(temp, op.path)
            except FileExistsError:
                displaced = self._mover.put_aside(temp, op.path, self._stamp, None)
        else:
            if same(self._root.stat(temp), new.ino, new.size, new.mtime_ns):
                self._unstage(op, temp)
            else:
                with suppress(OSError):
                    self._root.rename(temp, op.path, Rename.EXCHANGE)
                displaced = self._mover.put_aside(temp, op.path, self._stamp, None)
        return Changed(op.path, self._root.stat(op.path), displaced)

    def _replace_by_rename(self, op: Place, source: bytes, new: Stat) -> Outcome | _Effect:
        """For file systems without exchange: the old entry moves aside first, so for a moment the name is free."""
        assert op.expect is not None
        try:
            displaced = self._take_out(op.path, op.expect, op.keep)
        except OSError:
            self._unstage(op, source)
            raise
        if not isinstance(displaced, Displaced):
            self._unstage(op, source)
            return displaced
        try:
            self._mover.rename_free(source, op.path)
        except FileExistsError:
            self._unstage(op, source)
            return Changed(op.path, self._root.stat(op.path), displaced)
        except OSError:
            with suppress(FileExistsError):
                self._mover.rename_free(displaced.path, op.path)
            self._unstage(op, source)
            raise
        return _Effect(op.path, new, displaced)

    def _take_out(self, path: RelPath, expect: Fingerprint, keep: RelPath | None) -> Displaced | Changed:
        """Move the expected entry aside; anything else goes back to its name."""
        try:
            displaced = self._mover.put_aside(path, path, self._stamp, keep)
        except FileNotFoundError:
            if self._root.stat(path) is not None:
                raise
            return Changed(path, None)
        if self._is(displaced.stat, expect):
            return displaced
        try:
            self._mover.rename_free(displaced.path, path)
        except FileExistsError:
            return Changed(path, self._root.stat(path), displaced)
        return Changed(path, self._root.stat(path))

    def _remove(self, op: Remove) -> Outcome | _Effect:
        current = self._root.stat(op.path)
        if current is None:
            return _Effect(op.path, None)
        if op.expect is None or current.kind is Kind.DIRECTORY or not op.expect.matches(current):
            return Changed(op.path, current)
        displaced = self._take_out(op.path, op.expect, None)
        if isinstance(displaced, Changed):
            return displaced if displaced.stat is not None else _Effect(op.path, None)
        return _Effect(op.path, None, displaced)

    def _move(self, op: Move) -> Outcome | _Effect:
        current = self._root.stat(op.source)
        if current is None or not op.expect.matches(current):
            return Changed(op.source, current)
        try:
            self._mover.rename_free(op.source, op.target)
        except FileExistsError:
            return Changed(op.target, self._root.stat(op.target))
        moved = self._root.stat(op.target)
        if moved is None or moved.kind is Kind.DIRECTORY:
            self._parents.clear()
        if self._is(moved, op.expect):
            assert moved is not None
            as_wanted = (file_mode(op.mode, self._umask, moved), op.mtime_ns) == (moved.mode, moved.mtime_ns)
            if as_wanted or moved.kind is not Kind.FILE:
                return _Effect(op.target, moved)
            try:
                return self._dress(op.target, moved, op.mode, op.mtime_ns)
            except OSError:
                with suppress(FileExistsError):
                    self._mover.rename_free(op.target, op.source)
                raise
        try:
            self._mover.rename_free(op.target, op.source)
        except FileExistsError:
            displaced = Displaced(op.target, moved, in_history=False) if moved is not None else None
            return Changed(op.source, self._root.stat(op.source), displaced)
        return Changed(op.source, self._root.stat(op.source))

    def _set_metadata(self, op: SetMetadata) -> Outcome | _Effect:
        current = self._root.stat(op.path)
        if current is None or current.kind is not Kind.FILE or not op.expect.matches(current):
            return Changed(op.path, current)
        return self._dress(op.path, current, op.mode, op.mtime_ns)

    def _dress(self, path: RelPath, current: Stat, wanted: int, mtime_ns: int) -> Outcome | _Effect:
        """Give the file that is `current` its metadata, where a person may see it."""
        self._metadata = True
        mode = file_mode(wanted, self._umask, current)
        if mode != current.mode:
            self._root.chmod(path, mode)
        if mtime_ns != current.mtime_ns:
            self._root.utime(path, mtime_ns)
        self._mover.touch(path)
        left = self._root.stat(path)
        if left is None or (left.ino, left.size) != (current.ino, current.size):
            return Changed(path, left)
        return _Effect(path, left, racy=True)

    # ── directories ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _place_directory(self, op: PlaceDirectory) -> Outcome | _Effect:
        current = self._root.stat(op.path)
        displaced: Displaced | None = None
        if current is not None and current.kind is not Kind.DIRECTORY:
            if op.expect is None or not op.expect.matches(current):
                return Changed(op.path, current)
            taken = self._take_out(op.path, op.expect, op.keep)
            if isinstance(taken, Changed):
                return taken
            displaced, current = taken, None
        elif current is not None and stat_exact(self._root, op.path) is None:
            return Changed(op.path, current)
        if current is None:
            try:
                self._root.mkdir(op.path)
            except FileExistsError:
                return Changed(op.path, self._root.stat(op.path), displaced)
            except OSError:
                if displaced is not None:
                    self._mover.rename_free(displaced.path, op.path)
                raise
            self._mover.touch(op.path)
        return _Effect(op.path, self._root.stat(op.path), displaced)

    def _remove_directory(self, op: Remove) -> Outcome | _Effect:
        current = self._root.stat(op.path)
        if current is None:
            return _Effect(op.path, None)
        if current.kind is not Kind.DIRECTORY or (op.expect is not None and not op.expect.matches(current)):
            return Changed(op.path, current)
        return _Effect(op.path, None) if self._remove_empty(op.path) else NotEmpty(op.path)

    def _remove_empty(self, path: RelPath) -> bool:
        if path not in self._emptied:
            self._settle([path])
        try:
            self._root.rmdir(path)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return False
            raise
        self._parents.clear()
        self._mover.touch(path)
        return True

    # ── durability ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _settle(self, directories: Collection[RelPath]) -> None:
        """Make durable what has left these directories: by us, then where it went is synced; or by others."""
        self._mover.touched.update(dict.fromkeys(directories))
        self.sync()
        self._emptied.update(directories)

    def sync(self) -> None:
        """Make every touched directory durable, and what a sync of it would miss; OSError when none can be promised."""
        if self._refused is not None:
            raise self._refused
        try:
            self._sync()
        except OSError as error:
            self._refused = error
            raise
        self._mover.touched.clear()
        self._metadata = False

    def _sync(self) -> None:
        if self._metadata or len(self._mover.touched) > _MANY_DIRECTORIES:
            self._root.sync_all()
            return
        for directory in self._mover.touched:
            try:
                self._root.sync_directory(directory)
            except (FileNotFoundError, NotADirectoryError, EscapeError):
                continue  # removed since, which its own parent records
            except PermissionError:
                self._root.sync_all()
                return
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise

    def conclude(self, effect: _Effect, observed_ns: int) -> Done:
        """The outcome, with the fingerprint of what we left: never of what someone else has written since."""
        left = effect.stat
        if left is None:
            return Done(effect.path, None, 0, effect.displaced)
        try:
            found = self._root.stat(effect.path)
        except (OSError, EscapeError):
            found = None
        if found is not None and found.kind is left.kind and same(found, left.ino, left.size, left.mtime_ns):
            left = found
        fingerprint = Fingerprint.of(left, observed_ns)
        if effect.racy:
            # Somebody may have written between the comparison and the new time stamp, and no field would tell.
            fingerprint = replace(fingerprint, observed_ns=min(observed_ns, left.ctime_ns))
        return Done(effect.path, fingerprint, left.mode & 0o777, effect.displaced)

    @staticmethod
    def _is(stat: Stat | None, expect: Fingerprint) -> bool:
        return same(stat, expect.ino, expect.size, expect.mtime_ns)
