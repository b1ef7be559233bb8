"""What the materialiser can be asked to do, what comes of it, and what is journalled before: values, no effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from p2psync.errors import IntegrityError, P2PSyncError
from p2psync.model.entries import Fingerprint
from p2psync.model.paths import RelPath
from p2psync.ports import Kind, Root, Stat
from p2psync.workspace.layout import HISTORY, SWAP, TMP


# ── operations ──────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Place:
    """Put a file or symlink at `path`.

    `staged` is the synced stage of a file's content, `target` a symlink's text. `expect` is what stands there now
    (None: nothing); it must come from an observation that was not racy or was hashed again. The old entry goes to
    `keep` as a conflict copy, or into history. An expected directory is replaced only when it is empty.
    """

    path: RelPath
    kind: Kind
    staged: bytes | None
    target: bytes
    mode: int
    mtime_ns: int
    expect: Fingerprint | None
    keep: RelPath | None = None


@dataclass(frozen=True, slots=True)
class PlaceDirectory:
    """Make a directory. One that is there already is fine; a file that is `expect` goes to `keep` or into history."""

    path: RelPath
    expect: Fingerprint | None = None
    keep: RelPath | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    """Move a file or symlink into history, or remove an empty directory. `expect` None: whatever directory it is."""

    path: RelPath
    kind: Kind
    expect: Fingerprint | None


@dataclass(frozen=True, slots=True)
class Move:
    """Rename an entry that is `expect` to a name that is free, and give a file the metadata it has there.

    The outcome stands for the target. `mode` and `mtime_ns` as in `SetMetadata`; `as_it_is`: the file has them already.
    """

    source: RelPath
    target: RelPath
    expect: Fingerprint
    mode: int
    mtime_ns: int
    as_it_is: bool = False


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """Give a file its executable bit and modification time (mode's other bits stay as they are)."""

    path: RelPath
    expect: Fingerprint
    mode: int
    mtime_ns: int


Operation = Place | PlaceDirectory | Remove | Move | SetMetadata


# ── outcomes ────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Displaced:
    """Where an old entry went: `path` (a conflict copy, or below history), and its `stat` there."""

    path: bytes
    stat: Stat
    in_history: bool


@dataclass(frozen=True, slots=True)
class Done:
    """It is done and durable. `fingerprint` is what now stands at the path, None when nothing does.

    A fingerprint may be racy or differ from the disk when somebody wrote in the same moment: the next scan hashes then.
    """

    path: RelPath
    fingerprint: Fingerprint | None
    mode: int = 0
    displaced: Displaced | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """Something else stands at the path than expected; it stands there still. Observe it and plan again.

    `displaced`: a version that came in between, put aside into history because a still newer one took the path.
    """

    path: RelPath
    stat: Stat | None
    displaced: Displaced | None = None


@dataclass(frozen=True, slots=True)
class NotEmpty:
    """A directory was not removed because something is in it."""

    path: RelPath


@dataclass(frozen=True, slots=True)
class ParentMissing:
    """The directory that should hold the path does not exist."""

    path: RelPath


@dataclass(frozen=True, slots=True)
class Failed:
    """The disk refused, or the path leads through a symlink or file. Nothing was lost; trying again is safe."""

    path: RelPath
    error: OSError | P2PSyncError


Outcome = Done | Changed | NotEmpty | ParentMissing | Failed


# ── the journal ─────────────────────────────────────────────────────────────────────────────────────────────────────
class Intent(msgspec.Struct, frozen=True, array_like=True):
    """What must be durable before an operation starts, so that `recover` can tell after a crash what is whose.

    `temp` is where one side of an exchange stands meanwhile, `staged` and `staged_ino` the new content, `expected_ino`,
    `expected_size` and `expected_mtime_ns` the old entry, `history` where it goes unless `keep` takes it. For a move
    `keep` is the target.
    """

    operation: str
    path: bytes
    temp: bytes = b""
    staged: bytes = b""
    staged_ino: int = 0
    target: bytes = b""
    expected_ino: int = 0
    expected_size: int = 0
    expected_mtime_ns: int = 0
    history: bytes = b""
    keep: bytes = b""

    def encode(self) -> bytes:
        """Bytes for the journal."""
        return _encoder.encode(self)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Intent)


def decode_intent(data: bytes) -> Intent:
    """An intent of our own journal; IntegrityError when it is damaged."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"damaged intent in the index: {error}; run `p2psync check --repair`") from None


def temp_path(stamp: bytes, number: int) -> bytes:
    """Where the `number`-th operation of a batch keeps one side of an exchange."""
    return b"%s/%s-%d%s" % (TMP, stamp, number, SWAP)


def history_path(stamp: bytes, path: bytes) -> bytes:
    """Where the batch `stamp` puts what stood at `path`."""
    return b"%s/%s/%s" % (HISTORY, stamp, path)


def intents(root: Root, operations: Sequence[Operation], stamp: bytes) -> list[Intent]:
    """The intents to journal before `apply(root, operations, stamp)`; operations that need none are left out."""
    result: list[Intent] = []
    for number, operation in enumerate(operations):
        match operation:
            case Place(expect=None, staged=bytes()) | Move(as_it_is=True) if root.capabilities.noreplace:
                pass  # One rename to a free name: the file that stands there afterwards, or does not, tells all.
            case Place(path=path, expect=expect):
                staged = root.stat(operation.staged) if operation.staged is not None else None
                result.append(
                    Intent(
                        "place",
                        path,
                        temp_path(stamp, number),
                        operation.staged or b"",
                        staged.ino if staged is not None else 0,
                        operation.target,
                        *_expected(expect),
                        history_path(stamp, path),
                        operation.keep or b"",
                    )
                )
            case PlaceDirectory(path=path, expect=expect) if expect is not None:
                result.append(_aside("place-directory", path, expect, stamp, operation.keep))
            case Remove(path=path, expect=expect) if operation.kind is not Kind.DIRECTORY:
                result.append(_aside("remove", path, expect, stamp, None))
            case Move(source=source, target=target, expect=expect):
                result.append(Intent("move", source, *_NO_STAGE, *_expected(expect), keep=target))
            case _:
                pass
    return result


def _aside(name: str, path: bytes, expect: Fingerprint | None, stamp: bytes, keep: RelPath | None) -> Intent:
    return Intent(name, path, *_NO_STAGE, *_expected(expect), history_path(stamp, path), keep or b"")


_NO_STAGE = (b"", b"", 0, b"")


def _expected(expect: Fingerprint | None) -> tuple[int, int, int]:
    return (expect.ino, expect.size, expect.mtime_ns) if expect is not None else (0, 0, 0)
