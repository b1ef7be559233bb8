"""Opening a directory below another without ever leaving it: the one place where a path meets the kernel.

Linux's `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)` resolves a whole path; where the call is missing, it is
walked one component at a time with O_NOFOLLOW, which refuses the same paths.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat as stat_bits
from collections.abc import Callable

from p2psync.errors import EscapeError
from p2psync.model.paths import display

O_PATH = getattr(os, "O_PATH", os.O_RDONLY)
_DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_BENEATH_NO_SYMLINKS = 0x08 | 0x04
_PIECE = 4000
"""Longest path handed to the kernel at once, below PATH_MAX (4096)."""

libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def errno_error(*paths: bytes) -> OSError:
    """The error of the last failed call through `libc`."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), *paths[:1])


def open_beneath(root_fd: int, path: bytes, access: int) -> int:
    """Open directory `path` below `root_fd`; EscapeError when a component is a symlink."""
    fd, rest = root_fd, path
    while True:
        piece, rest = _split(rest)
        try:
            opened = _resolve(fd, piece, O_PATH if rest else access)
        finally:
            if fd != root_fd:
                os.close(fd)
        fd = opened
        if not rest:
            return fd


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Cut a path that is too long for one call after a whole component."""
    if len(path) <= _PIECE:
        return path, b""
    cut = path.rfind(b"/", 0, _PIECE)
    return path[:cut], path[cut + 1 :]


def _openat2(directory: int, path: bytes, access: int) -> int:
    # Without O_NOFOLLOW, which with O_PATH would open a symlink at the end and turn the escape into ENOTDIR.
    how = _OpenHow(access | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_BENEATH_NO_SYMLINKS)
    fd: int = libc.syscall(
        ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), path, ctypes.byref(how), ctypes.c_size_t(24)
    )
    if fd >= 0:
        return fd
    error = errno_error(path)
    if error.errno in {errno.ELOOP, errno.EXDEV}:
        raise _escape(path)
    raise error


def _walk(directory: int, path: bytes, access: int) -> int:
    """What `_openat2` does, one component at a time."""
    fd = directory
    names = path.split(b"/")
    for i, name in enumerate(names):
        flags = _DIRECTORY | (access if i == len(names) - 1 else O_PATH)
        try:
            opened = os.open(name, flags, dir_fd=fd)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP} and _is_symlink(fd, name):
                raise _escape(path) from None
            raise
        finally:
            if fd != directory:
                os.close(fd)
        fd = opened
    return fd


def _is_symlink(directory: int, name: bytes) -> bool:
    return stat_bits.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _escape(path: bytes) -> EscapeError:
    return EscapeError(f"{display(path)} passes through a symlink; nothing is read or written behind it")


def _have_openat2() -> bool:
    top = os.open(b"/", O_PATH | os.O_DIRECTORY)
    try:
        os.close(_openat2(top, b".", O_PATH))
    except OSError:
        return False
    finally:
        os.close(top)
    return True


_resolve: Callable[[int, bytes, int], int] = _openat2 if _have_openat2() else _walk
