"""What a disk cannot hold: names that collide or cannot be written there, symlinks that lead out of the folder.

Such an entry is held, not materialised: it lives on in the index and on other devices, it shows in `status` with a way
out, and its absence here never means a deletion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from p2psync.model.paths import RelPath, ancestors, display, fold, name, parent, unrepresentable
from p2psync.ports import FsCapabilities


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry that is held: what is wrong, and what a person can do about it."""

    path: RelPath
    problem: str
    remedy: str


def clashes(
    live: Iterable[RelPath], on_disk: Callable[[RelPath], bool], capabilities: FsCapabilities
) -> dict[RelPath, Problem]:
    """Which of the live paths must be held because another one has their name on this disk.

    Of several that collide what is on the disk already stays, for the disk has shown that it can hold it, else the one
    with the smaller bytes. What stands below a held directory is held with it. Empty on a disk that tells all names
    apart.
    """
    if not (capabilities.case_insensitive or capabilities.normalising):
        return {}
    groups: dict[bytes, set[RelPath]] = defaultdict(set)
    for path in live:
        for part in (*ancestors(path), path):
            groups[folded(part, capabilities)].add(part)
    held: dict[RelPath, Problem] = {}
    # Outermost first: what a held directory takes away needs no place of its own.
    for key in sorted(groups, key=lambda k: (k.count(b"/"), k)):
        group = sorted(groups[key])
        above = {p: next((held[a] for a in ancestors(p) if a in held), None) for p in group}
        stays = min((p for p in group if above[p] is None), key=lambda p: (not on_disk(p), p), default=None)
        for path in group:
            reason = above[path]
            if reason is not None:
                held[path] = Problem(path, f"its directory is held: {reason.problem}", reason.remedy)
            elif stays is not None and path != stays and not on_disk(path):
                problem = f"this disk cannot hold it beside {display(stays)}"
                held[path] = Problem(path, problem, "rename one of them on a device that holds both")
    return held


def folded(path: RelPath, capabilities: FsCapabilities) -> bytes:
    """The key that two paths share when this disk takes them for one."""
    return fold(path, case=capabilities.case_insensitive, form=capabilities.normalising)


def clash(path: RelPath, shown: Callable[[RelPath], Iterable[RelPath]], capabilities: FsCapabilities) -> Problem | None:
    """Why this disk cannot show `path` beside what it shows already; `shown` lists what it shows in one directory.

    A directory above may be what collides: its other spelling must not take in what belongs into this one.
    """
    if not (capabilities.case_insensitive or capabilities.normalising):
        return None
    there = {child for part in (*ancestors(path), path) for child in shown(parent(part))}
    return clashes([*there, path], there.__contains__, capabilities).get(path)


def holdable(path: RelPath, capabilities: FsCapabilities) -> Problem | None:
    """None when this disk can hold an entry of that name, else why not. The path above it is looked at too."""
    for part in (*ancestors(path), path):
        problem = unrepresentable(name(part), utf8_only=capabilities.utf8_only, name_max=capabilities.name_max)
        if problem is not None:
            return Problem(path, problem, f"rename {display(part)} on a device that can hold it")
    return None


def holdable_symlink(
    path: RelPath, target: bytes, capabilities: FsCapabilities, *, allow_unsafe: bool = False
) -> Problem | None:
    """None when a symlink may be materialised. One that is absolute or leaves the folder may not, unless allowed."""
    if not capabilities.symlinks:
        return Problem(path, "this disk cannot hold symlinks", "move the folder to another disk, or ignore the link")
    if allow_unsafe or not _escapes(path, target):
        return None
    return Problem(
        path,
        f"the symlink leads out of the folder, to {display(target)}",
        "allow such links for this folder in the configuration, if you trust everyone who can write to it",
    )


def _escapes(path: RelPath, target: bytes) -> bool:
    """Whether following `target` from `path` could leave the folder, judged by the text alone."""
    if target.startswith(b"/"):
        return True
    depth = path.count(b"/")
    for part in target.split(b"/"):
        if part == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif part not in {b"", b"."}:
            depth += 1
    return False
