"""A folder as a person sees it, taken from a simulated disk: what the oracle compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from p2psync.model.paths import PRIVATE_DIRECTORY
from p2psync.ports import Kind
from p2psync.testing.inodes import Directory, File, Inode, Symlink


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry: kind, 32-byte BLAKE3 of a file's bytes, whether its owner may execute it, a symlink's target.

    Which directory it is (`ino`) tells one that came back from the one that had taken its place; nobody sees it.
    """

    kind: Kind
    content: bytes = b""
    executable: bool = False
    target: bytes = b""
    ino: int = field(default=0, compare=False)

    def __str__(self) -> str:
        match self.kind:
            case Kind.FILE:
                return f"file {self.content.hex()[:12]}{' executable' if self.executable else ''}"
            case Kind.SYMLINK:
                return f"symlink to {self.target!r}"
            case _:
                return self.kind.name.lower()


Tree = Mapping[bytes, Shown]
"""Everything below a folder by relative path, without the private directory."""


def content_id(data: bytes) -> bytes:
    """What `Shown.content` holds for these bytes."""
    return blake3(data).digest()


def tree(top: Directory) -> dict[bytes, Shown]:
    """The visible tree below a folder's directory, in path order."""
    found = {path: _shown(node) for path, node in _walk(top, b"") if path.split(b"/")[0] != PRIVATE_DIRECTORY}
    return dict(sorted(found.items()))


def kept(top: Directory) -> set[bytes]:
    """Content ids of every file in the folder's history store."""
    return {_content(node) for _, node in _private(top, b"history") if isinstance(node, File)}


def temporaries(top: Directory) -> list[bytes]:
    """Paths of what lies in the folder's directory for temporary files."""
    return sorted(path for path, _ in _private(top, b"tmp"))


def _private(top: Directory, name: bytes) -> Iterator[tuple[bytes, Inode]]:
    directory: Inode | None = top
    for part in (PRIVATE_DIRECTORY, name):
        if not isinstance(directory, Directory) or part not in directory.entries:
            return
        directory = directory.entries[part][1]
    if isinstance(directory, Directory):
        yield from _walk(directory, PRIVATE_DIRECTORY + b"/" + name)


def _walk(directory: Directory, path: bytes) -> Iterator[tuple[bytes, Inode]]:
    for name, node in directory.entries.values():
        below = path + b"/" + name if path else name
        yield below, node
        if isinstance(node, Directory):
            yield from _walk(node, below)


def _shown(node: Inode) -> Shown:
    if isinstance(node, File):
        return Shown(Kind.FILE, _content(node), bool(node.mode & 0o100))
    if isinstance(node, Symlink):
        return Shown(Kind.SYMLINK, target=node.target)
    return Shown(node.kind, ino=node.ino)


def _content(node: File) -> bytes:
    return content_id(node.read(0, node.size))
