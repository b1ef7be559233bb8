"""Real nodes as processes of this machine, driven through the command contract as a person or a script would."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

READY_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0


class CommandFailedError(AssertionError):
    """A command ended with another exit code than was asked for; the text holds what it printed."""


class Device:
    """One device: a home directory, and a node process while it is started."""

    def __init__(
        self,
        base: Path,
        name: str,
        *,
        listen: str = "127.0.0.1:0",
        discovery: bool = False,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """`prefix` goes before every command, e.g. ("ip", "netns", "exec", NAME) to live in a network namespace."""
        self.name = name
        self.home = base / f"{name}.home"
        self.log = base / f"{name}.log"
        self.listen = listen
        self.discovery = discovery
        self.prefix = prefix
        self.process: subprocess.Popen[str] | None = None
        self.ready_line = ""
        self.id = ""
        self._pairing: subprocess.Popen[str] | None = None

    def command(self, *arguments: str | bytes | os.PathLike[str]) -> list[str | bytes | os.PathLike[str]]:
        """The full command line of `p2psync ARGUMENTS` on this device."""
        return [*self.prefix, sys.executable, "-m", "p2psync.cli", "--home", str(self.home), *arguments]

    def run(
        self,
        *arguments: str | bytes | os.PathLike[str],
        expect: int | None = 0,
        timeout: float = 60.0,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; CommandFailedError when its exit code is not `expect` (None: any)."""
        result = subprocess.run(  # noqa: S603  (our own command)
            self.command(*arguments),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            check=False,
        )
        if expect is not None and result.returncode != expect:
            raise CommandFailedError(
                f"{self.name}: {arguments} ended with {result.returncode}, not {expect}\n{result.stdout}{result.stderr}"
            )
        return result

    def json(self, *arguments: str | os.PathLike[str], timeout: float = 60.0) -> Any:
        """Run a command with --json and return its document."""
        return json.loads(self.run(*arguments, "--json", timeout=timeout).stdout)

    def init(self) -> str:
        """Make the device; returns its ID."""
        self.id = str(self.json("init", "--name", self.name)["id"])
        return self.id

    def start(self) -> None:
        """Start the node and wait for its "ready" line."""
        arguments = ["run", "--listen", self.listen]
        if not self.discovery:
            arguments.append("--no-discovery")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command(*arguments), stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self.ready_line = _first_line(self.process, READY_TIMEOUT)
        if not self.ready_line.startswith("ready"):
            self.kill()
            raise CommandFailedError(
                f"{self.name} did not become ready: {self.ready_line!r}\n{self.log.read_text()[-4000:]}"
            )

        # A restarted device must be found where it was.
        self.listen = self.ready_line.split()[-1]

    @property
    def address(self) -> str:
        """An address of this machine that the node listens on."""
        host, _, port = self.listen.rpartition(":")
        return f"127.0.0.1:{port}" if host in {"", "[::]", "0.0.0.0"} else self.listen  # noqa: S104

    def stop(self) -> int:
        """Ask the node to end with SIGTERM; returns its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node at once with SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(how)
        try:
            code = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise CommandFailedError(f"{self.name} did not stop within {STOP_TIMEOUT} s") from None
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None
        return code

    def status(self) -> Any:
        """`status --json`."""
        return self.json("status")

    def folder(self, label: str) -> Any:
        """One folder's part of the status."""
        return next(folder for folder in self.status()["folders"] if folder["label"] == label)

    def wait(self, timeout: float = 60.0) -> None:
        """`wait`: until every folder is identical on every connected member."""
        self.run("wait", "--timeout", str(timeout), timeout=timeout + 30)

    def until(self, what: str, condition: Callable[[Any], bool], timeout: float = 30.0) -> Any:
        """Poll the status until `condition` holds; returns that status."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            if condition(status):
                return status
            if time.monotonic() > deadline:
                raise CommandFailedError(f"{self.name}: not within {timeout} s: {what}\n{json.dumps(status, indent=1)}")
            time.sleep(0.05)

    def connected(self, other: Device, timeout: float = 30.0) -> None:
        """Wait until this device has a connection to `other`."""
        self.until(
            f"connected to {other.name}",
            lambda status: any(d["id"] == other.id and d["connected"] for d in status["devices"]),
            timeout,
        )

    def until_offered(self, folder: str, timeout: float = 30.0) -> None:
        """Wait until a folder with this label or ID has been offered."""
        deadline = time.monotonic() + timeout
        while not any(folder in {offer["id"], offer["label"]} for offer in self.json("folder", "offers")):
            if time.monotonic() > deadline:
                raise CommandFailedError(f"{self.name} was not offered {folder} within {timeout} s")
            time.sleep(0.05)

    def pairing_code(self, *options: str) -> str:
        """Open a pairing in the background, as `p2psync pair OPTIONS` does; returns the code it shows."""
        self._pairing = subprocess.Popen(  # noqa: S603
            self.command("pair", "--json", *options), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = _first_line(self._pairing, READY_TIMEOUT)
        match = re.search(r"\d+-[a-z]+-[a-z]+", line)
        if match is None:
            self.end_pairing()
            raise CommandFailedError(f"{self.name}: no pairing code in {line!r}")
        return match[0]

    def end_pairing(self) -> None:
        """Give up (or tidy up after) an open pairing."""
        if self._pairing is not None:
            self._pairing.terminate()
            self._pairing.communicate(timeout=STOP_TIMEOUT)
            self._pairing = None


def introduce(one: Device, other: Device) -> None:
    """Have two started devices know each other, by full ID and static address."""
    one.run("device", "add", other.id, "--name", other.name, "--address", other.address)
    other.run("device", "add", one.id, "--name", one.name, "--address", one.address)


def share(owner: Device, label: str, members: list[tuple[Device, Path]], role: str = "editor", wait: float = 30) -> str:
    """Share the owner's folder with connected devices and have each accept it at its path; returns the folder ID."""
    folder_id = str(owner.folder(label)["id"])
    for member, path in members:
        owner.run("folder", "share", label, "--with", member.id, "--role", role)
        member.until_offered(folder_id, wait)
        member.run("folder", "accept", folder_id, str(path))
    return folder_id


def tree(root: Path | bytes) -> dict[bytes, tuple[str, object]]:
    """What a person sees in a folder: path → (kind, content hash and executable bit, or symlink target)."""
    top = os.fsencode(root)
    return dict(_walk(top, b""))


def _walk(top: bytes, relative: bytes) -> Iterator[tuple[bytes, tuple[str, object]]]:
    with os.scandir(os.path.join(top, relative) if relative else top) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = os.path.join(relative, entry.name) if relative else entry.name
            if path == b".p2psync":
                continue
            if entry.is_symlink():
                yield path, ("symlink", os.readlink(entry.path))
            elif entry.is_dir():
                yield path, ("directory", None)
                yield from _walk(top, path)
            else:
                with open(entry.path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                yield path, ("file", (digest, bool(entry.stat().st_mode & stat.S_IXUSR)))


def difference(one: Path | bytes, other: Path | bytes) -> list[str]:
    """What differs between two trees, in words; empty when they are identical."""
    left, right = tree(one), tree(other)
    return [
        f"{path!r}: {left.get(path, 'missing')} / {right.get(path, 'missing')}"
        for path in sorted({*left, *right})
        if left.get(path) != right.get(path)
    ]


def _first_line(process: subprocess.Popen[str], timeout: float) -> str:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        return lines.get(timeout=timeout).rstrip("\n")
    except queue.Empty:
        return ""
