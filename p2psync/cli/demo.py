"""`p2psync demo`: the main job on this machine, start to end, checked by content hashes after every step."""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from p2psync.testing.processes import CommandFailedError, Device, difference, introduce

BIG = 256 * 1024 * 1024
MIB = 1024 * 1024
DISCOVERY_TIMEOUT = 10.0
SYNC_TIMEOUT = 180.0
PLAIN_WIDTH = 120
"""Columns of the table where there is no terminal to ask."""


@dataclass(frozen=True)
class Step:
    """One line of the table: what was done, how long until both trees were equal, and what went over the wire."""

    what: str
    seconds: float
    moved: int
    note: str


class Demo:
    """Two nodes on this machine and what happens to them."""

    def __init__(self, base: Path, console: Console, files: int | None, big: int) -> None:
        self.console = console
        self.base = base
        self.files = files
        self.big = big
        self.steps: list[Step] = []
        self.failed = False
        self.left = Device(base, "laptop", listen=":0", discovery=True)
        self.right = Device(base, "desktop", listen=":0", discovery=True)
        self.here, self.there = base / "laptop" / "library", base / "desktop" / "library"
        self.random = random.Random(7)  # noqa: S311  (content to move, no secret)

    def run(self) -> bool:
        """All steps in order; True when every comparison was equal."""
        try:
            self._meet()
            self._first_sync()
            self._changes()
            self._offline_conflict()
            self._crash()
        finally:
            for device in (self.left, self.right):
                device.kill()
            self._print()
        return not self.failed

    def _step(self, what: str, action: Callable[[], str], *, sync: bool = True) -> None:
        self.console.print(f"… {what}", style="dim")
        before = self._moved()
        start = time.monotonic()
        note = action()
        if sync:
            self.left.wait(SYNC_TIMEOUT)
        seconds = time.monotonic() - start
        different = difference(self.here, self.there) if sync else []
        for line in different[:10]:
            self.console.print(f"  differs: {line}", style="red")
        self.failed |= bool(different)
        verdict = "DIFFERENT" if different else note
        self.steps.append(Step(what, seconds, max(0, self._moved() - before), verdict))

    def _moved(self) -> int:
        """Bytes the laptop's connections have carried both ways; a restart begins at zero."""
        if self.left.process is None:
            return 0
        return sum(d["sent_bytes"] + d["received_bytes"] for d in self.left.status()["devices"])

    def _meet(self) -> None:
        def start() -> str:
            for device in (self.left, self.right):
                device.init()
                device.start()
            return "two homes, two processes"

        def pair() -> str:
            code = self.left.pairing_code()
            self.right.run("pair", code, timeout=DISCOVERY_TIMEOUT + 30)
            return "by code, found by mDNS"

        def pair_by_address() -> str:
            code = self.left.pairing_code()
            self.right.run("pair", code, "--address", self.left.address)
            introduce(self.left, self.right)
            return "by code, at a static address: no multicast on this machine"

        self._step("start two devices", start, sync=False)
        try:
            self._step("pair them", pair, sync=False)
            self.left.connected(self.right, DISCOVERY_TIMEOUT)
        except CommandFailedError as error:
            self.console.print(f"discovery found nothing ({str(error).splitlines()[-1]}); using addresses", style="dim")
            self.left.end_pairing()
            self._step("pair them", pair_by_address, sync=False)
            self.left.connected(self.right)

    def _first_sync(self) -> None:
        def share() -> str:
            self.there.parent.mkdir(parents=True)
            copied = copy_library(self.here, self.files)
            self.left.run("folder", "add", str(self.here), "--label", "library")
            self.left.run("folder", "share", "library", "--with", self.right.id)
            self.right.until_offered("library")
            self.right.run("folder", "accept", "library", str(self.there))
            return f"{copied} files of the standard library"

        def big_file() -> str:
            with (self.here / "big.bin").open("wb") as file:
                for _ in range(self.big // MIB):
                    file.write(self.random.randbytes(MIB))
            return f"{self.big // MIB} MiB of random bytes"

        self._step("first sync of a real tree", share)
        self._step("a large file", big_file)

    def _changes(self) -> None:
        def edit() -> str:
            names = [p for p in sorted(self.here.rglob("*.py")) if p.is_file()]
            for number, path in enumerate(names[:40]):
                side = self.here if number % 2 else self.there
                with (side / path.relative_to(self.here)).open("a") as file:
                    file.write(f"# edit {number}\n")
            return "20 files on each side"

        def patch() -> str:
            with (self.here / "big.bin").open("r+b") as file:
                file.seek(self.big // 2)
                file.write(self.random.randbytes(4096))
            return "4 KiB inside the large file"

        def rename() -> str:
            (self.there / "big.bin").rename(self.there / "renamed.bin")
            (self.there / "email").rename(self.there / "post")
            return "the large file and a directory; no content moves"

        def delete() -> str:
            shutil.rmtree(self.there / "json")
            (self.here / "this.py").unlink()
            return "a directory there, a file here"

        self._step("edits on both sides", edit)
        self._step("an edit in place", patch)
        self._step("renames", rename)
        self._step("deletes", delete)

    def _offline_conflict(self) -> None:
        def conflict() -> str:
            self.right.stop()
            (self.here / "abc.py").write_text("# from the laptop\n")
            (self.there / "abc.py").write_text("# from the desktop\n")
            self.right.start()
            self.left.connected(self.right)
            self.left.wait(SYNC_TIMEOUT)
            copies = self.left.json("conflicts")
            self.failed |= len(copies) != 1
            return (
                f"{len(copies)} conflict copy: {os.path.basename(copies[0]['path'])}" if copies else "NO CONFLICT COPY"
            )

        self._step("the same file edited on both, offline", conflict)

    def _crash(self) -> None:
        def crash() -> str:
            with (self.here / "second.bin").open("wb") as file:
                for _ in range(self.big // MIB):
                    file.write(self.random.randbytes(MIB))
            self.left.run("folder", "scan", "library", timeout=SYNC_TIMEOUT)
            partial = self.there / ".p2psync" / "tmp"
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not (self.there / "second.bin").exists():
                if any(p.stat().st_blocks * 512 > self.big // 8 for p in partial.glob("*.part")):
                    break
            self.right.kill()
            arrived = (self.there / "second.bin").exists()
            self.right.start()
            self.left.connected(self.right)
            return "killed after the transfer" if arrived else "kill -9 in mid-transfer, restart, resumed"

        self._step("a crash", crash)

    def _print(self) -> None:
        table = Table(title="p2psync demo: two devices, one folder", title_justify="left")
        for heading in ("step", "seconds", "MiB on the wire", "what"):
            table.add_column(heading, justify="right" if heading[0] in "sM" and heading != "step" else "left")
        for step in self.steps:
            style = "red" if step.note == "DIFFERENT" else None
            table.add_row(step.what, f"{step.seconds:.2f}", f"{step.moved / MIB:.2f}", step.note, style=style)
        self.console.print(table)
        verdict = "the trees differ" if self.failed else "both trees are identical by content hash after every step"
        self.console.print(verdict, style="bold red" if self.failed else "bold green")


def copy_library(target: Path, limit: int | None) -> int:
    """Copy the interpreter's standard library (without caches and installed packages); returns how many files."""
    source = Path(sysconfig.get_paths()["stdlib"])
    count = 0
    for directory, names, files in os.walk(source):
        names[:] = sorted(n for n in names if n not in {"__pycache__", "site-packages", "dist-packages"})
        relative = Path(directory).relative_to(source)
        (target / relative).mkdir(parents=True, exist_ok=True)
        for name in sorted(files):
            if limit is not None and count >= limit:
                return count
            path = Path(directory, name)
            if path.is_file():
                shutil.copyfile(path, target / relative / name)
                count += 1
    return count


def main(keep: Path | None = None, files: int | None = None, big: int = BIG) -> int:
    """Run the demo in a fresh temporary directory (or in `keep`, left there); returns the exit code."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    base = keep if keep is not None else Path(tempfile.mkdtemp(prefix="p2psync-demo-"))
    base.mkdir(parents=True, exist_ok=True)
    (base / "laptop").mkdir()
    try:
        return 0 if Demo(base, console, files, big).run() else 1
    except CommandFailedError as error:
        console.print(f"the demo failed: {error}", style="bold red", markup=False)
        return 1
    finally:
        if keep is None:
            shutil.rmtree(base, ignore_errors=True)
