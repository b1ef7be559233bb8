"""This project as a user runs it: one node per host, `p2psync run`, introduced by ID and static address."""

from __future__ import annotations

import base64
import json
import shutil
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.arrival import until
from benchmarks.network import Network
from benchmarks.tools.base import START_LIMIT_S, Api
from p2psync.testing.processes import Device

LABEL = "bench"
_SCAN_LIMIT_S = 900.0
_POLL_S = 0.02


class P2PSync:
    """See `Service`."""

    name = "p2psync"

    def __init__(self, base: Path, network: Network, source: Path | None = None) -> None:
        """`source`: a checkout whose code is run instead of this one's."""
        names = [f"end{number}" for number in range(len(network.hosts))]
        self.folders = [base / name for name in names]
        self._hosts = network.hosts
        chosen = () if source is None else ("env", f"--chdir={source}", f"PYTHONPATH={source}")
        self._devices = [
            Device(base, name, listen=f"{host.address}:0", prefix=(*host.prefix, *chosen))
            for name, host in zip(names, network.hosts, strict=True)
        ]
        self._folder_id = ""
        self._calls: list[socket.socket] = []

    def start(self) -> None:
        """All nodes connected, one empty folder shared."""
        self.folders[0].mkdir()
        with ThreadPoolExecutor() as pool:
            list(pool.map(_begin, self._devices))
        for end, device in enumerate(self._devices):
            for other in self._devices:
                if other is not device:
                    self._do(end, "device_add", device=other.id, name=other.name, addresses=[other.address])
        self._folder_id = self._do(0, "folder_add", path=_path(self.folders[0]), label=LABEL)["id"]
        for end, device in enumerate(self._devices[1:], 1):
            self._do(0, "folder_share", folder=LABEL, with_=device.id)
            until(partial(self._is_offered, end), START_LIMIT_S, _POLL_S)
            self._do(end, "folder_accept", folder=self._folder_id, path=_path(self.folders[end]))
        if not self._do(0, "wait", timeout_s=START_LIMIT_S)["identical"]:
            raise RuntimeError("the empty folders did not become the same")

    def roots(self) -> tuple[int | None, ...]:
        """The node of each end."""
        return tuple(None if device.process is None else device.process.pid for device in self._devices)

    def kick(self, changed: bool) -> None:
        """Ask for a scan after many changes at once, as a user may; single changes are left to the watcher."""
        self._hang_up()
        if not changed:
            self._calls.append(self._api(0).begin("POST", "/v1/folder_scan", _body({"folder": LABEL})))

    def stop(self) -> None:
        """End all nodes."""
        self._hang_up()
        for device in self._devices:
            device.kill()

    def scan(self, end: int) -> None:
        """See `Service.scan`."""
        self._do(end, "folder_scan", _SCAN_LIMIT_S, folder=LABEL)

    def indexed(self, end: int) -> int:
        """Files in the index of an end while it has nothing to do, else -1."""
        folder = self._folder(end)
        return int(folder["files"]) if folder["state"] == "idle" else -1

    def in_sync(self, end: int) -> bool:
        """See `Service.in_sync`."""
        folder = self._folder(end)
        lacking = folder["need_files"] or folder["need_deletes"]
        return folder["state"] == "idle" and not lacking and bool(folder["equal_with"])

    def halt(self, end: int) -> None:
        """See `Service.halt`."""
        self._devices[end].stop()

    def launch(self, end: int) -> None:
        """See `Service.launch`."""
        self._devices[end].start()

    def lose_database(self, end: int) -> None:
        """Remove the index of an end that is halted."""
        index = self._devices[end].home / "folders" / self._folder_id / "index"
        if not index.exists():
            raise FileNotFoundError(index)
        shutil.rmtree(index)

    def pause(self, end: int) -> None:
        """See `Service.pause`."""
        self._do(end, "folder_pause", folder=LABEL)

    def resume(self, end: int) -> None:
        """See `Service.resume`."""
        self._do(end, "folder_resume", folder=LABEL)

    def _folder(self, end: int) -> Any:
        return self._do(end, "status")["folders"][0]

    def _is_offered(self, end: int) -> bool:
        return any(offer["id"] == self._folder_id for offer in self._do(end, "folder_offers"))

    def _do(self, end: int, operation: str, timeout: float = START_LIMIT_S, /, **arguments: object) -> Any:
        """An operation of a node; its result as JSON."""
        return self._api(end).ask("POST", f"/v1/{operation}", _body(arguments), timeout)

    def _api(self, end: int) -> Api:
        control = json.loads((self._devices[end].home / "control.json").read_text())
        headers = {"Authorization": f"Bearer {control['token']}", "Content-Type": "application/json"}
        return Api(self._hosts[end], int(control["url"].rpartition(":")[2]), headers)

    def _hang_up(self) -> None:
        while self._calls:
            self._calls.pop().close()


def _begin(device: Device) -> None:
    device.init()
    device.start()


def _body(arguments: Mapping[str, object]) -> bytes:
    return json.dumps(arguments).encode()


def _path(path: Path) -> str:
    """As the API takes it: bytes, in base 64."""
    return base64.b64encode(bytes(path)).decode()
