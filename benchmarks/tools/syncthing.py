"""Syncthing of Debian: discovery, relays, NAT, low priority and reporting off, its least watcher delay (1 s)."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.network import Network
from benchmarks.tools.base import START_LIMIT_S, Api, NotInstalledError, free_port
from benchmarks.tools.base import end as _end

FOLDER = "bench"
_KEY = "bench"
_PORT = 22_000
_API_PORT = 8384
_SCAN_LIMIT_S = 900.0


class Syncthing:
    """See `Service`."""

    name = "Syncthing"

    def __init__(self, base: Path, network: Network) -> None:
        if shutil.which("syncthing") is None:
            raise NotInstalledError("syncthing")
        self._hosts = network.hosts
        self._base = base
        numbers = range(len(network.hosts))
        self.folders = [base / f"end{number}" for number in numbers]
        self._homes = [base / f"end{number}.home" for number in numbers]
        apart = network.hosts[0].namespace is not None
        addresses = [host.address for host in network.hosts]
        self._addresses = [f"tcp://{address}:{_PORT if apart else free_port()}" for address in addresses]
        self._ports = [_API_PORT if apart else free_port() for _ in numbers]
        apis = zip(self._hosts, self._ports, strict=True)
        self._apis = [Api(host, port, {"X-API-Key": _KEY}) for host, port in apis]
        self._ids: list[str] = []
        self._processes: list[subprocess.Popen[bytes] | None] = [None for _ in numbers]
        self._calls: list[socket.socket] = []

    def start(self) -> None:
        """All ends connected, one empty folder shared and scanned."""
        for home in self._homes:
            generate = ["syncthing", "generate", "--home", str(home), "--no-default-folder", "--skip-port-probing"]
            subprocess.run(generate, check=True, capture_output=True, timeout=START_LIMIT_S)
            self._ids.append(str(ET.parse(home / "config.xml").findall("device")[0].get("id")))
        for number, (home, folder) in enumerate(zip(self._homes, self.folders, strict=True)):
            folder.mkdir()
            config = home / "config.xml"
            text = configure(config.read_text(), number, self._ids, self._addresses, self._ports[number], folder)
            config.write_text(text)
        for number in reversed(range(len(self._homes))):
            self.launch(number)
        for number in range(len(self._homes)):
            self._until(f"end {number} is connected", partial(self._ready, number))

    def roots(self) -> tuple[int | None, ...]:
        """The process of each end."""
        return tuple(None if process is None else process.pid for process in self._processes)

    def kick(self, changed: bool) -> None:
        """Ask for a scan after many changes at once, as a user may; single changes are left to the watcher."""
        self._hang_up()
        if not changed:
            self._calls.append(self._apis[0].begin("POST", f"/rest/db/scan?folder={FOLDER}"))

    def stop(self) -> None:
        """End all."""
        self._hang_up()
        for number in range(len(self._processes)):
            self.halt(number)

    def scan(self, end: int) -> None:
        """See `Service.scan`."""
        self._apis[end].ask("POST", f"/rest/db/scan?folder={FOLDER}", timeout=_SCAN_LIMIT_S)

    def in_sync(self, end: int) -> bool:
        """See `Service.in_sync`."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return self._connected(end, any) and self._idle(end) and self._others_complete(end)
        return False

    def halt(self, end: int) -> None:
        """See `Service.halt`."""
        process = self._processes[end]
        if process is not None:
            _end(process)
            self._processes[end] = None

    def launch(self, end: int) -> None:
        """See `Service.launch`."""
        command = [*self._hosts[end].prefix, "syncthing", "serve", "--no-restart", "--no-browser"]
        with (self._base / f"{end}.log").open("ab") as log:
            self._processes[end] = subprocess.Popen([*command, "--home", str(self._homes[end])], stdout=log, stderr=log)
        self._until("it answers", lambda: self._apis[end].ask("GET", "/rest/system/ping") is not None)

    def pause(self, end: int) -> None:
        """See `Service.pause`."""
        self._set_paused(end, True)

    def resume(self, end: int) -> None:
        """See `Service.resume`."""
        self._set_paused(end, False)

    def _set_paused(self, end: int, paused: bool) -> None:
        body = json.dumps({"paused": paused}).encode()
        self._apis[end].ask("PATCH", f"/rest/config/folders/{FOLDER}", body)

    def _connected(self, end: int, enough: Callable[[list[bool]], bool] = all) -> bool:
        connections = self._apis[end].ask("GET", "/rest/system/connections")["connections"]
        return enough([connections[other]["connected"] for other in self._ids if other != self._ids[end]])

    def _ready(self, end: int) -> bool:
        return self._connected(end) and self._idle(end)

    def _idle(self, end: int) -> bool:
        status = self._apis[end].ask("GET", f"/rest/db/status?folder={FOLDER}")
        return bool(status["state"] == "idle" and not status["needTotalItems"])

    def _others_complete(self, end: int) -> bool:
        others = [other for other in self._ids if other != self._ids[end]]
        ask = self._apis[end].ask
        return any(
            ask("GET", f"/rest/db/completion?folder={FOLDER}&device={other}")["completion"] == 100 for other in others
        )

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"syncthing: not within {START_LIMIT_S:.0f} s: {what}")
            time.sleep(0.05)

    def _hang_up(self) -> None:
        while self._calls:
            self._calls.pop().close()


def configure(text: str, end: int, ids: list[str], addresses: list[str], api: int, folder: Path) -> str:
    """Syncthing's generated config.xml made into that of one end of direct, static peers."""
    root = ET.fromstring(text)
    options = root.find("options")
    gui = root.find("gui")
    assert options is not None
    assert gui is not None
    settings = {
        "listenAddress": addresses[end],
        "globalAnnounceEnabled": "false",
        "localAnnounceEnabled": "false",
        "relaysEnabled": "false",
        "natEnabled": "false",
        "reconnectionIntervalS": "5",
        "urAccepted": "-1",
        "crashReportingEnabled": "false",
        "autoUpgradeIntervalH": "0",
        "setLowPriority": "false",
        "startBrowser": "false",
    }
    for name, value in settings.items():
        _child(options, name).text = value
    _child(gui, "address").text = f"127.0.0.1:{api}"
    _child(gui, "apikey").text = _KEY
    for device in root.findall("device"):
        root.remove(device)
    for device_id, address in zip(ids, addresses, strict=True):
        device = ET.SubElement(root, "device", id=device_id, name=device_id[:7], compression="metadata")
        ET.SubElement(device, "address").text = address
    shared = ET.SubElement(
        root, "folder", id=FOLDER, label=FOLDER, path=str(folder), type="sendreceive", rescanIntervalS="3600",
        fsWatcherEnabled="true", fsWatcherDelayS="1",
    )  # fmt: skip
    for device_id in ids:
        ET.SubElement(shared, "device", id=device_id)
    return ET.tostring(root, encoding="unicode")


def _child(parent: ET.Element, name: str) -> ET.Element:
    found = parent.find(name)
    return ET.SubElement(parent, name) if found is None else found
