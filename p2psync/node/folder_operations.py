"""Operations on folders: adding, sharing, accepting, pausing, scanning."""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from p2psync.errors import InputError, PermissionDenied, StateError
from p2psync.membership.fold import Membership
from p2psync.membership.links import Add, Remove, SetRole
from p2psync.membership.links import Role as MemberRole
from p2psync.model.hashing import Algorithm
from p2psync.model.ids import DeviceId, format_device_id, format_folder_id, parse_folder_id, short_id
from p2psync.node.core import Core
from p2psync.node.home import FolderEntry
from p2psync.node.lookup import find
from p2psync.node.views import FolderOffer, FolderRef, FolderSummary, Member, Role, path_fields
from p2psync.protocol.messages import FolderState
from p2psync.sync import founding
from p2psync.sync.folder import Folder
from p2psync.workspace.layout import MARKER

STATE_NAMES = {
    FolderState.IDLE: "idle",
    FolderState.SCANNING: "scanning",
    FolderState.SYNCING: "syncing",
    FolderState.PAUSED: "paused",
    FolderState.ERROR: "error",
}
MAX_LABEL = 255


class FolderOperations(Core):
    """See `Operations`."""

    async def folder_add(self, path: bytes, label: str | None = None, algorithm: str = "blake3") -> FolderRef:
        """Make a directory a shared folder."""
        if algorithm not in {"blake3", "sha256"}:
            raise InputError(f"a folder's hash is blake3 or sha256, not {algorithm!r}")
        name = label if label is not None else os.path.basename(path).decode(errors="replace")
        self._check_new(path, name)

        def work() -> Membership:
            root = founding.check_directory(self.world, path)
            try:
                membership = founding.found(self.world, self.keys, name, Algorithm[algorithm.upper()], self.name)
                founding.establish(
                    self.world, self.keys, root, membership, self.index_path(format_folder_id(membership.folder))
                )
            finally:
                root.close()
            return membership

        membership = await self.world.offload.run(work)
        return await self._take_up(membership, name, path)

    async def folder_accept(self, folder: str, path: bytes) -> FolderRef:
        """Take part in an offered folder."""
        offers = self.synchronizer.offers
        found = find("folder", folder, [(format_folder_id(i), o.label) for i, o in offers.items()])
        offer = offers[parse_folder_id(found)]
        taken = {f.label for f in self.state.folders}
        label = offer.label
        while label in taken:
            label += " 2"
        self._check_new(path, label)

        def work() -> None:
            root = founding.check_directory(self.world, path, make=True)
            try:
                founding.establish(self.world, self.keys, root, offer.membership, self.index_path(found))
            finally:
                root.close()

        await self.world.offload.run(work)
        return await self._take_up(offer.membership, label, path)

    def _check_new(self, path: bytes, label: str) -> None:
        if not label or len(label.encode()) > MAX_LABEL or not label.isprintable():
            raise InputError(f"a label has 1 to {MAX_LABEL} bytes of printable text; give one with --label")
        if any(f.label == label for f in self.state.folders):
            raise InputError(f"a folder here is called {label!r} already; give another name with --label")
        home = os.fsencode(self.home.path)
        if path == home or path.startswith(home + b"/") or home.startswith(path + b"/"):
            raise InputError(
                f"{os.fsdecode(path)} and this device's home {self.home.path} lie in each other; keys are never shared"
            )
        for folder in self.synchronizer.folders.values():
            other = folder.context.path
            if path == other or path.startswith(other + b"/") or other.startswith(path + b"/"):
                raise StateError(
                    f"{os.fsdecode(path)} and the folder {folder.label} at {os.fsdecode(other)} lie in each other; "
                    "folders cannot contain each other"
                )

    async def _take_up(self, membership: Membership, label: str, path: bytes) -> FolderRef:
        """A folder is established on disk: enter it in the state, then run it; neither where it cannot be opened."""
        entry = FolderEntry(
            id=format_folder_id(membership.folder),
            label=label,
            path=os.fsdecode(path),
            added_at=self.world.clock.wall_ns() // 10**9,
            mailbox="always" if membership.folder in self.at_relay else "never",
        )
        taken_up = await self.world.offload.run(lambda: self.open_folder(entry))
        try:
            await self.save(folders=lambda known: [*known, entry])
        except BaseException:
            taken_up.close()
            raise
        self.synchronizer.add(taken_up)
        self.event_log.publish("folder.added", f"{label} is synchronised now", folder=entry.id)
        text, raw = path_fields(path)
        return FolderRef(entry.id, label, text, raw)

    # ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def folder_share(self, folder: str, with_: str, role: Role = "editor") -> Member:
        """Invite a device, or change its role."""
        if role == "vault":
            raise InputError(
                "a vault stores sealed content, which this version does not make; use owner, editor or viewer"
            )
        if "@" in with_:
            raise InputError(
                "sharing by e-mail needs an account on a relay, which this version does not have; use a device"
            )
        shared = self.find_folder(folder)
        device = self.device_entry(with_)
        if device == self.device_id:
            raise InputError("that is this device itself; it is a member already")
        wanted = MemberRole[role.upper()]
        membership = shared.context.membership
        present = membership.role(device)
        name = self.device_name(device)
        if present is None:
            floor = await self.world.offload.run(lambda: self._clock(shared))
            card = self.card_of(device)
            floor = floor if membership.was_member(device) else 0
            await shared.act(Add(device, wanted, name, floor, card.encode() if card is not None else b""))
        elif wanted > present:
            floor = await self.world.offload.run(lambda: self._clock(shared))
            await shared.act(SetRole(device, wanted, None, floor))
        elif wanted < present:
            cut = await self.world.offload.run(lambda: shared.cut(device))
            await shared.act(SetRole(device, wanted, cut))
        self.event_log.publish(
            "folder.shared", f"{shared.label} is shared with {name} as {role}", folder=shared.context.name, device=with_
        )
        return self._member(shared, device)

    async def folder_unshare(self, folder: str, with_: str) -> None:
        """Remove a device from a folder."""
        shared = self.find_folder(folder)
        device = self.device_entry(with_)
        if shared.context.membership.role(device) is None:
            raise InputError(f"{self.device_name(device)} is no member of {shared.label}")
        cut = await self.world.offload.run(lambda: shared.cut(device))
        await shared.act(Remove(device, cut))
        self.event_log.publish(
            "folder.unshared", f"{self.device_name(device)} is removed from {shared.label}", folder=shared.context.name
        )

    @staticmethod
    def _clock(folder: Folder) -> int:
        with folder.context.index.read() as reader:
            return reader.clock()

    async def folder_members(self, folder: str) -> list[Member]:
        """Who takes part, in order of joining."""
        shared = self.find_folder(folder)
        return [self._member(shared, device) for device in shared.context.membership.members]

    def _member(self, folder: Folder, device: DeviceId) -> Member:
        member = folder.context.membership.members[device]
        exchange = folder.exchanges.get(device)
        here = device == self.device_id
        pending = not here and exchange is not None and exchange.theirs.announce is None
        known = self.device_name(device)
        name = known if known != short_id(device) else member.name or known
        return Member(format_device_id(device), name, member.role.label, here, pending)  # type: ignore[arg-type]

    async def folder_offers(self) -> list[FolderOffer]:
        """Folders that wait for `folder_accept`."""
        return [
            FolderOffer(
                format_folder_id(folder),
                offer.label,
                format_device_id(offer.device),
                self.device_name(offer.device),
                offer.role.label,  # type: ignore[arg-type]
            )
            for folder, offer in sorted(self.synchronizer.offers.items())
        ]

    # ── control ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def folder_list(self) -> list[FolderSummary]:
        """The folders of this device, by label."""
        summaries = []
        for entry in sorted(self.state.folders, key=lambda f: f.label):
            text, raw = path_fields(os.fsencode(entry.path))
            if entry.id in self.broken:
                summaries.append(FolderSummary(entry.id, entry.label, text, "viewer", "error", raw))
                continue
            folder = self.synchronizer.folders[parse_folder_id(entry.id)]
            role = folder.role.label if folder.role is not None else "viewer"
            summaries.append(FolderSummary(entry.id, entry.label, text, role, self.state_name(folder), raw))  # type: ignore[arg-type]
        return summaries

    def state_name(self, folder: Folder) -> str:
        """The folder's state as people see it; without a node it is idle or paused."""
        if not self.online:
            return "paused" if folder.paused else "idle"
        return STATE_NAMES[folder.state]

    async def folder_remove(self, folder: str) -> FolderRef:
        """Stop synchronising a folder here; its files stay."""
        gone = self.find_folder_entry(folder)
        text, path = gone.id, os.fsencode(gone.path)
        await self.save(folders=lambda known: [f for f in known if f.id != text])
        if self.broken.pop(text, None) is None:
            await self.synchronizer.remove(self.synchronizer.folders[parse_folder_id(text)])

        def tidy() -> None:
            """Without its marker the directory can become a folder again; history stays with the files."""
            with suppress(OSError):
                root = self.world.storage.open_root(path)
                try:
                    root.unlink(MARKER)
                finally:
                    root.close()
            self.home.forget_folder(text)

        await self.world.offload.run(tidy)
        self.event_log.publish("folder.removed", f"{gone.label} is no longer synchronised here", folder=text)
        shown, raw = path_fields(path)
        return FolderRef(text, gone.label, shown, raw)

    async def folder_pause(self, folder: str) -> None:
        """Neither scan nor exchange until resumed."""
        paused = self.find_folder(folder)
        await self._save_paused(paused, paused=True)
        paused.pause()

    async def folder_resume(self, folder: str, confirm: bool = False, adopt: bool = False) -> None:
        """Go on after a pause, a held mass change or a moved root."""
        resumed = self.find_folder(folder)
        if adopt:
            await resumed.adopt()
        await self._save_paused(resumed, paused=False)
        resumed.resume(confirm=confirm)

    async def _save_paused(self, folder: Folder, *, paused: bool) -> None:
        text = folder.context.name

        def change(known: list[FolderEntry]) -> list[FolderEntry]:
            return [msgspec.structs.replace(f, paused=paused) if f.id == text else f for f in known]

        await self.save(folders=change)
        if not self.online:
            folder.paused = paused

    async def folder_scan(self, folder: str) -> None:
        """Compare the directory with the index now."""
        scanned = self.find_folder(folder)
        if not self.online:
            raise StateError("no node runs on this home; start it with: p2psync run")
        if scanned.paused:
            raise StateError(f"{scanned.label} is paused; first: p2psync folder resume {scanned.label}")
        root = scanned.context.problems.get("root")
        if root is not None:
            raise StateError(f"{scanned.label} cannot be scanned: {root.text}; {root.remedy}")
        if scanned.role is None:
            raise PermissionDenied(f"this device was removed from {scanned.label}")
        await scanned.rescan()
