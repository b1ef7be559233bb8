"""A device that only pretends: the operations with plain dictionaries behind them, for commands and API tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from p2psync.errors import InputError, PermissionDenied, StateError
from p2psync.node import views
from p2psync.node.events import EventLog
from p2psync.node.lookup import find
from tests.cli.fake_account import FakeAccount

ME = views.Identity("AAAAAAA-BBBBBBB", "desk", "AAAAAAA")
LAPTOP = views.DeviceView(
    "LAPTOPX-QQQQQQQ",
    "laptop",
    connected=True,
    address="10.0.0.2:22067",
    via="lan",
    last_seen=1_700_000_000.0,
    skew_s=0.5,
)
FOLDER = views.FolderView(
    id="abcdefghijklmnopqrstuvwxyz", label="photos", path="/data/photos", state="syncing", files=10, bytes=4096,
    need_files=2, need_bytes=1000, conflicts=1, need_deletes=0, root="3fa2b1c4", equal_with=[], watch="live",
    problems=[views.Problem("name-clash", "[bold]A.txt[/bold] and a.txt\x1b[31m clash", "rename one", "A.txt")],
    progress=views.Progress(3000, 4000, 500.0, 2.0),
)  # fmt: skip


class FakeOperations(FakeAccount):
    """Records what it was asked in `calls`."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.log_of_events = EventLog(lambda: 1_700_000_000.0)
        self.cancelled = trio.Event()
        self.identical = True
        self.findings: list[views.Finding] = []
        self.paired = threading.Event()
        self.paired.set()

    def _folder(self, text: str) -> str:
        return find("folder", text, [(FOLDER.id, FOLDER.label)])

    def _device(self, text: str) -> str:
        return find("device", text, [(LAPTOP.id, LAPTOP.name)])

    async def identity(self) -> views.Identity:
        return ME

    async def status(self) -> views.Status:
        node = views.NodeView("0.1.0", 42, 61.0, ["0.0.0.0:22067"], "mdns", views.Rates(10.0, 20.0))
        return views.Status(ME, [FOLDER], [LAPTOP], node)

    async def device_list(self) -> list[views.DeviceView]:
        return [LAPTOP]

    async def device_add(self, device: str, name: str | None = None, addresses: list[str] = []) -> views.DeviceView:  # noqa: B006
        self.calls.append(("device_add", device, name, addresses))
        if "?" in device:
            raise InputError("a device ID cannot contain '?'")
        return views.DeviceView(device, name or "")

    async def device_remove(self, device: str) -> None:
        self.calls.append(("device_remove", self._device(device)))

    async def pair_open(self, account: bool = False) -> views.PairingOffer:
        return views.PairingOffer("7-crossover-clockwork", 300.0)

    async def pair_wait(self, code: str) -> views.Peer:
        if code == "never":
            try:
                await trio.sleep_forever()
            finally:
                self.cancelled.set()
        while not self.paired.is_set():
            await trio.sleep(0.01)
        return views.Peer(LAPTOP.id, "laptop")

    async def pair_join(self, code: str, address: str | None = None, account: bool = False) -> views.Peer:
        self.calls.append(("pair_join", code, address, account))
        if code == "used":
            raise StateError("this code was used already; start again with `p2psync pair`")
        return views.Peer(LAPTOP.id, "laptop")

    async def folder_add(self, path: bytes, label: str | None = None, algorithm: str = "blake3") -> views.FolderRef:
        self.calls.append(("folder_add", path, label, algorithm))
        text, raw = views.path_fields(path)
        return views.FolderRef(FOLDER.id, label or "photos", text, raw)

    async def folder_share(self, folder: str, with_: str, role: views.Role = "editor") -> views.Member:
        self.calls.append(("folder_share", self._folder(folder), self._device(with_), role))
        return views.Member(LAPTOP.id, "laptop", role, pending=True)

    async def folder_unshare(self, folder: str, with_: str) -> None:
        if folder == "grouped":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise StateError("from inside a nursery")
        if folder == "disk":
            raise OSError(28, "No space left on device", b"/data/\xff")
        self.calls.append(("folder_unshare", self._folder(folder), self._device(with_)))

    async def folder_members(self, folder: str) -> list[views.Member]:
        return [views.Member(ME.id, "desk", "owner", here=True), views.Member(LAPTOP.id, "laptop", "viewer")]

    async def folder_offers(self) -> list[views.FolderOffer]:
        return [views.FolderOffer(FOLDER.id, "photos", LAPTOP.id, "laptop", "editor")]

    async def folder_accept(self, folder: str, path: bytes) -> views.FolderRef:
        self.calls.append(("folder_accept", folder, path))
        return await self.folder_add(path, None, "blake3")

    async def folder_list(self) -> list[views.FolderSummary]:
        return [views.FolderSummary(FOLDER.id, FOLDER.label, FOLDER.path, "owner", "idle")]

    async def folder_remove(self, folder: str) -> views.FolderRef:
        return views.FolderRef(self._folder(folder), FOLDER.label, FOLDER.path)

    async def folder_mailbox(self, folder: str, policy: views.MailboxPolicy | None = None) -> views.MailboxView:
        self.calls.append(("folder_mailbox", self._folder(folder), policy))
        return views.MailboxView(FOLDER.label, policy or "offline", "relay.example:443", "idle", 3, 2048, 10)

    async def folder_pause(self, folder: str) -> None:
        self.calls.append(("folder_pause", self._folder(folder)))

    async def folder_resume(self, folder: str, confirm: bool = False, adopt: bool = False) -> None:
        self.calls.append(("folder_resume", self._folder(folder), confirm, adopt))

    async def folder_scan(self, folder: str) -> None:
        raise RuntimeError("a fault of ours, with a secret in its text")

    async def wait(self, timeout_s: float) -> views.WaitResult:
        self.calls.append(("wait", timeout_s))
        missing = [] if self.identical else ["photos: laptop lacks 2 files (1.0 kB)"]
        return views.WaitResult(self.identical, missing, [])

    async def log(self, path: bytes) -> list[views.Version]:
        self.calls.append(("log", path))
        return [views.Version("v2", "current", 12, 1_700_000_000.0, ME.id, "desk")]

    async def restore(
        self, path: bytes, version: str | None = None, at: float | None = None, to: bytes | None = None
    ) -> views.Restored:
        self.calls.append(("restore", path, version, at, to))
        text, raw = views.path_fields(to or path)
        return views.Restored(text, version or "v1", 12, raw)

    async def conflicts(self) -> list[views.Conflict]:
        return []

    async def config_get(self, key: str | None = None) -> list[views.SettingView]:
        if key == "nope.nope":
            raise InputError("there is no setting nope.nope; see `p2psync config get`")
        setting = views.SettingView("network.discovery", True, True, "Announce this device.")
        return [setting]

    async def config_set(self, key: str, value: str) -> views.SettingView:
        self.calls.append(("config_set", key, value))
        return views.SettingView(key, value, "", "A setting.", needs_restart=True)

    async def check(self, repair: bool = False, quick: bool = False, accept_local: bool = False) -> views.CheckReport:
        self.calls.append(("check", repair, quick, accept_local))
        return views.CheckReport(not self.findings, self.findings)

    async def doctor(self) -> list[views.Diagnosis]:
        return [views.Diagnosis("discovery", True, "2 devices seen")]

    def events(self, after: int | None = None) -> contextlib.AbstractAsyncContextManager[AsyncIterator[views.Event]]:
        if after == 13:
            raise PermissionDenied("unlucky")
        return self.log_of_events.subscribe(after)


@contextlib.asynccontextmanager
async def offline(home: Path, operations: FakeOperations) -> AsyncIterator[FakeOperations]:
    """What `p2psync.node.open_offline` looks like."""
    await trio.lowlevel.checkpoint()
    yield operations
