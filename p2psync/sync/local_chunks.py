"""Local chunks: what a file of this device is recorded to hold, read where the index says and verified."""

from __future__ import annotations

from p2psync.errors import EscapeError, StateError
from p2psync.model.paths import RelPath
from p2psync.sync.context import FolderContext
from p2psync.workspace import chunker


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
