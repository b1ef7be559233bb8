"""The folder marker: proof that the directory on disk is this folder, so that a missing mount is no delete.

`.p2psync/marker` is written once, when the folder is added, and never re-created by anything but a person's explicit
command: its absence is the only sign there is of a disk that is not mounted (invariant I19).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import msgspec

from p2psync.errors import InputError, StateError
from p2psync.model.ids import FolderId, format_folder_id, parse_folder_id
from p2psync.model.paths import display
from p2psync.ports import Kind, Rename, Root, Stat, Storage
from p2psync.workspace import private_files
from p2psync.workspace.layout import MARKER, PRIVATE, make_private

MARKER_ID_SIZE = 16
_MAX_MARKER = 4096
_ADVICE = "p2psync: this file proves that the folder is mounted. Do not copy, edit or remove it."


@dataclass(frozen=True, slots=True)
class Marker:
    """What the marker says: the folder, the random id of this very copy of it (16 bytes), when it was made (ns)."""

    folder: FolderId
    marker_id: bytes
    created_ns: int


class RootState(Enum):
    """Whether a folder's directory can be trusted to be the folder."""

    OK = "ok"
    MISSING = "missing"
    NOT_DIRECTORY = "not-directory"
    UNREADABLE = "unreadable"
    MARKER_MISSING = "marker-missing"
    MARKER_DAMAGED = "marker-damaged"
    OTHER_FOLDER = "other-folder"
    OTHER_COPY = "other-copy"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class RootCheck:
    """Result of `check`: everything but OK stops the folder. `text` says what is wrong, `remedy` what to do."""

    state: RootState
    text: str = ""
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether scanning and applying may go on."""
        return self.state is RootState.OK


class _Stored(msgspec.Struct, frozen=True):
    advice: str
    folder: str
    marker: str
    created_ns: int


def create(root: Root, folder: FolderId, marker_id: bytes, created_ns: int) -> Marker:
    """Make a directory a folder: the private directory and, durably, its marker.

    `marker_id` is 16 fresh random bytes. StateError when the directory is a folder already.
    """
    if len(marker_id) != MARKER_ID_SIZE:
        raise InputError(f"a marker id has {MARKER_ID_SIZE} bytes, not {len(marker_id)}")
    with suppress(FileExistsError):
        root.mkdir(PRIVATE, 0o700)
    make_private(root)
    if root.stat(MARKER) is not None:
        raise StateError("this directory is a p2psync folder already; see `p2psync folder list`")
    stored = _Stored(_ADVICE, format_folder_id(folder), marker_id.hex(), created_ns)
    data = msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n"
    how = Rename.NOREPLACE if root.capabilities.noreplace else Rename.REPLACE
    private_files.replace(root, MARKER, data, how)
    root.sync_directory(b"")
    return Marker(folder, marker_id, created_ns)


def read(root: Root) -> Marker | None:
    """The marker in a directory; None when there is none. InputError when it is damaged."""
    try:
        file = root.open(MARKER)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        buffer = bytearray(_MAX_MARKER)
        count = file.pread_into(memoryview(buffer), 0)
    finally:
        file.close()
    try:
        stored = msgspec.json.decode(buffer[:count], type=_Stored)
        marker_id = bytes.fromhex(stored.marker)
        if len(marker_id) != MARKER_ID_SIZE:
            raise InputError("the marker's id has the wrong length")
        return Marker(parse_folder_id(stored.folder), marker_id, stored.created_ns)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"the folder's marker is damaged: {error}") from None


def check(root: Root, expected: Marker, identity: Stat | None) -> RootCheck:
    """Whether `root` still is the folder. `identity` is what `root.identity()` was when it last was, None if unknown.

    Call it before a scan and once more before anything found missing is taken for a delete. The device number is only
    compared with what is open now, because it may change when the machine starts.
    """
    try:
        now, opened = root.identity(), root.stat(b"")
        if now.kind is not Kind.DIRECTORY:
            return _not_directory()
        if opened is not None and (now.dev, now.ino) != (opened.dev, opened.ino):
            return _replaced("another directory or disk now stands at the folder's path")
        found = read(root)
    except OSError as error:
        return unreachable(error)
    except InputError as error:
        return RootCheck(
            RootState.MARKER_DAMAGED,
            str(error),
            "if the files are all there: `p2psync folder remove`, then `folder add` or `accept` it again",
        )
    if found is None:
        return RootCheck(
            RootState.MARKER_MISSING,
            f"the folder's marker {display(MARKER)} is missing: its disk may not be mounted",
            "mount the disk; if the files are all there and only the marker is gone: `p2psync folder remove`, "
            "then `folder add` or `accept` it again. Do not make the marker by hand",
        )
    if found.folder != expected.folder:
        return RootCheck(
            RootState.OTHER_FOLDER,
            f"this directory belongs to the folder {format_folder_id(found.folder)}",
            "mount the right disk, or correct the folder's path",
        )
    if found.marker_id != expected.marker_id:
        return RootCheck(
            RootState.OTHER_COPY,
            "this is another copy of the folder (from another device or from before it was added again)",
            "mount the right disk, or `p2psync folder remove` and `accept` it again at this path",
        )
    if identity is not None and identity.ino != now.ino:
        return _replaced("the folder's directory is not the one it was: it was copied, restored or re-created")
    return RootCheck(RootState.OK)


def unreachable(error: OSError) -> RootCheck:
    """What an error from `Storage.open_root` or `Root.identity` means for the folder."""
    match error:
        case FileNotFoundError():
            return RootCheck(
                RootState.MISSING,
                "the folder's directory does not exist: its disk may not be mounted, or it was moved",
                "mount the disk or move the directory back; `p2psync folder remove` if it is gone for good",
            )
        case NotADirectoryError():
            return _not_directory()
        case _:
            return RootCheck(
                RootState.UNREADABLE,
                f"the folder's directory cannot be read: {error.strerror or error}",
                "check the disk and the permissions of the directory",
            )


def enclosing(storage: Storage, path: bytes) -> bytes | None:
    """The nearest directory above the absolute, resolved `path` that is a folder, or None: folders must not nest."""
    current = path.rstrip(b"/")
    while b"/" in current:
        current = current.rpartition(b"/")[0]
        try:
            root = storage.open_root(current or b"/")
        except OSError:
            continue
        try:
            found = root.stat(MARKER)
        except OSError:
            found = None
        finally:
            root.close()
        if found is not None:
            return current or b"/"
    return None


def _not_directory() -> RootCheck:
    return RootCheck(
        RootState.NOT_DIRECTORY, "the folder's path is not a directory", "move what stands there out of the way"
    )


def _replaced(text: str) -> RootCheck:
    return RootCheck(
        RootState.REPLACED,
        text,
        "put the original back, or, if this is meant: `p2psync folder resume FOLDER --adopt`; what differs from the "
        "other devices is then kept beside theirs",
    )
