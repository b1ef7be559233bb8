"""The programs that are compared, each as a pair of ends that keep (or make) two folders the same."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Protocol

from benchmarks.network import Host, Network
from p2psync.testing.processes import Device, introduce, share

START_LIMIT_S = 60.0
_PORT = 22_000


class NotInstalledError(Exception):
    """The program is not on this machine; the text is its name."""


class Tool(Protocol):
    """One program between two empty folders. `start` leaves both ends idle; `kick` says that there is work, at once."""

    name: str
    left: Path
    right: Path

    def start(self) -> None: ...
    def roots(self) -> tuple[int, int]: ...
    def kick(self, changed: bool) -> None: ...
    def stop(self) -> None: ...


class P2PSync:
    """This project: two nodes as a user runs them, `p2psync run`, introduced by ID and static address."""

    name = "p2psync"

    def __init__(self, base: Path, network: Network) -> None:
        self.left, self.right = base / "left", base / "right"
        self._devices = [
            Device(base, name, listen=f"{host.address}:0", prefix=host.prefix)
            for name, host in (("one", network.left), ("two", network.right))
        ]
        self._host = network.left
        self._calls: list[socket.socket] = []

    def start(self) -> None:
        """Both nodes connected, one empty folder shared."""
        one, two = self._devices
        self.left.mkdir()
        for device in self._devices:
            device.init()
            device.start()
        introduce(one, two)
        one.run("folder", "add", str(self.left), "--label", "bench")
        one.connected(two)
        share(one, "bench", [(two, self.right)])
        one.wait(START_LIMIT_S)

    def roots(self) -> tuple[int, int]:
        """The process of each node."""
        one, two = (device.process for device in self._devices)
        assert one is not None
        assert two is not None
        return one.pid, two.pid

    def kick(self, changed: bool) -> None:
        """Ask for a scan after a first sync's data came; single changes are left to the watcher."""
        _close(self._calls)
        if not changed:
            control = json.loads((self._devices[0].home / "control.json").read_text())
            port = int(control["url"].rpartition(":")[2])
            headers = {"Authorization": f"Bearer {control['token']}", "Content-Type": "application/json"}
            self._calls.append(_post(self._host, port, "/v1/folder_scan", headers, b'{"folder":"bench"}'))

    def stop(self) -> None:
        """End both nodes."""
        _close(self._calls)
        for device in self._devices:
            device.kill()


class Syncthing:
    """Syncthing of Debian: discovery, relays, NAT, low priority and reporting off, its least watcher delay (1 s)."""

    name = "Syncthing"

    def __init__(self, base: Path, network: Network) -> None:
        if shutil.which("syncthing") is None:
            raise NotInstalledError("syncthing")
        self.left, self.right = base / "left", base / "right"
        self._base = base
        self._hosts = (network.left, network.right)
        ports = [_PORT, _PORT] if network.left.namespace else [_free_port(), _free_port()]
        self._apis = [8384, 8384] if network.left.namespace else [_free_port(), _free_port()]
        self._addresses = [f"tcp://{host.address}:{port}" for host, port in zip(self._hosts, ports, strict=True)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._calls: list[socket.socket] = []

    def start(self) -> None:
        """Both ends connected, one empty folder shared and scanned."""
        homes = [self._base / "one.home", self._base / "two.home"]
        ids = []
        for home in homes:
            generate = ["syncthing", "generate", "--home", str(home), "--no-default-folder", "--skip-port-probing"]
            subprocess.run(generate, check=True, capture_output=True, timeout=START_LIMIT_S)
            ids.append(str(ET.parse(home / "config.xml").findall("device")[0].get("id")))
        for end, folder in enumerate((self.left, self.right)):
            folder.mkdir()
            config = homes[end] / "config.xml"
            config.write_text(configure(config.read_text(), end, ids, self._addresses, self._apis[end], folder))
        for end in (1, 0):
            command = [*self._hosts[end].prefix, "syncthing", "serve", "--no-restart", "--no-browser"]
            with (self._base / f"{end}.log").open("wb") as log:
                started = subprocess.Popen([*command, "--home", str(homes[end])], stdout=log, stderr=log)
            self._processes.insert(0, started)
            self._await(end, "/rest/system/ping", lambda _: True)
        for end in (0, 1):
            other = ids[1 - end]
            self._await(end, "/rest/system/connections", lambda r, o=other: r["connections"][o]["connected"])
            self._await(end, "/rest/db/status?folder=bench", lambda r: r["state"] == "idle")

    def roots(self) -> tuple[int, int]:
        """The process of each end."""
        return self._processes[0].pid, self._processes[1].pid

    def kick(self, changed: bool) -> None:
        """Ask for a scan after a first sync's data came; single changes are left to the watcher."""
        _close(self._calls)
        if not changed:
            headers = {"X-API-Key": "bench"}
            self._calls.append(_post(self._hosts[0], self._apis[0], "/rest/db/scan?folder=bench", headers, b""))

    def stop(self) -> None:
        """End both."""
        _close(self._calls)
        for process in self._processes:
            _end(process)

    def _await(self, end: int, path: str, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if condition(_get(self._hosts[end], self._apis[end], path, {"X-API-Key": "bench"})):
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"syncthing: {path} was not ready within {START_LIMIT_S:.0f} s")
            time.sleep(0.1)


def configure(text: str, end: int, ids: list[str], addresses: list[str], api: int, folder: Path) -> str:
    """Syncthing's generated config.xml made into that of one end of a direct, static pair."""
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
    _child(gui, "apikey").text = "bench"
    for device in root.findall("device"):
        root.remove(device)
    for device_id, address in zip(ids, addresses, strict=True):
        device = ET.SubElement(root, "device", id=device_id, name=device_id[:7], compression="metadata")
        ET.SubElement(device, "address").text = address
    shared = ET.SubElement(
        root, "folder", id="bench", label="bench", path=str(folder), type="sendreceive", rescanIntervalS="3600",
        fsWatcherEnabled="true", fsWatcherDelayS="1",
    )  # fmt: skip
    for device_id in ids:
        ET.SubElement(shared, "device", id=device_id)
    return ET.tostring(root, encoding="unicode")


class Rsync:
    """rsync to an rsync daemon, started when there is work: no encryption, no hash of its own kept, no fsync."""

    name = "rsync"

    def __init__(self, base: Path, network: Network) -> None:
        if shutil.which("rsync") is None:
            raise NotInstalledError("rsync")
        self.left, self.right = base / "left", base / "right"
        self._base, self._network = base, network
        self._port = 8730 if network.right.namespace else _free_port()
        self._shell: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A daemon on the right; on the left a shell that waits for commands, so that its children can be counted."""
        self.left.mkdir()
        self.right.mkdir()
        config = self._base / "rsyncd.conf"
        config.write_text(
            f"use chroot = no\nlog file = {self._base / 'rsyncd.log'}\n"
            f"[bench]\npath = {self.right}\nread only = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
        )
        daemon = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={self._port}"]
        host = self._network.right
        self._daemon = subprocess.Popen(
            [*host.prefix, *daemon, f"--address={host.address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        log = (self._base / "rsync.log").open("wb")
        with log:
            self._shell = subprocess.Popen(
                [*self._network.left.prefix, "sh"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        time.sleep(0.3)
        if self._daemon.poll() is not None:
            raise RuntimeError("the rsync daemon did not start")

    def roots(self) -> tuple[int, int]:
        """The shell and the daemon."""
        assert self._shell is not None
        assert self._daemon is not None
        return self._shell.pid, self._daemon.pid

    def kick(self, changed: bool) -> None:
        """Run rsync once."""
        assert self._shell is not None
        assert self._shell.stdin is not None
        where = f"rsync://{self._network.right.address}:{self._port}/bench/"
        self._shell.stdin.write(f"rsync -a {self.left}/ {where}\n".encode())
        self._shell.stdin.flush()

    def stop(self) -> None:
        """End both."""
        for process in (self._shell, self._daemon):
            if process is not None:
                if process.stdin is not None:
                    process.stdin.close()
                _end(process)


class Floor:
    """What the machine itself needs: `benchmarks.floor` reads, hashes, seals, sends, opens, hashes, writes, syncs."""

    name = "floor"

    def __init__(self, base: Path, network: Network) -> None:
        self.left, self.right = base / "left", base / "right"
        self._network = network
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """A receiver that listens and a sender that is connected and waits."""
        self.left.mkdir()
        self.right.mkdir()
        port = str(_free_port())
        host = self._network.right
        for side, prefix, folder in (
            ("receive", host.prefix, self.right),
            ("send", self._network.left.prefix, self.left),
        ):
            command = [*prefix, sys.executable, "-m", "benchmarks.floor", side, str(folder), host.address, port]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.insert(0, process)
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the floor's {side}r did not start")

    def roots(self) -> tuple[int, int]:
        """Sender and receiver."""
        return self._processes[0].pid, self._processes[1].pid

    def kick(self, changed: bool) -> None:
        """Send the tree once."""
        stdin = self._processes[0].stdin
        assert stdin is not None
        stdin.write(b"go\n")
        stdin.flush()

    def finished(self) -> None:
        """Wait for the receiver's word that everything is synced to disk."""
        stdout = self._processes[0].stdout
        assert stdout is not None
        if stdout.readline() != b"synced\n":
            raise RuntimeError("the floor's sender failed")

    def stop(self) -> None:
        """End both."""
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            _end(process)


TOOLS: dict[str, type[P2PSync | Syncthing | Rsync | Floor]] = {
    tool.name: tool for tool in (P2PSync, Syncthing, Rsync, Floor)
}


def available(name: str) -> bool:
    """Whether the tool's program is on this machine."""
    return {"p2psync": importlib.util.find_spec("p2psync.cli") is not None, "floor": True}.get(
        name, shutil.which(name.lower()) is not None
    )


def _child(parent: ET.Element, name: str) -> ET.Element:
    found = parent.find(name)
    return ET.SubElement(parent, name) if found is None else found


def _request(host: Host, port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> socket.socket:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    call = host.connect(port)
    call.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return call


def _post(host: Host, port: int, path: str, headers: dict[str, str], body: bytes) -> socket.socket:
    """Send a request and leave its answer unread: reading it is not what is measured."""
    return _request(host, port, "POST", path, headers, body)


def _get(host: Host, port: int, path: str, headers: dict[str, str]) -> dict[str, object]:
    with _request(host, port, "GET", path, headers, b"") as call, call.makefile("rb") as answer:
        head, _, body = answer.read().partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise OSError(f"{path}: {head[:100]!r}")
    parsed: dict[str, object] = json.loads(body)
    return parsed


def _close(calls: list[socket.socket]) -> None:
    while calls:
        calls.pop().close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
