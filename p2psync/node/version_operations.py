"""Operations on the versions of files: their log, restoring one, and conflict copies."""

from __future__ import annotations

from functools import partial

from p2psync.errors import InputError, StateError
from p2psync.index.values import HistoryEntry
from p2psync.model.entries import Fingerprint
from p2psync.model.ids import DeviceId, format_device_id, parse_device_id, replica_device_prefix
from p2psync.model.paths import RelPath, display, join, path_key
from p2psync.model.records import FileRecord, winner
from p2psync.node.core import Core
from p2psync.node.views import Conflict, Restored, Version, path_fields
from p2psync.ports import Kind
from p2psync.reconcile.conflicts import parse_conflict_name
from p2psync.sync.folder import Folder
from p2psync.workspace import history, materialiser
from p2psync.workspace import operations as ops
from p2psync.workspace.marker import unreachable

CURRENT = "current"
PAGE = 1000


class VersionOperations(Core):
    """See `Operations`."""

    async def log(self, path: bytes) -> list[Version]:
        """The versions that can still be had, newest first."""
        folder, inner = self.folder_of(path)

        def read() -> tuple[FileRecord | None, list[HistoryEntry]]:
            with folder.context.index.read() as reader:
                siblings = reader.siblings(path_key(inner))
                return (winner(siblings) if siblings else None), reader.history(inner)

        current, kept = await self.world.offload.run(read)
        if current is None and not kept:
            raise InputError(f"nothing is known of {display(inner)} in {folder.label}; is the path right?")
        versions = []
        if current is not None:
            author = self._author(folder, current.dot.replica)
            versions.append(
                Version(
                    CURRENT,
                    "current",
                    current.size,
                    current.mtime_ns / 1e9,
                    *author,
                    deleted=current.deleted,
                )
            )
        versions += [
            Version(
                _name(entry),
                "history",
                entry.size,
                entry.mtime_ns / 1e9,
                *self._author(folder, entry.author),
                replaced_at=entry.replaced_ns / 1e9,
            )
            for entry in reversed(kept)
        ]
        return versions

    def _author(self, folder: Folder, prefix: bytes) -> tuple[str, str]:
        """(full device ID as text, name) of the author a replica or ID prefix stands for; empty when unknown."""
        if not prefix:
            return "", "unknown"
        membership = folder.context.membership
        devices: list[DeviceId] = [self.device_id, *membership.members, *membership.former]
        devices += [parse_device_id(d.id) for d in self.state.devices]
        for device in devices:
            if replica_device_prefix(device) == prefix[:8]:
                member = membership.members.get(device) or membership.former.get(device)
                name = self.device_name(device)
                fallback = member.name if member is not None and name == format_device_id(device)[:7] else ""
                return format_device_id(device), fallback or name
        return "", "unknown"

    async def restore(
        self, path: bytes, version: str | None = None, at: float | None = None, to: bytes | None = None
    ) -> Restored:
        """Put back a kept version as a new one."""
        folder, inner = self.folder_of(path)
        target = inner
        if to is not None:
            other, target = self.folder_of(to)
            if other is not folder:
                raise InputError("a version is restored within its own folder; copy it from there to elsewhere")
        entry = await self.world.offload.run(lambda: _choose(folder, inner, version, at))
        async with folder.context.commit_lock:
            await self.world.offload.run(lambda: self._restore(folder, entry, target, fresh=to is not None))
        if self.online:
            folder.observer.look_at(target)
        shown, raw = path_fields(join(folder.context.path, target))
        return Restored(shown, _name(entry), entry.size, raw)

    def _restore(self, folder: Folder, entry: HistoryEntry, target: RelPath, *, fresh: bool) -> None:
        """Copy the kept version and exchange it with what stands at the target, which goes to history. Blocks."""
        context = folder.context
        opened = None
        if not self.online:
            try:
                opened = self.world.storage.open_root(context.path)
            except OSError as error:
                problem = unreachable(error)
                raise StateError(f"{problem.text}; {problem.remedy}") from None
            context.set_root(opened)
        try:
            root, now_ns = context.root, self.world.clock.wall_ns()
            stamp = history.stamp(now_ns)
            restored = history.restore(root, entry.stored, context.cutting)
            there = root.stat(target)
            if there is not None and fresh:
                raise InputError(f"{display(target)} exists; give a name that is free")
            if there is not None and there.kind is Kind.DIRECTORY:
                raise InputError(f"{display(target)} is a directory now; restore with --to NAME")
            expect = Fingerprint.of(there, now_ns) if there is not None else None
            place = ops.Place(
                target, restored.kind, restored.staged, restored.target, restored.mode, restored.mtime_ns, expect
            )
            (outcome,) = materialiser.apply(
                root,
                [place],
                stamp,
                umask=context.settings.umask,
                now_ns=self.world.clock.wall_ns,
                pause=self.world.clock.pause,
            )
            match outcome:
                case ops.Done(displaced=displaced):
                    if displaced is not None:
                        _keep(folder, target, displaced, now_ns)
                case ops.ParentMissing():
                    raise InputError(
                        f"the directory of {display(target)} is gone; restore with --to NAME, or make it first"
                    )
                case ops.Failed(error=failure):
                    raise StateError(f"{display(target)} could not be written: {failure}")
                case _:
                    raise StateError(f"{display(target)} is being changed just now; try again")
        finally:
            if opened is not None:
                context.close_root()

    async def conflicts(self) -> list[Conflict]:
        """Every conflict copy in every folder, by path."""
        found = []
        for folder in self.synchronizer.folders.values():
            records = await self.world.offload.run(partial(_conflict_copies, folder))
            for record in sorted(records, key=lambda r: r.path):
                parsed = parse_conflict_name(record.path)
                assert parsed is not None
                author = self._author(folder, record.dot.replica)
                copy, copy_raw = path_fields(join(folder.context.path, record.path))
                original, original_raw = path_fields(join(folder.context.path, parsed.original))
                found.append(
                    Conflict(
                        folder.context.name,
                        folder.label,
                        copy,
                        original,
                        *author,
                        record.mtime_ns / 1e9,
                        record.size,
                        copy_raw,
                        original_raw,
                    )
                )
        return found


def _name(entry: HistoryEntry) -> str:
    """What `restore --version` takes: the time it was replaced, to the nanosecond, and what tells it from its twins."""
    return f"{entry.replaced_ns}-{entry.digest.hex()[:6]}"


def _choose(folder: Folder, path: RelPath, version: str | None, at: float | None) -> HistoryEntry:
    """The kept version that is meant. InputError when there is none."""
    with folder.context.index.read() as reader:
        kept = reader.history(path)
    if not kept:
        raise InputError(f"no earlier version of {display(path)} is kept on this device")
    if version is not None:
        for entry in kept:
            if _name(entry) == version or _name(entry).startswith(version):
                return entry
        raise InputError(f"{display(path)} has no kept version {version!r}; see: p2psync log")
    if at is not None:
        standing = [entry for entry in kept if entry.replaced_ns > at * 1e9]
        if not standing:
            raise InputError(f"no kept version of {display(path)} stood at that time; see: p2psync log")
        return standing[0]
    return kept[-1]


def _keep(folder: Folder, path: RelPath, displaced: ops.Displaced, now_ns: int) -> None:
    stat = displaced.stat
    entry = HistoryEntry(path, displaced.path, now_ns, "restored", stat.kind, stat.size, stat.mtime_ns, stat.mode)
    folder.context.index.write(lambda writer: writer.add_history(entry))


def _conflict_copies(folder: Folder) -> list[FileRecord]:
    found: list[FileRecord] = []
    with folder.context.index.read() as reader:
        if not reader.totals().conflicts:
            return found
        after = b""
        while keys := reader.keys(after, PAGE):
            after = keys[-1]
            for key in keys:
                siblings = reader.siblings(key)
                if siblings and not (best := winner(siblings)).deleted and parse_conflict_name(best.path) is not None:
                    found.append(best)
    return found
