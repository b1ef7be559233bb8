"""Operations on settings and health: configuration, `check`, and what the node knows of its surroundings."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from p2psync.errors import IntegrityError, P2PSyncError, UsageError
from p2psync.node.check import Check, Wanted
from p2psync.node.config import SETTINGS, get_setting, load_config, set_setting
from p2psync.node.core import Core
from p2psync.node.home import FolderEntry
from p2psync.node.views import CheckReport, Diagnosis, Finding, SettingView
from p2psync.sync.folder import Folder

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
    async def check(self, repair: bool = False, quick: bool = False, accept_local: bool = False) -> CheckReport:
        """See `Operations.check`."""
        if accept_local and not repair:
            raise UsageError("--accept-local says what a repair may do; give --repair as well")
        findings = [await self._check_broken(e, repair=repair) for e in self.state.folders if e.id in self.broken]
        folders = []
        for folder in sorted(self.synchronizer.folders.values(), key=lambda f: f.label):
            check = Check(
                folder,
                Wanted(repair, quick, accept_local),
                online=self.online and not folder.paused,
                tell=partial(self._tell_progress, folder),
            )
            folders.append(await check.run())
            findings += check.findings
            if repair and self.online:
                folder.observer.ask_scan()
                folder.applier.retry()
        return CheckReport(all(f.repaired for f in findings), findings[:MAX_FINDINGS], folders)

    async def _check_broken(self, entry: FolderEntry, *, repair: bool) -> Finding:
        """A folder whose index could not be opened: set aside, it is made anew from the files and the members."""
        error = self.broken[entry.id]
        if not repair or not isinstance(error, IntegrityError):
            remedy = (
                f"p2psync check --repair sets it aside and makes a new one; or: p2psync folder remove {entry.label}"
            )
            return Finding(entry.label, str(error), remedy, code="index")
        aside = await self.world.offload.run(partial(self._set_aside, entry))
        try:
            folder = await self.world.offload.run(partial(self.open_folder, entry))
        except P2PSyncError as again:
            self.broken[entry.id] = again
            return Finding(
                entry.label, str(again), f"p2psync folder remove {entry.label}, then add it again", code="index"
            )
        del self.broken[entry.id]
        self.synchronizer.add(folder)
        text = f"the index was damaged; it is set aside as {aside} and made anew from the files and the other devices"
        return Finding(entry.label, text, "", repaired=True, code="index")

    def _set_aside(self, entry: FolderEntry) -> Path:
        """Keep a damaged index out of the way; where it now lies."""
        path = self.home.index(entry.id)
        aside = path.with_name(f"{path.name}.damaged-{self.world.clock.wall_ns() // 10**9}")
        path.rename(aside)
        return aside

    def _tell_progress(self, folder: Folder, files: int, size: int, total: int) -> None:
        self.event_log.publish("check.progress", folder=folder.context.name, files=files, bytes=size, total_bytes=total)

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
        door = self.open_port
        if door is None:
            found.append(Diagnosis("port mapping", True, "switched off; the router is asked for nothing"))
        elif door.mapping is not None:
            found.append(Diagnosis("port mapping", True, f"{door.address} leads here, by {door.mapping.how}"))
        else:
            # Nothing is wrong: devices elsewhere are met, or reached through a relay.
            found.append(Diagnosis("port mapping", True, f"none: {door.why_not}"))
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
