"""This project as a user runs it: one node per host, `p2psync run`, introduced by ID and static address."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

from benchmarks.network import Network
from benchmarks.tools.base import START_LIMIT_S, Api
from p2psync.testing.processes import Device, introduce, share

LABEL = "bench"
_SCAN_LIMIT_S = 900.0


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
        first, *others = self._devices
        self.folders[0].mkdir()
        for device in self._devices:
            device.init()
            device.start()
        first.run("folder", "add", str(self.folders[0]), "--label", LABEL)
        for number, device in enumerate(self._devices):
            for other in self._devices[:number]:
                introduce(other, device)
                other.connected(device)
        self._folder_id = share(first, LABEL, list(zip(others, self.folders[1:], strict=True)))
        first.wait(START_LIMIT_S)

    def roots(self) -> tuple[int | None, ...]:
        """The node of each end."""
        return tuple(None if device.process is None else device.process.pid for device in self._devices)

    def kick(self, changed: bool) -> None:
        """Ask for a scan after many changes at once, as a user may; single changes are left to the watcher."""
        self._hang_up()
        if not changed:
            self._calls.append(self._api(0).begin("POST", "/v1/folder_scan", _body(folder=LABEL)))

    def stop(self) -> None:
        """End all nodes."""
        self._hang_up()
        for device in self._devices:
            device.kill()

    def scan(self, end: int) -> None:
        """See `Service.scan`."""
        self._api(end).ask("POST", "/v1/folder_scan", _body(folder=LABEL), _SCAN_LIMIT_S)

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
        self._api(end).ask("POST", "/v1/folder_pause", _body(folder=LABEL))

    def resume(self, end: int) -> None:
        """See `Service.resume`."""
        self._api(end).ask("POST", "/v1/folder_resume", _body(folder=LABEL))

    def _folder(self, end: int) -> Any:
        return self._api(end).ask("POST", "/v1/status", b"{}")["folders"][0]

    def _api(self, end: int) -> Api:
        control = json.loads((self._devices[end].home / "control.json").read_text())
        headers = {"Authorization": f"Bearer {control['token']}", "Content-Type": "application/json"}
        return Api(self._hosts[end], int(control["url"].rpartition(":")[2]), headers)

    def _hang_up(self) -> None:
        while self._calls:
            self._calls.pop().close()


def _body(**fields: str) -> bytes:
    return json.dumps(fields).encode()
