"""Scanner: compares the disk with the synced tree and reports what differs, without opening a single file.

What could not be read is reported as a problem and never as missing (invariant I19): an entry counts as missing only
when the directory that should hold it has been listed completely.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from p2psync.errors import EscapeError
from p2psync.model.entries import Synced
from p2psync.model.paths import (
    MAX_DEPTH,
    MAX_PATH,
    PRIVATE_DIRECTORY,
    ROOT,
    RelPath,
    ancestors,
    composed,
    display,
    fold,
    join,
    parent,
)
from p2psync.ports import Kind, Root, Stat
from p2psync.workspace.layout import MARKER, batch, stat_exact

MAX_FINDINGS = 512
MAX_EXAMINED = 8192
"""A batch is handed out when it holds this many findings or stands for this many entries."""
_TOGETHER = 256
"""Hinted paths for which the view is asked once."""
_EXECUTABLE = 0o100

Ignored = Callable[[bytes, bool], bool]
"""Whether a path (and whether it is a directory) is ignored. Nothing below an ignored directory is looked at."""


class SyncedView(Protocol):
    """The synced tree as the scanner reads it."""

    def children(self, directory: RelPath, /) -> Iterable[Synced]:
        """Entries directly in `directory`, in any order."""
        ...

    def entry(self, path: RelPath, /) -> Synced | None:
        """The entry of one path."""
        ...

    def entries(self, paths: Sequence[RelPath], /) -> Sequence[Synced | None]:
        """The entries of these paths as they were at one moment."""
        ...


class Why(Enum):
    """What a finding says."""

    NEW = "new"
    CHANGED = "changed"
    RACY = "racy"
    """Looks the same, but could have changed right after it was last looked at: hash it to know."""
    KIND = "kind"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One path that differs from the synced tree. `stat` None: missing. `synced` None: never seen before."""

    path: RelPath
    stat: Stat | None
    synced: Synced | None
    why: Why


class Severity(Enum):
    """How much a problem matters."""

    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """Something that could not be scanned: a stable `code`, what it is (`text`) and what to do (`remedy`)."""

    path: RelPath
    code: str
    text: str
    remedy: str
    severity: Severity = Severity.WARNING

    @staticmethod
    def of(path: bytes, error: Exception) -> ScanProblem:
        """The problem behind an error met while reading `path`."""
        where = display(path) or "the folder"
        match error:
            case PermissionError():
                return ScanProblem(
                    RelPath(path),
                    "unreadable",
                    f"{where} cannot be read: permission denied",
                    "give the user that runs p2psync read access; nothing below it is treated as deleted",
                )
            case EscapeError():
                return ScanProblem(
                    RelPath(path), MOVING, f"{where} was replaced by a symlink while it was scanned", _AGAIN
                )
            case OSError() if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}:
                return ScanProblem(
                    RelPath(path), MOVING, f"{where} vanished while it was scanned", _AGAIN, Severity.NOTE
                )
            case OSError() if error.errno in {errno.EIO, getattr(errno, "EUCLEAN", errno.EIO)}:
                return ScanProblem(
                    RelPath(path),
                    "io-error",
                    f"{where} cannot be read: the disk reports an error",
                    "check the disk (`dmesg`, SMART) and keep a copy of what still reads",
                )
            case _:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                return ScanProblem(
                    RelPath(path), "unreadable", f"{where} cannot be read: {text}", "it is tried again at the next scan"
                )

    @staticmethod
    def restless(path: bytes) -> ScanProblem:
        """The problem that a file never holds still."""
        return ScanProblem(
            RelPath(path),
            "restless",
            f"{display(path)} changes whenever it is read, so no whole version of it can be taken",
            "it is synchronised as soon as its writer pauses; ignore it, or synchronise an export of it instead",
        )


MOVING = "moving"
"""Code of the problem that something changed while it was looked at."""
_AGAIN = "nothing to do: it is looked at again"


@dataclass(slots=True)
class Batch:
    """A part of a scan. `ignored`: synced entries that are ignored now, to be forgotten without a tombstone.

    `examined` counts the entries looked at. Within `findings` a directory stands before what is in it, except that
    missing entries stand innermost first.
    """

    findings: list[Finding] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)
    ignored: list[RelPath] = field(default_factory=list)
    examined: int = 0

    @property
    def full(self) -> bool:
        """Whether it is time to hand it out."""
        return (
            len(self.findings) + len(self.problems) + len(self.ignored) >= MAX_FINDINGS or self.examined >= MAX_EXAMINED
        )


def scan(
    root: Root, view: SyncedView, ignored: Ignored, under: RelPath = ROOT, *, recursive: bool = True
) -> Iterator[Batch]:
    """Walk the directory `under` in sorted order and yield what differs.

    Without `recursive` only the entries of `under` itself are compared; directories that are new are always entered,
    because nothing is known about them. The caller checks the marker before the scan and again before it believes in
    removals. Errors of single entries become problems; only a broken `view` raises.
    """
    return _Scan(root, view, ignored, recursive=recursive).walk([under])


def examine(root: Root, view: SyncedView, ignored: Ignored, paths: Sequence[bytes]) -> Iterator[Batch]:
    """Compare single paths, as hinted by the watcher; a directory is scanned with everything in it.

    Paths below our private directory or below an ignored directory are passed over. One in a directory that was never
    seen, because its hint was lost, stands for that directory: what has no directory in the view is never missed.
    """
    work = _Scan(root, view, ignored, recursive=True)
    if b"" in paths:
        yield from work.walk([ROOT])
    inner = [RelPath(path) for path in paths if path and not _private(path) and not work.below_ignored(path)]
    done: set[RelPath] = set()
    for start in range(0, len(inner), _TOGETHER):
        with batch(root):
            places = [place for place in work.outermost(inner[start : start + _TOGETHER]) if place not in done]
            done.update(places)
            work.examine(places)
        if entered := work.take_entered():
            yield from work.walk(entered)
        elif work.batch.full:
            yield work.batch
            work.batch = Batch()
    if work.batch.examined:
        yield work.batch


class _Scan:
    def __init__(self, root: Root, view: SyncedView, ignored: Ignored, *, recursive: bool) -> None:
        self._root = root
        self._view = view
        self._ignored = ignored
        self._recursive = recursive
        self._granularity = root.capabilities.granularity_ns
        self._bits = _EXECUTABLE if root.capabilities.executable_bits else 0
        self._enter: list[RelPath] = []
        self.batch = Batch()

    def take_entered(self) -> list[RelPath]:
        entered, self._enter = self._enter, []
        return entered

    def walk(self, start: list[RelPath]) -> Iterator[Batch]:
        stack = start
        while stack:
            self._directory(stack.pop())
            stack.extend(reversed(self.take_entered()))
            if self.batch.full:
                yield self.batch
                self.batch = Batch()
        if self.batch.examined or self.batch.problems:
            yield self.batch
            self.batch = Batch()

    # ── one directory ───────────────────────────────────────────────────────────────────────────────────────────────
    def _directory(self, directory: RelPath) -> None:
        """Compare the entries of one directory; subdirectories to enter go to `_enter` in order."""
        try:
            listing = self._root.scan(directory)
        except (OSError, EscapeError) as error:
            self.batch.problems.append(ScanProblem.of(directory, error))
            return
        known = {synced.path: synced for synced in self._view.children(directory)}
        # A disk may list a name in another form than it was given; it goes on under the name that it was given.
        given = {composed(path): path for path in known} if self._root.capabilities.normalising else {}
        prefix = directory + b"/" if directory else b""
        granularity, ignored, bits = self._granularity, self._ignored, self._bits
        self.batch.examined += len(listing) + 1
        for name, stat in listing:
            path = RelPath(prefix + name)
            if given and path not in known:
                path = given.get(composed(path), path)
            synced = known.pop(path, None)
            if ignored(path, stat.kind is Kind.DIRECTORY):
                if synced is not None:
                    self._forget(synced)
            elif (
                synced is not None
                and stat.kind is Kind.FILE is synced.kind
                and synced.fingerprint.matches(stat)
                and not (stat.mode ^ synced.mode) & bits
                and not synced.fingerprint.racy(granularity)
                and not synced.absent
            ):
                continue
            else:
                self._present(path, stat, synced)
        for path in sorted(known):
            self._missing(known[path])

    def outermost(self, paths: Iterable[RelPath]) -> list[RelPath]:
        """Each path, or the outermost directory above it that stands on the disk and not in the view; each once."""
        given = [self._given(path) for path in paths]
        above = list(dict.fromkeys(parent(path) for path in given if parent(path)))
        unseen = {
            directory: self._unseen(directory)
            for directory, synced in zip(above, self._view.entries(above), strict=True)
            if synced is None
        }
        return list(dict.fromkeys(unseen.get(parent(path)) or path for path in given))

    def _unseen(self, directory: RelPath) -> RelPath | None:
        """The outermost directory above an unseen one, or that one, which the view lacks, if it stands on the disk."""
        for place in (*ancestors(directory), directory):
            if self._view.entry(place) is None:
                with suppress(OSError, EscapeError):
                    stat = stat_exact(self._root, place)
                    if stat is not None and stat.kind is Kind.DIRECTORY:
                        return place
                break
        return None

    def examine(self, paths: Sequence[RelPath]) -> None:
        """Compare single paths, by the names under which the disk was given them."""
        self.batch.examined += len(paths)
        looked: dict[RelPath, Stat | None] = {}
        for path in paths:
            try:
                looked[path] = stat_exact(self._root, path)
            except EscapeError:
                # What it was in has become a symlink: nothing is in there any more.
                looked[path] = None
            except OSError as error:
                self.batch.problems.append(ScanProblem.of(path, error))
        # Only now: what was placed and recorded meanwhile would look like a change that somebody made.
        for (path, stat), synced in zip(looked.items(), self._view.entries(list(looked)), strict=True):
            if stat is None:
                if synced is not None:
                    self._missing(synced)
            elif self._ignored(path, stat.kind is Kind.DIRECTORY):
                if synced is not None:
                    self._forget(synced)
            else:
                self._present(path, stat, synced)

    def _given(self, path: RelPath) -> RelPath:
        """The name under which a normalising disk was given what it calls `path`."""
        if not self._root.capabilities.normalising:
            return path
        place = ROOT
        for part in path.split(b"/"):
            above, place = place, join(place, part)
            if self._view.entry(place) is None:
                form = composed(place)
                place = next((c.path for c in self._view.children(above) if composed(c.path) == form), place)
        return place

    def _present(self, path: RelPath, stat: Stat, synced: Synced | None) -> None:
        if stat.kind is Kind.OTHER:
            self._problem(
                path,
                "special",
                f"{display(path)} is a socket, pipe or device and is not synchronised",
                "nothing to do, or add it to .p2psyncignore",
                Severity.NOTE,
            )
            return
        if _private(path):
            return
        if len(path) > MAX_PATH or path.count(b"/") >= MAX_DEPTH:
            self._problem(
                path,
                "too-deep",
                f"{display(path[:80])}… is longer than {MAX_PATH} bytes or deeper than {MAX_DEPTH} levels",
                "shorten it, or add it to .p2psyncignore",
            )
            return
        if stat.kind is Kind.DIRECTORY and self._nested(path):
            return
        why = self._compare(stat, synced)
        if why is Why.KIND and synced is not None and synced.kind is Kind.DIRECTORY:
            self._missing_below(synced)
        if why is not None:
            self.batch.findings.append(Finding(path, stat, synced, why))
        if stat.kind is Kind.DIRECTORY and (self._recursive or why in {Why.NEW, Why.KIND}):
            self._enter.append(path)

    def _compare(self, stat: Stat, synced: Synced | None) -> Why | None:
        if synced is None or synced.absent:
            return Why.NEW
        if synced.kind is not stat.kind:
            return Why.KIND
        if not synced.fingerprint.matches(stat):
            return Why.CHANGED
        if stat.kind is Kind.FILE and (stat.mode ^ synced.mode) & self._bits:
            # A power cut may take back a new mode and leave the times that came with it.
            return Why.CHANGED
        if stat.kind is not Kind.DIRECTORY and synced.fingerprint.racy(self._granularity):
            return Why.RACY
        return None

    def _nested(self, path: RelPath) -> bool:
        """Whether a directory is a folder of its own; it is then left alone."""
        try:
            if self._root.stat(RelPath(path + b"/" + MARKER)) is None:
                return False
        except (OSError, EscapeError):
            return False
        self._problem(
            path,
            "nested-folder",
            f"{display(path)} is a p2psync folder of its own and is left out of this one",
            "share only one of the two, or add it to .p2psyncignore",
        )
        return True

    # ── what is not there ───────────────────────────────────────────────────────────────────────────────────────────
    def _missing(self, synced: Synced) -> None:
        """Report an entry that is gone, and first everything that was in it."""
        if self._ignored(synced.path, synced.kind is Kind.DIRECTORY):
            self._forget(synced)
            return
        if synced.kind is Kind.DIRECTORY:
            self._missing_below(synced)
        if not synced.absent:
            self.batch.findings.append(Finding(synced.path, None, synced, Why.MISSING))

    def _missing_below(self, directory: Synced) -> None:
        for child in sorted(self._view.children(directory.path), key=lambda entry: entry.path):
            self._missing(child)

    def _forget(self, synced: Synced) -> None:
        if synced.kind is Kind.DIRECTORY:
            for child in sorted(self._view.children(synced.path), key=lambda entry: entry.path):
                self._forget(child)
        self.batch.ignored.append(synced.path)

    def below_ignored(self, path: bytes) -> bool:
        """Whether a directory above `path` is ignored or a folder of its own."""
        above = parent(path)
        while above:
            if self._ignored(above, True):
                return True
            above = parent(above)
        return False

    def _problem(self, path: RelPath, code: str, text: str, remedy: str, severity: Severity = Severity.WARNING) -> None:
        self.batch.problems.append(ScanProblem(path, code, text, remedy, severity))


def _private(path: bytes) -> bool:
    """Whether a path is our private directory or in it, however the disk spells it."""
    return len(path) >= len(PRIVATE_DIRECTORY) and fold(path.split(b"/", 1)[0]) == PRIVATE_DIRECTORY
