"""The judge: knows every content that users wrote and what replaced it, and says at quiescence what was lost.

It never looks inside a node. It hears what users do (`User` tells it), and is shown trees and history stores.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from p2psync.model.paths import RelPath, ancestors, display, name, parent, unrepresentable
from p2psync.ports import FsCapabilities, Kind
from p2psync.reconcile.conflicts import parse_conflict_name
from p2psync.testing.disk import lookup_key
from p2psync.testing.snapshot import Shown, Tree

SCRATCH = b".save~"
"""Name that users' editors write to before they rename; a power cut may leave one behind, torn."""
_SHOWN = 8
Reason = Literal["held", "hollow"]
"""Why a disk may not show what others do: it cannot; or a directory, because it cannot show anything that is in it."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant: its number in INVARIANTS.md and what was found."""

    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


@dataclass(slots=True)
class Written:
    """One content and its fate. `devices`: who wrote it, and where it may have been lost before it was durable."""

    path: bytes
    first: str
    superseded: bool = False
    excused: bool = False
    joined: bool = False
    """A user has made one of two files that both had it: the one that is left is, for nodes, what it was before."""
    unsynced_on: set[str] = field(default_factory=set)
    private: str | None = None
    """The device that must keep it to itself."""
    unshared: str | None = None
    """The device that alone had it when it lost the right to write, so that its users alone decide about it."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may make one device show something else than the others: its disk, and changes that stay local."""

    capabilities: FsCapabilities = field(default_factory=FsCapabilities)
    touched: frozenset[bytes] = frozenset()
    """Paths that a user who may only read has acted on."""

    def local(self, path: bytes) -> bool:
        """Whether a change that stays on the device may show at `path`, by whatever name the disk took it for."""
        has = self.capabilities
        touched = {lookup_key(acted, has) for acted in self.touched}
        line = [lookup_key(part, has) for p in (*ancestors(RelPath(path)), path) for part in (p, _original(p))]
        return any(part in touched for part in line) or any(acted.startswith(line[-2] + b"/") for acted in touched)

    def unholdable(self, path: bytes, tree: Tree, recorded: Tree) -> bool:
        """Whether a disk with this `tree` cannot show what is `recorded` at `path`, or not beside what is there.

        What it has shown under that name stays, if it is older.
        """
        has, wanted = self.capabilities, recorded.get(path)
        if wanted is None:
            return False
        if wanted.kind is Kind.SYMLINK and not has.symlinks:
            return True
        if path in tree:
            return False
        line = (*ancestors(RelPath(path)), path)
        if any(unrepresentable(name(RelPath(p)), utf8_only=has.utf8_only, name_max=has.name_max) for p in line):
            return True
        if not (has.case_insensitive or has.normalising):
            return False
        keys = {lookup_key(part, has): part for part in line}
        if any(keys.get(lookup_key(other, has), other) != other for other in tree):
            return True
        return any(part in tree and len(self.spelt_as(part, recorded)) > 1 for part in line)

    def spelt_as(self, path: bytes, recorded: Tree) -> list[bytes]:
        """The path and those others that this disk spells the same: what it shows may be any of them."""
        if not self.capabilities.normalising:
            return [path]
        return [other for other in recorded if _decomposed(other) == _decomposed(path)]

    def as_recorded(self, tree: Tree, recorded: Tree) -> Tree:
        """The tree by the names that others use, where this disk has spelt a name in its own form."""
        if not self.capabilities.normalising:
            return tree
        spelt: dict[bytes, list[bytes]] = {}
        for path in recorded:
            spelt.setdefault(_decomposed(path), []).append(path)
        return {
            next((p for p in spelt.get(path, ()) if recorded[p] == shown), spelt.get(path, [path])[0]): shown
            for path, shown in tree.items()
        }


class Oracle:
    """Records what users do; checks what is left of it. Contents written more than once count as one."""

    def __init__(self) -> None:
        self._written: dict[bytes, Written] = {}
        self._legitimate: set[bytes] = set()
        self._muted: set[str] = set()

    # ── hearing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def wrote(self, device: str, path: bytes, content: bytes, before: bytes | None, *, durable: bool) -> None:
        """A user finished writing `content` at `path` where `before` was visible (None: nothing, or no file)."""
        if before == content:
            return
        if before is not None:
            self._supersede(device, before)
        known = self._written.get(content)
        if known is None or known.superseded:
            private = device if device in self._muted and content not in self._legitimate else None
            self._written[content] = known = Written(path, device, private=private)
        self._shared(device, content)
        if not durable:
            known.unsynced_on.add(device)
        self._legitimate.add(content)

    def deleted(self, device: str, path: bytes, before: bytes) -> None:
        """A user removed `before`, which was visible at `path`, or renamed something over it."""
        del path
        self._supersede(device, before)

    def joined(self, content: bytes) -> None:
        """A user renamed a file over another one with the same content."""
        known = self._written.get(content)
        if known is not None:
            known.joined = True

    def mute(self, device: str, elsewhere: Container[bytes] = ()) -> None:
        """From now on what this device's users write must stay there, and replaces nothing elsewhere.

        `elsewhere` are the contents that other devices have: what its users wrote before and is not among them came too
        late to be published.
        """
        self._muted.add(device)
        for content, known in self._written.items():
            if known.first == device and content not in elsewhere:
                known.unshared = device

    def unmute(self, device: str) -> None:
        """The device may write again, and publish what it had kept to itself."""
        self._muted.discard(device)
        for known in self._written.values():
            if known.private == device:
                known.private = None
            if known.unshared == device:
                known.unshared = None

    def lost_track(self, device: str, contents: Iterable[bytes]) -> None:
        """A device does not know any more whose these contents are that it shows: it may publish them as its own."""
        for content in contents:
            self._shared(device, content)

    def discarded(self, contents: Iterable[bytes]) -> None:
        """A person destroyed what was kept of these contents, outside the visible tree: they may be lost."""
        for content in contents:
            known = self._written.get(content)
            if known is not None:
                known.excused = True

    def existed(self, contents: Iterable[bytes]) -> None:
        """Contents that may be seen though no user wrote them through `User`."""
        self._legitimate.update(contents)

    def crashed(self, device: str, before: Tree, after: Tree) -> None:
        """A power cut: what users of this device had not synced may be lost or torn, and is then nobody's fault.

        A file whose unsynced content was replaced by something else shows that something legitimately. A file that was
        synced goes with the directory that it was in, when nobody had synced the name of that; the one that had stood
        there before may be back, with what was in it.
        """
        gone = {
            path
            for path, shown in before.items()
            if shown.kind is Kind.DIRECTORY and (path not in after or after[path].ino != shown.ino)
        }
        for path, shown in before.items():
            known = self._written.get(shown.content)
            now = after.get(path)
            forgotten = not gone.isdisjoint(ancestors(RelPath(path)))
            if known is not None and (device in known.unsynced_on or forgotten) and now != shown:
                known.excused = True
                if now is not None and now.kind is Kind.FILE:
                    self._legitimate.add(now.content)
                    self._shared(device, now.content)
        self.existed(shown.content for path, shown in after.items() if name(path) == SCRATCH)

    def _shared(self, device: str, content: bytes) -> None:
        """A device has a content by itself, such as an empty file: then it is no other one's own."""
        known = self._written.get(content)
        if known is not None and known.private != device:
            known.private = None

    def _supersede(self, device: str, content: bytes) -> None:
        known = self._written.get(content)
        if known is not None and (device not in self._muted or device in (known.private, known.unshared)):
            known.superseded = True

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check(self, trees: Mapping[str, Tree], history: Mapping[str, set[bytes]]) -> list[Violation]:
        """All violations at quiescence: `trees` and `history` by device, for those devices that must agree."""
        return [*self.convergence(trees), *self.losses(trees, history), *self.strangers(trees), *self.spread(trees)]

    @staticmethod
    def convergence(trees: Mapping[str, Tree], allowed: Mapping[str, Allowance] | None = None) -> list[Violation]:
        """I1: every device shows the same names, kinds, contents, executable bits and symlink targets.

        All are compared with the first; `allowed` says what may be otherwise on one of the others. What an editor left
        behind is ignored by nodes, and here.
        """
        found: list[Violation] = []
        devices = list(trees)
        for other in devices[1:]:
            allowance = (allowed or {}).get(other, Allowance())
            different = (
                f"{display(path)}: {devices[0]} has {_text(wanted)}, {other} {_text(shown)}"
                for path, wanted, shown, reason in _differences(trees[devices[0]], trees[other], allowance)
                if reason is None
            )
            found.extend(Violation("I1", text) for text in islice(different, _SHOWN))
        return found

    @staticmethod
    def silence(
        trees: Mapping[str, Tree], allowed: Mapping[str, Allowance], listed: Mapping[str, Collection[str]]
    ) -> list[Violation]:
        """I25: what a device's disk cannot show is among what its status says that it holds; `listed` by device.

        Of two directories that a disk takes for one, either may be the one that it shows; the other is told of by what
        is below it.
        """
        first, *others = trees

        def is_told(other: str, path: bytes) -> bool:
            spelt = [display(p) for p in allowed[other].spelt_as(path, trees[first])]
            if any(p in listed[other] for p in spelt):
                return True
            return len(spelt) > 1 and any(p.startswith(f"{s}/") for s in spelt for p in listed[other])

        return [
            Violation("I25", f"{other} does not show {display(path)} and does not say so")
            for other in others
            for path, _, _, reason in _differences(trees[first], trees[other], allowed[other])
            if reason == "held" and not is_told(other, path)
        ]

    def losses(
        self, trees: Mapping[str, Tree], history: Mapping[str, set[bytes]], *, calm: bool = False
    ) -> list[Violation]:
        """I2: what was written and not causally replaced is current, a conflict copy, or in history somewhere.

        Where it was `calm`, history holds only what somebody replaced: the rest is to be seen, in a copy if need be.
        """
        seen = {shown.content for tree in trees.values() for shown in tree.values()}
        kept = set[bytes]().union(*history.values())
        return [
            Violation("I2", f"{content.hex()[:12]}, written at {display(known.path)} on {known.first}, is nowhere")
            for content, known in self._written.items()
            if not (known.superseded or known.excused or content in seen)
            and (content not in kept or (calm and not known.joined))
        ]

    def strangers(self, trees: Mapping[str, Tree]) -> list[Violation]:
        """I8: every visible file holds bytes that some user finished writing; may be asked at any moment.

        Give only trees in which no user's program is writing at that moment.
        """
        return [
            Violation("I8", f"{display(path)} on {device} shows content nobody wrote: {shown}")
            for device, tree in trees.items()
            for path, shown in tree.items()
            if shown.kind is Kind.FILE and shown.content not in self._legitimate
        ]

    def spread(self, trees: Mapping[str, Tree], removed: Collection[str] = ()) -> list[Violation]:
        """C-roles: what a device had to keep to itself is nowhere else.

        Two that were `removed` may have exchanged it before either had heard of that, and undo nothing more.
        """
        return [
            Violation("roles", f"{display(path)} on {device} was written by {known.private}, who may not write")
            for device, tree in trees.items()
            for path, shown in tree.items()
            if (known := self._written.get(shown.content)) is not None
            and known.private not in (None, device)
            and not (device in removed and known.private in removed)
        ]

    @staticmethod
    def leftovers(temporaries: Mapping[str, list[bytes]]) -> list[Violation]:
        """I8, I21: no temporary file is left at quiescence; `temporaries` by device."""
        return [
            Violation("I8", f"{device} still has {len(paths)} temporary files, such as {display(paths[0])}")
            for device, paths in temporaries.items()
            if paths
        ]


def _differences(
    ours: Tree, tree: Tree, allowance: Allowance
) -> Iterator[tuple[bytes, Shown | None, Shown | None, Reason | None]]:
    """(path, what we show, what the other shows, why its disk may) where no change that stays there is the reason."""
    theirs = allowance.as_recorded(tree, ours)
    children: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for path in ours:
        children[parent(path)].append(path)

    def reason(path: bytes) -> Reason | None:
        wanted, shown = ours.get(path), theirs.get(path)
        if wanted is not None and wanted.kind is Kind.DIRECTORY and shown is None:
            below = children[path]
            if below and all(theirs.get(child) is None and reason(child) is not None for child in below):
                return "hollow"
        return "held" if allowance.unholdable(path, theirs, ours) else None

    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path) and name(path) != SCRATCH and not allowance.local(path):
            yield path, ours.get(path), theirs.get(path), reason(path)


def _text(shown: Shown | None) -> str:
    return "nothing" if shown is None else str(shown)


def _original(path: bytes) -> bytes:
    """The path that a conflict copy stands beside; the path itself when it is none."""
    parsed = parse_conflict_name(path)
    return path if parsed is None else parsed.original


def _decomposed(path: bytes) -> bytes:
    """A path as a normalising disk spells it."""
    try:
        return unicodedata.normalize("NFD", path.decode()).encode()
    except UnicodeDecodeError:
        return path
