"""Where the relay's demo plays: a relay whose mail is read from its outbox, and two homes that only reach the relay."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any, Self

from p2psync.testing.processes import CommandFailedError, Device
from tests.relay.process import RelayProcess

MAIL_TIMEOUT = 30.0
POLL = 0.2
STEADY = 4
"""Looks in a row that must show nothing waiting: a change is noticed a moment after it is made."""


class Relay(RelayProcess):
    """The relay process of the demo."""

    def admin(self, *arguments: str) -> str:
        """Run `p2psync-relay admin ARGUMENTS`; what it printed. CommandFailedError when it fails."""
        result = self.run("admin", *arguments)
        if result.returncode:
            raise CommandFailedError(f"relay: admin {arguments} ended with {result.returncode}\n{result.stderr}")
        return result.stdout

    def mailed_code(self) -> str:
        """The code in the newest message of the outbox."""
        deadline = time.monotonic() + MAIL_TIMEOUT
        while time.monotonic() < deadline:
            for file in sorted((self.data / "outbox").glob("*.eml"), key=lambda f: f.stat().st_mtime_ns, reverse=True):
                text = message_from_bytes(file.read_bytes(), policy=default).get_content()
                if found := re.search(r"code is (\S+)", text):
                    return found[1]
            time.sleep(POLL)
        raise CommandFailedError(f"relay: no mail came within {MAIL_TIMEOUT} s")

    def carried(self) -> int:
        """Bytes of bodies that went through it both ways, by its access log."""
        if not self.log.exists():
            return 0
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return sum(line["received"] + line["sent"] for line in lines if line["event"] == "request")


class Homes:
    """Two network namespaces, each with a cable to the relay's machine and no way to the other, as behind two NATs."""

    def __init__(self) -> None:
        # Demos that run at the same time, or were killed and left theirs, are not in each other's way.
        self._first = os.getpid() % 127 * 2
        self.relay = f"10.98.{self._first}.1"
        """The relay's address, as both homes see it."""
        self.names = (f"p2pd{os.getpid()}a", f"p2pd{os.getpid()}b")
        self.why_not = ""
        """Why there are none on this machine; empty when there are."""

    def __enter__(self) -> Self:
        if shutil.which("ip") is None:
            self.why_not = "there is no `ip` command"
            return self
        try:
            for number, name in enumerate(self.names, start=self._first):
                _ip("netns", "add", name)
                _ip("link", "add", name, "type", "veth", "peer", "name", "wan", "netns", name)
                _ip("addr", "add", f"10.98.{number}.1/30", "dev", name)
                _ip("link", "set", name, "up")
                _ip("-n", name, "addr", "add", f"10.98.{number}.2/30", "dev", "wan")
                for device in ("lo", "wan"):
                    _ip("-n", name, "link", "set", device, "up")
            _ip("-n", self.names[1], "route", "add", self.relay, "dev", "wan")
        except subprocess.CalledProcessError as error:
            self.why_not = error.stderr.decode().strip()
            self.__exit__()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)  # noqa: S603, S607

    def prefix(self, number: int) -> tuple[str, ...]:
        """What goes before a command that is to run in one of them."""
        return () if self.why_not else ("ip", "netns", "exec", self.names[number])


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)  # noqa: S603, S607


def until(device: Device, what: str, look: Callable[[], Any], timeout: float) -> Any:
    """Poll until `look` gives something; CommandFailedError with the device's status when it does not in time."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > deadline:
            raise CommandFailedError(
                f"{device.name}: not within {timeout} s: {what}\n{json.dumps(device.status(), indent=1)}"
            )
        time.sleep(POLL)
    return found


def until_left(device: Device, label: str, least: int, timeout: float) -> int:
    """Wait until nothing of a folder waits for its mailbox, everybody can read there, and `least` bytes were sent.

    Returns how many were sent.
    """
    steady = 0

    def look() -> bool:
        nonlocal steady
        box = device.json("folder", "mailbox", label)
        rests = (box["waiting"], box["activity"], box["keyless"]) == (0, "idle", [])
        steady = steady + 1 if rests and box["sent"] >= least else 0
        return steady >= STEADY

    until(device, f"everything of {label} is at the relay", look, timeout)
    return int(device.json("folder", "mailbox", label)["sent"])


def sketch(root: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files: tells cheaply that two trees cannot be equal yet."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and ".p2psync" not in path.parts
    }
