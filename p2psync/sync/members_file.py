"""The members file: a folder's membership kept beside its files too, so that a lost index can be made anew from them.

`.p2psync/members` holds the signed links and nothing secret. It is read only where an index has no links: everything
else an index holds can be had again from the files and the other devices, but who they are only from here.
"""

from __future__ import annotations

import threading
from typing import Annotated

import msgspec
import structlog

from p2psync.errors import AuthenticationError, InputError, IntegrityError, P2PSyncError
from p2psync.index.index import Index
from p2psync.index.seal import DamagedRowError
from p2psync.index.writer import Writer
from p2psync.membership.fold import Membership, fold
from p2psync.membership.graph import MAX_LINKS
from p2psync.membership.links import decode_link
from p2psync.model.ids import FolderId
from p2psync.model.paths import display
from p2psync.ports import Root, World
from p2psync.sync.context import FolderContext
from p2psync.sync.founding import Place, load_membership, store_place
from p2psync.workspace import marker, private_files
from p2psync.workspace.layout import PRIVATE

MEMBERS = PRIVATE + b"/members"
MAX_SIZE = 64 << 20
_log = structlog.get_logger(__name__)
_keeping = threading.Lock()
"""A start and a change of membership may both keep it, and the file on its way in has one name."""
_links = msgspec.msgpack.Decoder(Annotated[list[bytes], msgspec.Meta(max_length=MAX_LINKS)])


class MembersFile:
    """The file of a folder that runs."""

    def __init__(self, context: FolderContext) -> None:
        self._context = context
        self.is_due = False
        """The disk refused it: it is to be kept again."""

    def keep(self) -> None:
        """Bring the file up to date, or say in the log why that cannot be. Blocks."""
        self.is_due = True
        try:
            keep(self._context.root, self._context.membership)
        except (OSError, P2PSyncError) as error:
            _log.warning("cannot keep the members beside the files", folder=self._context.name, error=str(error))
        else:
            self.is_due = False


def keep(root: Root, membership: Membership) -> None:
    """Bring the file up to date. Blocks. OSError as the disk has it."""
    encoded = msgspec.msgpack.encode(membership.encoded_links())
    with _keeping:
        if private_files.read(root, MEMBERS, MAX_SIZE) != encoded:
            private_files.replace(root, MEMBERS, encoded)


def membership_of(world: World, index: Index, folder: FolderId, path: bytes) -> Membership:
    """The membership that an index holds; a new one is given what stands beside the files of the folder at `path`.

    Raises:
        IntegrityError: the index is new, or its links are damaged, and nothing (or something else) stands there.
    """
    damaged = False
    try:
        with index.read() as reader:
            if reader.links():
                return load_membership(index)
    except DamagedRowError:
        damaged = True
    try:
        root = world.storage.open_root(path)
        try:
            found, data, ino = marker.read(root), private_files.read(root, MEMBERS, MAX_SIZE), root.identity().ino
        finally:
            root.close()
        membership = fold(_links.decode(data))
    except (OSError, InputError, AuthenticationError, msgspec.MsgspecError) as error:
        raise _lost(path) from error
    if found is None or not found.folder == membership.folder == folder:
        raise _lost(path)

    if damaged:
        # The links are put back when the whole index is repaired, with all else that is wrong with it.
        return membership

    def work(writer: Writer) -> None:
        for encoded in membership.encoded_links():
            writer.add_link(decode_link(encoded).hash, encoded)

    # The links last: as long as they are missing, this is done again.
    store_place(index, Place(found.marker_id, found.created_ns, ino))
    index.write(work)
    return membership


def _lost(path: bytes) -> IntegrityError:
    return IntegrityError(
        f"the index of the folder {display(path)} is lost, and no membership to make a new one stands beside its "
        "files; mount its disk, or put the index back from a backup; without these remove the folder and accept it anew"
    )
