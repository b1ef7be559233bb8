"""Finds out what a file system can do by trying it in our private directory, because no platform's name tells."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from p2psync.ports import FsCapabilities, Rename, Root
from p2psync.workspace.layout import PROBE, TMP

_SECOND = 1_000_000_000


def probe(root: Root) -> FsCapabilities:
    """Try every capability in a fresh directory below `.p2psync/tmp`; the defaults when nothing can be written."""
    base = TMP + b"/" + PROBE + os.urandom(6).hex().encode()
    try:
        root.mkdir(base, 0o700)
    except OSError:
        return FsCapabilities()
    try:
        return _probe(root, base)
    except OSError:
        return FsCapabilities()
    finally:
        remove_probe(root, base)


def _probe(root: Root, base: bytes) -> FsCapabilities:
    one, two = base + b"/one", base + b"/two"
    _touch(root, one)
    _touch(root, two)
    _touch(root, base + b"/lower")
    composed = _try_touch(root, base + b"/" + "é".encode())
    return FsCapabilities(
        case_insensitive=root.stat(base + b"/LOWER") is not None,
        normalising=composed and root.stat(base + b"/" + "e\u0301".encode()) is not None,
        symlinks=_works(lambda: root.symlink(b"nowhere", base + b"/symlink")),
        hard_links=_works(lambda: root.link(one, base + b"/hard")),
        exchange=_works(lambda: root.rename(one, two, Rename.EXCHANGE)),
        noreplace=_works(lambda: root.rename(one, base + b"/free", Rename.NOREPLACE))
        and not _works(lambda: root.rename(two, base + b"/free", Rename.NOREPLACE)),
        executable_bits=_keeps_executable_bits(root, base + b"/bits"),
        utf8_only=not _try_touch(root, base + b"/\xff"),
        name_max=255 if _try_touch(root, base + b"/" + b"n" * 255) else 143,
        granularity_ns=_granularity(root, base),
    )


def _touch(root: Root, path: bytes) -> None:
    root.create(path).close()


def _try_touch(root: Root, path: bytes) -> bool:
    return _works(lambda: _touch(root, path))


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _keeps_executable_bits(root: Root, path: bytes) -> bool:
    """Some mounts refuse to change them, others take every change and show the same bits as before."""
    _touch(root, path)
    for mode in (0o700, 0o600):
        with suppress(OSError):
            root.chmod(path, mode)
        stat = root.stat(path)
        if stat is None or stat.mode & 0o700 != mode:
            return False
    return True


def _granularity(root: Root, base: bytes) -> int:
    """How coarse stored times are: 2 s (FAT), 1 s, or the kernel's tick, which stands for everything finer."""
    path = base + b"/time"
    _touch(root, path)
    odd_second = 1_700_000_001
    root.utime(path, odd_second * _SECOND + _SECOND // 2)
    stat = root.stat(path)
    if stat is None or stat.mtime_ns % _SECOND:
        return FsCapabilities().granularity_ns
    return _SECOND if stat.mtime_ns // _SECOND == odd_second else 2 * _SECOND


def remove_probe(root: Root, base: bytes) -> None:
    """Remove a directory that `probe` made, as far as it goes."""
    with suppress(OSError):
        for name, _ in root.scan(base):
            root.unlink(base + b"/" + name)
        root.rmdir(base)
