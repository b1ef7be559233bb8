"""Stored versions: what lies in `.p2psync` is checked too, kept versions and content on its way in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from p2psync.errors import EscapeError, InputError
from p2psync.index.values import HistoryEntry
from p2psync.index.writer import Writer
from p2psync.model.hashing import digest
from p2psync.model.manifest import Manifest, content_root, decode_manifest
from p2psync.model.paths import path_key
from p2psync.model.records import winner
from p2psync.ports import Kind, Rename
from p2psync.sync.context import FolderContext
from p2psync.workspace import chunker
from p2psync.workspace.layout import PART, TMP
from p2psync.workspace.staging import Stage, dress

PAGE = 1000
BLOCK = 4096
HEX_ROOT = 64


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept version that is not what the index says. `content` is the root of what is there, empty when nothing is."""

    entry: HistoryEntry
    content: bytes
    error: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Content on its way in, some of whose chunks are damaged."""

    path: bytes
    wrong: int


def history(context: FolderContext, progress: chunker.Progress | None = None) -> Iterator[Kept]:
    """Every kept version whose content is known and is not there any more, or not in one piece. Blocks.

    It is read along its manifest where that is known still; else it is cut as this folder's files are.
    """
    after = b""
    while True:
        with context.index.read(passing_over={}) as reader:
            page = reader.history_after(after, PAGE)
        if not page:
            return
        after = page[-1][0]
        for _, entry in page:
            if entry.kind is not Kind.FILE or not entry.content:
                continue
            try:
                known = _manifest(context, entry)
                found = chunker.read_content(context.root, entry.stored, context.cutting, known, progress)
            except FileNotFoundError:
                yield Kept(entry, b"")
            except chunker.Unsettled:
                continue
            except (OSError, EscapeError, InputError) as error:
                yield Kept(entry, b"", str(error))
            else:
                if found.manifest.root() != entry.content:
                    yield Kept(entry, found.manifest.root())


def _manifest(context: FolderContext, entry: HistoryEntry) -> Manifest | None:
    with context.index.read(passing_over={}) as reader:
        encoded = entry.manifest or reader.manifest(entry.content)
    return decode_manifest(encoded) if encoded else None


def heal(context: FolderContext, kept: Kept) -> bool:
    """Put a kept version right from a file of the folder that has its content, or forget it when it is gone. Blocks."""
    entry = kept.entry
    if not kept.content:
        if not kept.error:
            context.index.write(lambda writer: writer.drop_history([entry]))
        return not kept.error
    with context.index.read() as reader:
        healthy = [e for path in reader.find_content(entry.content) if (e := reader.synced(path)) is not None]
        manifests = {e.path: e.manifest or reader.manifest(e.content) for e in healthy}
    for source in healthy:
        encoded = manifests[source.path]
        if encoded is not None and content_root(encoded) == entry.content and not source.rot:
            try:
                _copy(context, source.path, decode_manifest(encoded), entry)
            except (OSError, EscapeError, InputError):
                continue
            return True
    return False


def accept(context: FolderContext, kept: Kept) -> None:
    """Take a kept version for what it is now. Blocks."""

    def work(writer: Writer) -> None:
        writer.drop_history([kept.entry])
        writer.add_history(msgspec.structs.replace(kept.entry, content=kept.content, manifest=b""))

    context.index.write(work)


def _copy(context: FolderContext, source: bytes, manifest: Manifest, entry: HistoryEntry) -> None:
    with Stage.open(context.root, manifest, b"history-" + manifest.root().hex().encode()) as stage:
        for index, (chunk, offset, length) in enumerate(manifest.chunks()):
            data = chunker.read_chunk(context.root, source, offset, length, chunk, context.algorithm)
            if data is None:
                stage.discard()
                raise InputError("the file that has the content is damaged as well")
            stage.put(index, data)
        dress(context.root, stage.path, entry.mode & 0o777, entry.mtime_ns)
        stage.sync()
    context.root.rename(stage.path, entry.stored, Rename.REPLACE)
    context.root.sync_directory(entry.stored.rpartition(b"/")[0])


def staged(context: FolderContext) -> list[Part]:
    """Content on its way in that holds damaged chunks; nothing may be fetched meanwhile. Blocks.

    A chunk with an empty block was merely not written to its end.
    """
    try:
        names = [name for name, stat in context.root.scan(TMP) if name.endswith(PART) and stat.kind is Kind.FILE]
    except FileNotFoundError:
        return []
    manifests = _wanted(context)
    found = []
    for name in names:
        manifest = manifests.get(name[:HEX_ROOT])
        if manifest is not None and (wrong := _wrong(context, TMP + b"/" + name, manifest)):
            found.append(Part(TMP + b"/" + name, wrong))
    return found


def _wanted(context: FolderContext) -> dict[bytes, Manifest]:
    """The manifests of what is to be fetched, by the hex of their roots."""
    wanted = {}
    after = b""
    with context.index.read() as reader:
        while page := reader.pending(after, PAGE):
            after = page[-1].order
            for pending in page:
                siblings = reader.siblings(path_key(pending.path))
                if not siblings or (record := winner(siblings)).kind is not Kind.FILE:
                    continue
                encoded = record.manifest or reader.manifest(record.content)
                if encoded:
                    wanted[record.content.hex().encode()] = decode_manifest(encoded)
    return wanted


def _wrong(context: FolderContext, path: bytes, manifest: Manifest) -> int:
    file = context.root.open(path)
    try:
        wrong = 0
        for chunk, offset, length in manifest.chunks():
            data = bytearray(length)
            if file.pread_into(memoryview(data), offset) == length and digest(manifest.algorithm, data) != chunk:
                wrong += all(any(data[at : at + BLOCK]) for at in range(0, length, BLOCK))
        return wrong
    finally:
        file.close()
