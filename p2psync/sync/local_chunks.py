"""Local chunks: what a file of this device is recorded to hold, read where the index says and verified."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from p2psync.errors import EscapeError, StateError
from p2psync.index.values import Location
from p2psync.model.manifest import MAX_CHUNK
from p2psync.model.paths import RelPath
from p2psync.sync.context import FolderContext
from p2psync.workspace import chunker
from p2psync.workspace.layout import batch
from p2psync.workspace.staging import Stage

COPY_BYTES = 32 * 1024 * 1024
"""Bytes of local content copied in one thread hop."""


def find_chunk(
    context: FolderContext,
    chunk: bytes,
    length: int,
    suspects: list[RelPath] | None = None,
    out: memoryview | None = None,
) -> memoryview | None:
    """A chunk from a file of this folder that still holds it (I14), in `out` where that is given.

    Files that do not hold it any more go to `suspects`.
    """
    with context.index.read() as reader:
        places = reader.locate(chunk)
    return read_located(context, places, chunk, length, suspects, out)


def read_located(  # noqa: PLR0917 - a chunk, where it is said to be, and where it goes
    context: FolderContext,
    places: Sequence[Location],
    chunk: bytes,
    length: int,
    suspects: list[RelPath] | None = None,
    out: memoryview | None = None,
) -> memoryview | None:
    """As `find_chunk`, with the places that `Reader.locate` has named."""
    for place in places:
        if place.length != length:
            continue
        if out is None:
            out = memoryview(bytearray(length))
        try:
            whole = chunker.read_chunk_into(context.root, place.path, place.offset, out, chunk, context.algorithm)
        except (OSError, EscapeError, StateError):
            whole = False
        if whole:
            return out
        if suspects is not None:
            suspects.append(place.path)
    return None


def located(contexts: Iterable[FolderContext], chunks: Collection[bytes]) -> set[bytes]:
    """Which of these chunks files of these folders are recorded to hold. Blocks."""
    found: set[bytes] = set()
    for context in contexts:
        if context.has_root:
            with context.index.read() as reader:
                found.update(chunk for chunk in chunks if reader.locate(chunk))
    return found


def kept_open(context: FolderContext) -> AbstractContextManager[object]:
    """Many chunks will be read: keep the directories of their files open, as far as the tree is to be had."""
    try:
        return batch(context.root)
    except StateError:
        return nullcontext()


def copy_chunks(
    contexts: Sequence[FolderContext],
    staged: Callable[[bytes, int], bytes | None],
    stage: Stage,
    missing: Sequence[int],
) -> tuple[int, list[int]]:
    """Copy to `stage` what files of these folders hold, or else `staged` gives, a bounded amount.

    (Bytes copied, what is left to look at.) A chunk is hashed in memory, and it is those bytes that are written: a file
    that has changed or decayed since it was recorded gives nothing to the new one. Blocks.
    """
    chunks = [stage.manifest.chunk(index) for index in missing]
    buffer = memoryview(bytearray(min(MAX_CHUNK, max((length for _, length in chunks), default=0))))
    copied = 0
    for position, (chunk, length) in enumerate(chunks):
        if copied >= COPY_BYTES:
            return copied, list(missing[position:])
        view = buffer[:length]
        if any(c.has_root and find_chunk(c, chunk, length, out=view) is not None for c in contexts):
            stage.keep(missing[position], view)
        elif (data := staged(chunk, length)) is not None:
            stage.keep(missing[position], data)
        else:
            continue
        copied += length
    return copied, []
