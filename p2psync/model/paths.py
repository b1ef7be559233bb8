"""Paths inside a folder: raw bytes as the user wrote them, validated once at the border.

A path is one or more components joined by b"/". Components are kept exactly as found on the disk that made them;
nothing is ever normalised. `fold` gives the key under which case-insensitive or normalising disks would collide.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import NewType

from blake3 import blake3

from p2psync.errors import InputError

RelPath = NewType("RelPath", bytes)
PathKey = NewType("PathKey", bytes)

ROOT = RelPath(b"")
PRIVATE_DIRECTORY = b".p2psync"
"""Our own directory in a folder's root; never scanned and never accepted from a peer."""

MAX_COMPONENT = 255
MAX_PATH = 4096
MAX_DEPTH = 128
KEY_SIZE = 16

_WINDOWS_RESERVED = {b"CON", b"PRN", b"AUX", b"NUL"} | {p + bytes([d]) for p in (b"COM", b"LPT") for d in b"123456789"}


def check_component(name: bytes) -> None:
    """Raise InputError unless `name` can be one directory entry on some POSIX disk."""
    if not 0 < len(name) <= MAX_COMPONENT:
        raise InputError(f"a name must have 1 to {MAX_COMPONENT} bytes, this one has {len(name)}")
    if name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise InputError(f"not a file name: {name!r}")


def check_path(path: bytes) -> RelPath:
    """Validate bytes from outside as a path of a folder entry (never the root, never our private directory)."""
    if not 0 < len(path) <= MAX_PATH:
        raise InputError(f"a path must have 1 to {MAX_PATH} bytes, this one has {len(path)}")
    parts = path.split(b"/")
    if len(parts) > MAX_DEPTH:
        raise InputError(f"a path may be {MAX_DEPTH} levels deep, this one has {len(parts)}")
    for part in parts:
        check_component(part)
    if fold(parts[0]) == PRIVATE_DIRECTORY:
        raise InputError(f"{PRIVATE_DIRECTORY.decode()} is private to each device")
    return RelPath(path)


def join(parent: bytes, name: bytes) -> RelPath:
    """Child `name` of `parent` (ROOT is the folder itself)."""
    return RelPath(parent + b"/" + name if parent else name)


def parent(path: bytes) -> RelPath:
    """The directory that holds `path`; ROOT for a top-level entry."""
    return RelPath(path.rpartition(b"/")[0])


def name(path: bytes) -> bytes:
    """Last component of `path`."""
    return path.rpartition(b"/")[2]


def ancestors(path: bytes) -> list[RelPath]:
    """Every directory above `path`, outermost first, without ROOT."""
    parts = path.split(b"/")
    return [RelPath(b"/".join(parts[:i])) for i in range(1, len(parts))]


def depth(path: bytes) -> int:
    """Number of components; 0 for ROOT."""
    return path.count(b"/") + 1 if path else 0


@lru_cache(maxsize=4096)
def path_key(path: bytes) -> PathKey:
    """16-byte key of a path: uniform, so that tries over keys are balanced and keys fit every store."""
    return PathKey(blake3(b"p2psync path\0" + path).digest(KEY_SIZE))


def fold(path: bytes, *, case: bool = True, form: bool = True) -> bytes:
    """The key two paths share on a disk that does not tell `case`, or `form` (Unicode TR 15, NFC), apart."""
    if path.isascii():
        return path.lower() if case else path
    return b"/".join(_folded(part, case, form) for part in path.split(b"/"))


def _folded(part: bytes, case: bool, form: bool) -> bytes:
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return part.lower() if case else part
    if form:
        text = unicodedata.normalize("NFC", text)
    if case:
        text = text.casefold()
    return (unicodedata.normalize("NFC", text) if form else text).encode()


def composed(path: bytes) -> bytes:
    """`path` in composed form (Unicode TR 15, NFC), as a normalising disk knows it; unchanged when it is not UTF-8."""
    try:
        return path if path.isascii() else unicodedata.normalize("NFC", path.decode()).encode()
    except UnicodeDecodeError:
        return path


def unrepresentable(name: bytes, *, utf8_only: bool, name_max: int, windows: bool = False) -> str | None:
    """Why a disk with these limits cannot hold `name`, or None when it can."""
    if len(name) > name_max:
        return f"the name has {len(name)} bytes and this disk holds at most {name_max}"
    if utf8_only:
        try:
            name.decode()
        except UnicodeDecodeError as error:
            return f"the name is not UTF-8 (byte {error.start + 1}) and this disk holds only UTF-8 names"
    if windows:
        bad = next((c for c in name if c < 32 or c in b'<>:"\\|?*'), None)
        if bad is not None:
            return f"the character {chr(bad)!r} cannot be in a name on this disk"
        if name[-1:] in {b".", b" "} or name.split(b".")[0].upper() in _WINDOWS_RESERVED:
            return "the name is reserved on this disk"
    return None


def display(path: bytes) -> str:
    r"""Path as text for people: undecodable bytes and control characters become \xNN."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
