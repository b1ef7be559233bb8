"""Operations that tell how things stand: status, waiting until all is equal, and events."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import msgspec
import trio

import p2psync
from p2psync.errors import P2PSyncError
from p2psync.model.ids import DeviceId, format_device_id
from p2psync.model.paths import display
from p2psync.node.check import scrub_view
from p2psync.node.device_operations import DeviceOperations
from p2psync.node.folder_operations import FolderOperations
from p2psync.node.home import FolderEntry
from p2psync.node.views import (
    Event,
    FolderEquality,
    FolderView,
    NodeView,
    Problem,
    Progress,
    Rates,
    Status,
    WaitResult,
    path_fields,
)
from p2psync.protocol.messages import FolderState
from p2psync.sync.context import BRAKES
from p2psync.sync.exchange import Exchange
from p2psync.sync.folder import REOPENS, Folder

SHOWN_PROBLEMS = 200
HEX_OF_ROOT = 16
GREETING_TIME = 3.0
POLL = 0.25
"""Seconds between looks while waiting, where no signal tells of a change."""


class StatusOperations(DeviceOperations, FolderOperations):
    """See `Operations`."""

    async def status(self) -> Status:
        """Everything at a glance."""
        folders = [self.synchronizer.folders[i] for i in sorted(self.synchronizer.folders)]
        views = [self._folder_view(folder) for folder in folders] + [
            self._broken_view(entry) for entry in self.state.folders if entry.id in self.broken
        ]
        views.sort(key=lambda view: (view.label, view.id))
        return Status(await self.identity(), views, await self.device_list(), self._node_view())

    def _broken_view(self, entry: FolderEntry) -> FolderView:
        """A folder whose index could not be opened."""
        remedy = f"do as it says, or: p2psync folder remove {entry.label}, then add or accept it again; its files stay"
        problem = Problem("index", str(self.broken[entry.id]), remedy)
        return self._unread_view(entry.id, entry.label, os.fsencode(entry.path), problem)

    @staticmethod
    def _unread_view(folder: str, label: str, path: bytes, problem: Problem) -> FolderView:
        """A folder of which nothing can be told but why."""
        text, raw = path_fields(path)
        return FolderView(folder, label, text, "error", 0, 0, 0, 0, 0, problems=[problem], path_b64=raw)

    def _node_view(self) -> NodeView | None:
        if self.connections is None:
            return None
        peers = [c.peer for c in self.connections.contacts.values() if c.peer is not None]
        now = trio.current_time()
        return NodeView(
            p2psync.__version__,
            os.getpid(),
            self.world.clock.monotonic() - self.started,
            list(self.connections.listening),
            "off" if self.world.discovery is None else "on",
            Rates(sum(p.incoming.rate(now) for p in peers), sum(p.outgoing.rate(now) for p in peers)),
        )

    def _folder_view(self, folder: Folder) -> FolderView:
        context = folder.context
        try:
            with context.index.read() as reader:
                totals, root, problems = reader.totals(), reader.root(), reader.problems()
        except P2PSyncError as error:
            problem = Problem("index", _trouble(folder, error), REOPENS)
            view = self._unread_view(context.name, folder.label, context.path, problem)
            return msgspec.structs.replace(view, state="paused") if folder.paused else view
        need = totals.need_bytes
        context.progress.sample(trio.current_time())
        progress = (
            Progress(context.progress.received, context.progress.received + need, context.progress.rate,
                     context.progress.eta(need))
            if need
            else None
        )  # fmt: skip
        text, raw = path_fields(context.path)
        told = [*context.problems.values(), *(p for p in problems if p.code != "ignored")]
        views = [Problem(p.code, p.text, p.remedy, display(p.path) if p.path else None) for p in told[:SHOWN_PROBLEMS]]
        if unlisted := len(told[SHOWN_PROBLEMS:]):
            views.append(Problem("more", f"{unlisted} more problems are not listed", "solve some of those that are"))
        if totals.diverged:
            views.append(
                Problem(
                    "local-changes",
                    f"{totals.diverged} changes were made here only: this device may read the folder, not write it",
                    "ask an owner for the role of editor, or undo the changes",
                )
            )
        return FolderView(
            context.name,
            folder.label,
            text,
            self.state_name(folder),  # type: ignore[arg-type]
            totals.files,
            totals.bytes,
            totals.need_files,
            need,
            totals.conflicts,
            need_deletes=totals.need_deletes,
            role=folder.role.label if folder.role is not None else "viewer",  # type: ignore[arg-type]
            problems=views,
            progress=progress,
            root=root.hex()[:HEX_OF_ROOT],
            equal_with=[format_device_id(d) for d in self._equal_with(folder, root)],
            scrub=scrub_view(context),
            watch=folder.watch,
            path_b64=raw,
        )

    @staticmethod
    def _equal_with(folder: Folder, root: bytes) -> list[DeviceId]:
        return sorted(
            device
            for device, exchange in folder.exchanges.items()
            if (a := exchange.theirs.announce) is not None and a.root == root and not a.need_files
        )

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def wait(self, timeout_s: float) -> WaitResult:
        """Rescan here and on every connected member, then wait until every folder is identical on all of them."""
        folders = list(self.synchronizer.folders.values())
        missing = {folder.label: [f"{folder.label}: not scanned in time"] for folder in folders}
        for entry in self.state.folders:
            if entry.id in self.broken:
                missing[entry.label] = [f"{entry.label}: {self.broken[entry.id]}"]

        async def settle(folder: Folder) -> None:
            await self._settle(folder, missing)

        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for folder in folders:
                    nursery.start_soon(settle, folder)
        equalities = []
        for folder in folders:
            try:
                with folder.context.index.read() as reader:
                    root = reader.root()
            except P2PSyncError as error:
                root = b""
                missing[folder.label] = [f"{folder.label}: {_trouble(folder, error)}"]
            equal = [format_device_id(d) for d in self._equal_with(folder, root)]
            identical = not missing[folder.label]
            equalities.append(FolderEquality(folder.context.name, folder.label, identical, root.hex()[:16], equal))
        texts = [text for label in sorted(missing) for text in missing[label]]
        return WaitResult(not texts, texts, equalities)

    async def _settle(self, folder: Folder, missing: dict[str, list[str]]) -> None:
        """Wait until the folder is settled; `missing` always says what is not yet."""
        asked: dict[Exchange, int] = {}
        wanted = folder.observer.ask_scan() if not folder.paused else 0
        while True:
            for exchange in list(folder.exchanges.values()):
                if exchange not in asked and exchange.theirs.announce is not None:
                    asked[exchange] = await exchange.ask_rescan()
            try:
                missing[folder.label] = self._missing(folder, wanted, asked)
            except P2PSyncError as error:
                missing[folder.label] = [f"{folder.label}: {_trouble(folder, error)}"]
            if not missing[folder.label]:
                return
            with trio.move_on_after(POLL):
                await folder.context.state_changed.wait_beyond(folder.context.state_changed.count)

    def _missing(self, folder: Folder, wanted: int, asked: dict[Exchange, int]) -> list[str]:
        """In words, what keeps the folder from being identical everywhere."""
        name = folder.label
        problem = next(iter(folder.context.problems.values()), None)
        if folder.paused:
            return [f"{name}: paused here"]
        if any(code in folder.context.problems for code in BRAKES):
            return [f"{name}: {p.text}" for p in folder.context.problems.values() if p.code in BRAKES]
        if folder.observer.generation < wanted or not folder.observer.idle:
            return [f"{name}: {problem.text}" if problem is not None else f"{name}: this device is still scanning"]
        with folder.context.index.read() as reader:
            totals, root = reader.totals(), reader.root()
            unread = [p.text for p in reader.problems() if p.unread]
        texts = []
        if unread:
            more = f" (and {len(unread) - 1} more; see: p2psync status)" if len(unread) > 1 else ""
            texts.append(f"{name}: {unread[0]}{more}")
        if totals.need_files or totals.need_deletes:
            texts.append(
                f"{name}: {totals.need_files} files ({totals.need_bytes} bytes) to fetch and {totals.need_deletes} to "
                f"remove here" + (f"; {problem.text}" if problem is not None else "")
            )
        if totals.held:
            texts.append(f"{name}: {totals.held} entries cannot be held here; see: p2psync status")
        if totals.diverged:
            texts.append(f"{name}: {totals.diverged} changes made here only, by a viewer")

        def took_part(device: DeviceId) -> bool:
            with folder.context.index.read() as reader:
                return reader.cursor(device) is not None

        for device in folder.context.membership.members:
            exchange = folder.exchanges.get(device)
            if exchange is None:
                continue
            if exchange.theirs.announce is None:
                # A device that has not accepted the folder never answers; one that once took part does.
                if took_part(device) or trio.current_time() < exchange.since + GREETING_TIME:
                    texts.append(f"{name}: {self.device_name(device)} has not answered yet")
                continue
            texts += self._missing_at(name, self.device_name(device), exchange, asked, root)
        return texts

    @staticmethod
    def _missing_at(name: str, device: str, exchange: Exchange, asked: dict[Exchange, int], root: bytes) -> list[str]:
        theirs = exchange.theirs.announce
        assert theirs is not None
        if theirs.paused:
            return [f"{name}: paused on {device}"]
        if theirs.state in {FolderState.PAUSED, FolderState.ERROR}:
            return [f"{name}: held on {device}; see there: p2psync status"]
        if exchange.theirs.scanned < asked.get(exchange, 1):
            return [f"{name}: {device} is still scanning"]
        if theirs.root != root:
            return [f"{name}: {device} has other records"]
        if theirs.need_files and theirs.state == FolderState.IDLE:
            return [f"{name}: {theirs.need_files} entries cannot be held on {device}; see there: p2psync status"]
        if theirs.need_files:
            return [f"{name}: {device} still needs {theirs.need_files} entries ({theirs.need_bytes} bytes)"]
        return []

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def events(self, after: int | None = None) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """What happens from now on, or after a cursor."""
        return self.event_log.subscribe(after)


def _trouble(folder: Folder, error: P2PSyncError) -> str:
    """Why a folder's index could not be read: what the folder says about it, which knows the first cause."""
    known = folder.context.problems.get("index")
    return str(error) if known is None else known.text
