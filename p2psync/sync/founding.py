"""Founding and joining: makes a directory a folder, durably, in an order that a crash at any point leaves harmless."""

from __future__ import annotations

import msgspec

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import InputError, StateError
from p2psync.index import tables
from p2psync.index.index import Index
from p2psync.index.reader import Reader
from p2psync.index.writer import Writer
from p2psync.membership.fold import Membership, create_folder, fold
from p2psync.membership.links import decode_link
from p2psync.model.hashing import Algorithm
from p2psync.model.ids import FolderId
from p2psync.model.manifest import Chunker
from p2psync.model.paths import display
from p2psync.ports import Kind, Root, Stat, World
from p2psync.reconcile.conflicts import parse_conflict_name
from p2psync.sync import rights
from p2psync.workspace import marker
from p2psync.workspace.layout import MARKER, PRIVATE

TOKEN_SIZE = 16
_PLACE = "place"


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where the folder stood when it was last seen: what the marker and the root's identity must be."""

    marker_id: bytes
    created_ns: int
    ino: int

    def marker(self, folder: FolderId) -> marker.Marker:
        """The marker that must be found."""
        return marker.Marker(folder, self.marker_id, self.created_ns)


_places = msgspec.msgpack.Decoder(Place)


def open_index(world: World, path: bytes, folder: FolderId, device: bytes) -> Index:
    """Open or create a folder's index; a new one begins an incarnation that no earlier one can have had (I7)."""
    incarnation = world.clock.wall_ns() // 1_000_000_000
    return Index.open(
        world.database,
        path,
        folder,
        device,
        world.rng.token(TOKEN_SIZE),
        incarnation,
        is_conflict=lambda name: parse_conflict_name(name) is not None,
    )


def load_membership(index: Index) -> Membership:
    """The membership an index holds."""
    with index.read() as reader:
        return fold(reader.links())


def load_place(index: Index) -> Place:
    """Where the folder must be found. StateError when it was never placed, IntegrityError when that is damaged."""
    with index.read() as reader:
        data = reader.setting(_PLACE)
    if data is None:
        raise StateError("the folder was not completely added; remove it and add it again")
    return tables.decode(_places, data)


def has_place(reader: Reader) -> bool:
    """Whether an index knows where its folder must be found."""
    return reader.setting(_PLACE) is not None


def store_place(index: Index, place: Place) -> None:
    """Remember where the folder is found."""
    index.write(lambda writer: writer.put_setting(_PLACE, msgspec.msgpack.encode(place)))


def found(world: World, keys: DeviceKeys, label: str, algorithm: Algorithm, name: str) -> Membership:
    """A new folder owned by this device."""
    return create_folder(keys, label, algorithm, world.rng.token(16), name=name, chunker=Chunker.FASTCDC)


def check_directory(world: World, path: bytes, *, make: bool = False) -> Root:
    """Open a directory that is to become a folder, made first with `make`; InputError or StateError when it cannot."""
    above = marker.enclosing(world.storage, path)
    if above is not None:
        raise StateError(f"{display(path)} lies inside the folder {display(above)}; folders cannot contain each other")
    try:
        if make:
            world.storage.make_directories(path)
        root = world.storage.open_root(path)
    except FileNotFoundError:
        raise InputError(f"{display(path)} does not exist; make it first, or mount its disk") from None
    except (NotADirectoryError, FileExistsError):
        raise InputError(f"{display(path)} is not a directory") from None
    except OSError as error:
        raise InputError(f"{display(path)} cannot be opened: {error.strerror}") from None
    try:
        if marker.read(root) is not None:
            raise StateError(
                f"{display(path)} is a p2psync folder already, of this or another device; if that device is gone, "
                f"remove {display(path + b'/' + MARKER)} and try again"
            )
        below = _marker_below(root)
        if below is not None:
            raise StateError(
                f"{display(path)} contains the folder {display(path + b'/' + below)}; folders cannot contain each other"
            )
    except BaseException:
        root.close()
        raise
    return root


def _marker_below(root: Root) -> bytes | None:
    """A folder somewhere below, looked for without following symlinks."""
    pending = [b""]
    while pending:
        directory = pending.pop()
        try:
            entries = root.scan(directory)
        except OSError:
            continue
        for name, stat in entries:
            path = directory + b"/" + name if directory else name
            if stat.kind is not Kind.DIRECTORY:
                continue
            if name == PRIVATE and directory:
                return directory
            pending.append(path)
    return None


def establish(world: World, keys: DeviceKeys, root: Root, membership: Membership, index_path: bytes) -> None:
    """Make the opened directory a copy of this folder: index and links first, the marker last.

    There may be an index from before, where the list of folders was lost: what its records are worth is judged anew.
    """
    index = open_index(world, index_path, membership.folder, keys.device_id)
    try:
        place = Place(world.rng.token(marker.MARKER_ID_SIZE), world.clock.wall_ns(), root.identity().ino)

        def work(writer: Writer) -> None:
            links = [decode_link(encoded) for encoded in membership.encoded_links()]
            fresh = [link for link in links if writer.add_link(link.hash, link.encoded)]
            rights.take_effect(writer, fold(writer.links()), keys.device_id, fresh)
            writer.put_setting(_PLACE, msgspec.msgpack.encode(place))

        index.write(work)
        marker.create(root, membership.folder, place.marker_id, place.created_ns)
    finally:
        index.close()


def root_identity(place: Place, root: Root) -> Stat | None:
    """What `marker.check` compares the root with."""
    stat = root.stat(b"")
    return (
        None
        if stat is None
        else Stat(stat.kind, stat.size, stat.mode, stat.mtime_ns, stat.ctime_ns, stat.dev, place.ino)
    )
