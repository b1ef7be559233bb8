"""Rot: tells content that changed without anyone writing it from an edit, so that it is healed and never published.

Such an entry remembers the root of what is there instead (`Synced.rot`). The plan then has the recorded content fetched
again, from other local files or from peers; what is there goes to history. After a power cut a file can look the same
way although its content never reached the disk and may never have reached a peer: it is *torn*. Both are asked from the
peers first. What is torn and in nobody's hands is published as it is, or everybody would wait for it for ever; what is
rotten waits for a person's word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from p2psync.errors import EscapeError, InputError
from p2psync.index.reader import Reader
from p2psync.index.values import Problem
from p2psync.index.writer import ROT, ROT_CODES, TORN, Writer, has_content
from p2psync.model.entries import Synced
from p2psync.model.ids import replica_device_prefix
from p2psync.model.paths import RelPath, display
from p2psync.sync.context import FolderContext
from p2psync.workspace import chunker

_DURABLE, _SCRUB, _AWAITING = "durable", "scrub", "awaiting-records"
REMEDY = "connect a device that has it; to keep what is there: p2psync check --repair --accept-local"


class Durable(msgspec.Struct, frozen=True, array_like=True):
    """Up to where in the feed, and up to which own event, what users wrote is known to have reached the disk."""

    sequence: int = 0
    counter: int = 0


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """How far scrubbing is. Times in ns since the epoch, 0: never; `files` and `size` (bytes) are of the present round.

    `cursor` is the last place of the synced tree that was read; `found` counts all damaged files ever found here.
    """

    cursor: bytes = b""
    began_ns: int = 0
    finished_ns: int = 0
    next_ns: int = 0
    files: int = 0
    size: int = 0
    found: int = 0


def durable(reader: Reader) -> Durable:
    """See `Durable`."""
    return msgspec.msgpack.decode(reader.setting(_DURABLE) or msgspec.msgpack.encode(Durable()), type=Durable)


def keep_durable(writer: Writer, reached: Durable) -> None:
    """Everything up to here is on the disk."""
    writer.put_setting(_DURABLE, msgspec.msgpack.encode(reached))


def standing(reader: Reader) -> Standing:
    """See `Standing`."""
    return msgspec.msgpack.decode(reader.setting(_SCRUB) or msgspec.msgpack.encode(Standing()), type=Standing)


def keep_standing(writer: Writer, now: Standing) -> None:
    """Remember how far scrubbing is."""
    writer.put_setting(_SCRUB, msgspec.msgpack.encode(now))


def awaiting(reader: Reader) -> bool:
    """Whether records were lost that the peers may still have."""
    return reader.setting(_AWAITING) is not None


def await_records(writer: Writer, *, wanted: bool) -> None:
    """Remember whether lost records are waited for."""
    writer.put_setting(_AWAITING, b"1" if wanted else None)


def damaged(reader: Reader) -> list[Problem]:
    """The damage that is not healed yet."""
    return [problem for problem in reader.problems() if problem.code in ROT_CODES]


def find(context: FolderContext, entry: Synced, progress: chunker.Progress | None = None) -> bytes | None:
    """Read a file that looks untouched: the root of what is there, when that is not what the entry says.

    None when all is well, or when the file may have been written to: that is for a scan to judge. So is a change that
    was made only here, which nobody could give back. OSError as the disk has it. Blocks.
    """
    if not has_content(entry) or entry.rot or entry.diverged or not _untouched(context, entry):
        return None
    try:
        clock, known = context.world.clock, context.manifest_of(entry)
        found = chunker.observe(context.root, entry.path, context.cutting, clock.wall_ns, known, progress)
    except (chunker.Unsettled, EscapeError, InputError):
        return None
    if found is None or found.content == entry.content or not _untouched(context, entry):
        return None
    return found.content


def _untouched(context: FolderContext, entry: Synced) -> bool:
    try:
        stat = context.root.stat(entry.path)
    except EscapeError:
        return False
    if stat is None or not entry.fingerprint.matches(stat):
        return False
    return not entry.fingerprint.racy(context.root.capabilities.granularity_ns)


def note(context: FolderContext, found: Iterable[tuple[Synced, bytes]]) -> list[RelPath]:
    """Remember what `find` found, so that it is fetched again; the paths. Blocks, under the commit lock."""
    now_ns = context.world.clock.wall_ns()
    own = replica_device_prefix(context.device)

    def work(writer: Writer) -> list[tuple[RelPath, str]]:
        reached = durable(writer)
        noted = []
        for seen, content in found:
            # Its version may have been joined with another meanwhile; the bytes are still the same.
            entry = writer.synced(seen.path)
            if entry is None or (entry.content, entry.fingerprint) != (seen.content, seen.fingerprint) or entry.rot:
                continue
            by_us = entry.sources and all(replica_device_prefix(dot.replica) == own for dot in entry.sources)
            code = TORN if by_us and entry.sources[-1].counter > reached.counter else ROT
            text = (
                f"{display(entry.path)} holds something else than what was written, after a crash"
                if code == TORN
                else f"{display(entry.path)} has changed on the disk without anyone writing to it"
            )
            writer.put_synced(replace(entry, rot=content))
            writer.note_problem(Problem(entry.path, code, f"{text}; it is fetched again", REMEDY, now_ns))
            noted.append((entry.path, text))
        if noted:
            now = standing(writer)
            keep_standing(writer, replace(now, found=now.found + len(noted)))
        return noted

    noted = context.index.write(work)
    for path, text in noted:
        context.emit("file.damaged", text, path=display(path))
    return [path for path, _ in noted]


def accept(context: FolderContext, paths: Sequence[RelPath]) -> list[RelPath]:
    """Take what is there for an edit, to be published by the next look at it; the paths. Blocks, under the lock."""

    def work(writer: Writer) -> list[RelPath]:
        accepted = []
        for path in paths:
            entry = writer.synced(path)
            if entry is not None and entry.rot:
                unseen = replace(entry.fingerprint, observed_ns=0)
                writer.put_synced(replace(entry, rot=b"", fingerprint=unseen))
                accepted.append(path)
        return accepted

    return context.index.write(work)
