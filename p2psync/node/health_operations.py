"""Operations on settings and health: configuration, `check`, and what the node knows of its surroundings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import trio

from p2psync.errors import AuthenticationError, EscapeError, InputError, PermissionDenied
from p2psync.index.reader import Reader
from p2psync.index.writer import Writer
from p2psync.membership.batches import open_batch
from p2psync.model.entries import Synced
from p2psync.model.manifest import decode_manifest
from p2psync.model.paths import ROOT, RelPath, display, path_key
from p2psync.model.records import winner
from p2psync.node.config import SETTINGS, get_setting, load_config, set_setting
from p2psync.node.core import Core
from p2psync.node.views import CheckReport, Diagnosis, Finding, SettingView
from p2psync.ports import Kind, Root
from p2psync.sync.folder import Folder
from p2psync.workspace import chunker

PAGE = 1000
MAX_FINDINGS = 1000


class HealthOperations(Core):
    """See `Operations`."""

    # ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def config_get(self, key: str | None = None) -> list[SettingView]:
        """One setting, or all."""
        if key is not None and key not in SETTINGS:
            get_setting(self.config, key)
        config = load_config(self.home.config_file)
        return [
            SettingView(
                s.name,
                _plain(get_setting(config, s.name)),
                _plain(s.default),
                s.about.meaning,
                None if s.about.unit == "-" else s.about.unit,
                needs_restart=self.online,
            )
            for s in SETTINGS.values()
            if key is None or s.name == key
        ]

    async def config_set(self, key: str, value: str) -> SettingView:
        """Change one setting in the file; the node takes it up when it starts."""
        await self.world.offload.run(lambda: set_setting(self.home.config_file, key, value))
        return (await self.config_get(key))[0]

    # ── check ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def check(self, repair: bool = False) -> CheckReport:
        """Verify index, signatures and files of every folder; with `repair` put right what can be."""
        if self.broken and not self.synchronizer.folders:
            raise next(iter(self.broken.values()))
        findings = [
            Finding(entry.label, str(self.broken[entry.id]), f"p2psync folder remove {entry.label}, then add it again")
            for entry in self.state.folders
            if entry.id in self.broken
        ]
        for folder in sorted(self.synchronizer.folders.values(), key=lambda f: f.label):
            async with folder.context.commit_lock:
                findings += await self.world.offload.run(partial(self._check_folder, folder, repair=repair))
            if repair and self.online:
                folder.observer.ask_scan()
                folder.applier.retry()
        return CheckReport(all(f.repaired for f in findings), findings[:MAX_FINDINGS])

    def _check_folder(self, folder: Folder, *, repair: bool) -> list[Finding]:
        index = folder.context.index
        wrong = index.check()
        repaired = repair and bool(wrong)
        if repaired:
            index.repair()
        remedy = "run: p2psync check --repair"
        findings = [
            Finding(folder.label, f.text, remedy, display(f.path) or None, repaired and f.repairable) for f in wrong
        ]
        findings += self._check_signatures(folder)
        with self._root_of(folder) as root:
            if root is None:
                findings.append(
                    Finding(folder.label, "the directory is not available; its files were not checked", "mount it")
                )
            else:
                findings += _check_files(folder, root, repair=repair)
        return findings

    @staticmethod
    def _check_signatures(folder: Folder) -> Iterator[Finding]:
        membership = folder.context.membership
        checked: set[bytes] = set()
        with folder.context.index.read() as reader:
            after = b""
            while keys := reader.keys(after, PAGE):
                after = keys[-1]
                for key in keys:
                    for stored in reader.stored(key):
                        if stored.batch_id in checked:
                            continue
                        checked.add(stored.batch_id)
                        batch = reader.batch(stored.batch_id)
                        try:
                            if batch is None:
                                raise InputError("its signature is missing")
                            open_batch(batch, membership, {})
                        except (InputError, AuthenticationError, PermissionDenied) as error:
                            yield Finding(
                                folder.label, f"a record does not verify: {error}", "run: p2psync check --repair",
                                display(stored.record.path),
                            )  # fmt: skip

    @contextmanager
    def _root_of(self, folder: Folder) -> Iterator[Root | None]:
        """The folder's open tree, opened for the occasion when no node runs; None when it is not to be had."""
        if folder.context.has_root:
            yield folder.context.root
            return
        try:
            root = self.world.storage.open_root(folder.context.path)
        except OSError:
            yield None
            return
        try:
            yield root
        finally:
            root.close()

    # ── doctor ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def doctor(self) -> list[Diagnosis]:
        """Network, discovery, watches and clocks as the node sees them."""
        connections = self.connections
        if connections is None:
            return []
        found = [Diagnosis("listening", bool(connections.listening), ", ".join(connections.listening))]
        if self.world.discovery is None:
            found.append(Diagnosis("discovery", True, "switched off; devices need static addresses"))
        else:
            count = len(connections.sightings)
            found.append(
                Diagnosis(
                    "discovery",
                    count > 0 or not self.state.devices,
                    f"{count} nodes seen on the local network",
                    "if devices are near: check that multicast (UDP port 5353) passes, or give addresses with "
                    "`p2psync device add ID --address HOST:PORT`",
                )
            )
        for folder in self.synchronizer.folders.values():
            good = folder.watch == "live" or folder.paused
            found.append(
                Diagnosis(
                    f"watch {folder.label}", good, f"changes are {'seen at once' if good else 'found by scans only'}",
                    "raise fs.inotify.max_user_watches, or accept the delay of scans",
                )
            )  # fmt: skip
        for contact in connections.contacts.values():
            if contact.peer is not None and abs(contact.peer.skew_ns) > 60 * 10**9:
                seconds = contact.peer.skew_ns // 10**9
                found.append(
                    Diagnosis(
                        f"clock {contact.peer.name}", False, f"its clock differs by {seconds} s",
                        "set the clocks; nothing is lost, but times shown and conflict names will be odd",
                    )
                )  # fmt: skip
        await trio.lowlevel.checkpoint()
        return found


def _plain(value: object) -> str | int | float | bool | list[str]:
    if isinstance(value, str | int | float | bool):
        return value
    assert isinstance(value, tuple | list)
    return [str(part) for part in value]


def _check_files(folder: Folder, root: Root, *, repair: bool) -> list[Finding]:
    """Hash every file that looks untouched: rot is damage under an unchanged fingerprint. Repaired by fetching anew."""
    context = folder.context
    found: list[Finding] = []
    with context.index.read() as reader:
        entries = [e for e in reader.below(ROOT) if e.kind is Kind.FILE and not e.absent]
    for entry in entries:
        try:
            stat = root.stat(entry.path)
            if stat is None or not entry.fingerprint.matches(stat):
                continue
            with context.index.read() as reader:
                encoded = entry.manifest or _manifest(reader, entry)
            wrong = chunker.verify_file(root, entry.path, decode_manifest(encoded))
        except (OSError, EscapeError, InputError) as error:
            found.append(Finding(folder.label, f"cannot be read: {error}", "check the disk", display(entry.path)))
            continue
        if not wrong:
            continue
        if repair:
            context.index.write(partial(_refetch, path=entry.path))
        found.append(
            Finding(
                folder.label,
                f"{len(wrong)} damaged chunks: the disk changed content without anyone writing",
                "run: p2psync check --repair, with a device that has the file connected",
                display(entry.path),
                repaired=repair,
            )
        )
    return found


def _manifest(reader: Reader, entry: Synced) -> bytes:
    encoded = reader.manifest(entry.content)
    if encoded is None:
        raise InputError("its list of chunks is missing")
    return encoded


def _refetch(writer: Writer, path: RelPath) -> None:
    """Forget what the content is: the plan then replaces it, and what is there goes to history."""
    entry, siblings = writer.synced(path), writer.siblings(path_key(path))
    if entry is not None and siblings and winner(siblings).identity == entry.identity:
        writer.put_synced(replace(entry, content=b"", manifest=b""))
