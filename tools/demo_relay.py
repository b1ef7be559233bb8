"""The relay's demo: an account, devices that are never online together, a quota; compared by content hashes.

python -m tools.demo_relay [--files N] [--big MIB] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from p2psync.testing.processes import CommandFailedError, Device, difference
from tools.demo_stage import Homes, Relay, sketch, until, until_left

EMAIL = "ann@example.org"
LABEL = "library"
MIB = 1024 * 1024
SYNC_TIMEOUT = 150.0
PLAIN_WIDTH = 130
"""Columns of the table where there is no terminal to ask."""


@dataclass(frozen=True)
class Step:
    """One line of the table: what was done, how long it took, and what went through the relay."""

    what: str
    seconds: float
    carried: int
    note: str


class Demo:
    """One relay, one account, three devices, and what happens to them."""

    def __init__(self, base: Path, console: Console, homes: Homes, files: int, big: int) -> None:
        self.console = console
        self.base = base
        self.homes = homes
        self.files = files
        self.big = big
        self.steps: list[Step] = []
        self.failed = False
        # What was there first fits, the next large file does not.
        free = big + files * 18 * 1024 + 12 * MIB
        self.extra = max(big // 4, 24 * MIB)
        self.relay = Relay(
            base / "relay",
            f'[free]\nbytes = {free}\n[[plans]]\nname = "home"\nprice = "2 EUR a month"\nbytes = "10GB"\n',
        )
        self.desk, self.laptop, self.tablet = (Device(base, name) for name in ("desk", "laptop", "tablet"))
        self.here, self.there, self.third = (base / name / LABEL for name in ("desk", "laptop", "tablet"))
        self.password, self.recovery = base / "password", base / "recovery-key"
        self.random = random.Random(7)  # noqa: S311  (content to move, no secret)

    def run(self) -> bool:
        """All steps in order; True when every comparison was equal."""
        try:
            self._begin()
            self._leave_and_find()
            self._way_back()
            self._quota()
            self._behind_nats()
            self._end()
        except BaseException:
            self.failed = True
            raise
        finally:
            for process in (self.desk, self.laptop, self.tablet, self.relay):
                process.kill()
            self._print()
        return not self.failed

    def _step(
        self,
        what: str,
        action: Callable[[], str],
        *,
        compare: tuple[Path, Path] | None = None,
        carried: Callable[[], int] | None = None,
    ) -> None:
        self.console.print(f"… {what}", style="dim")
        carried = carried or self.relay.carried
        before, start = carried(), time.monotonic()
        note = action()
        seconds = time.monotonic() - start
        different = difference(*compare) if compare is not None else []
        for line in different[:10]:
            self.console.print(f"  differs: {line}", style="red", markup=False)
        self.failed |= bool(different)
        self.steps.append(Step(what, seconds, carried() - before, "DIFFERENT" if different else note))

    # ── an account ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _begin(self) -> None:
        who = ("--email", EMAIL, "--password-file", str(self.password))
        self.password.write_text("correct horse battery staple\n")

        def start() -> str:
            if not self.homes.why_not:
                self.relay.listen = f"{self.homes.relay}:0"
            self.relay.start()
            return self.relay.ready_line.partition("mail to ")[2].replace(str(self.base), "…")

        def sign_up() -> str:
            self.desk.init()
            self.desk.start()
            self.desk.run("account", "signup", "--relay", self.relay.url, *who, "--recovery-file", str(self.recovery))
            self.desk.run("account", "verify", self.relay.mailed_code())
            return "code from the mail in the outbox"

        self._step("start a relay", start)
        self._step("sign up and verify", sign_up)

    def _join(self, device: Device, place: Path) -> str:
        """A device that has met nobody joins the account by the recovery key and takes the folder it is offered."""
        device.init()
        device.start()
        who = ("--email", EMAIL, "--password-file", str(self.password), "--recovery-file", str(self.recovery))
        device.run("account", "login", "--relay", self.relay.url, *who)
        device.until_offered(LABEL)
        place.parent.mkdir(exist_ok=True)
        device.run("folder", "accept", LABEL, str(place))
        policy = device.json("folder", "mailbox", LABEL)["policy"]
        count = device.json("account", "status")["devices"]
        return f"{count} devices by the signed chain; the folder was offered from there; mailbox: {policy}"

    # ── never online together ───────────────────────────────────────────────────────────────────────────────────────
    def _leave_and_find(self) -> None:
        def begin() -> str:
            self.here.mkdir(parents=True)
            self.desk.run("folder", "add", str(self.here), "--label", LABEL)
            self.desk.run("folder", "mailbox", LABEL, "always")
            until(self.desk, "the recovery key is an owner", lambda: len(self._members()) == 2, SYNC_TIMEOUT)
            return f"members: {' and the '.join(self._members())}; the desk is alone"

        def leave() -> str:
            size = self._write_files() + self._write_big("big.bin", self.big)
            sent = self._leave(self.desk, size)
            return f"{self.files} files and one of {self.big // MIB} MiB, {sent / MIB:.1f} MiB sealed; desk stops"

        self._step("desk adds a folder and its mailbox", begin)
        self._step("desk leaves all of it at the relay", leave)
        self._step("laptop joins by the recovery key", lambda: self._join(self.laptop, self.there))
        self._step("laptop finds it there", lambda: self._find(self.laptop), compare=self._both)

    def _way_back(self) -> None:
        def edit() -> str:
            names = sorted((self.there / "docs").rglob("*.txt"))
            for path in names[:20]:
                with path.open("a") as file:
                    file.write("edited on the laptop\n")
            with (self.there / "big.bin").open("r+b") as file:
                file.seek(self.big // 2)
                file.write(self.random.randbytes(4096))
            names[20].rename(self.there / "renamed.txt")
            for path in names[21:31]:
                path.unlink()
            self._leave(self.laptop, 4096)
            return "20 edits, 4 KiB inside the large file, a rename, 10 deletes; laptop stops"

        def third() -> str:
            note = self._find(self.tablet, self.there, self.third)
            self.tablet.stop()
            return note

        self._step("laptop edits and leaves that", edit)
        self._step("tablet joins by the recovery key", lambda: self._join(self.tablet, self.third))
        self._step("tablet finds everything there", third, compare=(self.there, self.third))
        self._step("desk finds it", lambda: self._find(self.desk), compare=self._both)

    # ── a quota ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _quota(self) -> None:
        def hit() -> str:
            self._write_big("extra.bin", self.extra)
            self.desk.run("folder", "scan", LABEL, timeout=SYNC_TIMEOUT)

            def refused() -> str:
                problems = self.desk.folder(LABEL)["problems"]
                return next((str(p["text"]) for p in problems if p["code"] == "relay-quota"), "")

            return str(until(self.desk, "the relay refuses for want of room", refused, SYNC_TIMEOUT))

        def lift() -> str:
            self.relay.admin("plans", "set", EMAIL, "home")
            usage = self.desk.json("account", "status")["usage"]
            self._leave(self.desk, self.extra)
            return f"{usage['plan']}: {usage['limit'] // 10**9} GB; the rest goes through"

        self._step("over the free allowance", hit)
        self._step("a plan lifts it", lift)
        self._step("laptop finds the rest", lambda: self._find(self.laptop), compare=self._both)

    # ── no way to each other ────────────────────────────────────────────────────────────────────────────────────────
    def _behind_nats(self) -> None:
        if self.homes.why_not:
            self.console.print(f"no forwarding: two homes cannot be made here: {self.homes.why_not}", markup=False)
            return

        def meet() -> str:
            # What comes now has not waited in the mailbox.
            self.laptop.run("folder", "mailbox", LABEL, "never")
            self.laptop.stop()
            for number, device in enumerate((self.desk, self.laptop)):
                device.prefix = self.homes.prefix(number)
                device.listen = ":0"
                device.start()
            self.desk.run("folder", "mailbox", LABEL, "never")
            until(self.desk, "connected through the relay", lambda: self._path() == "relay", SYNC_TIMEOUT)
            return "they know each other by the account, and have no way to each other; via: relay"

        def forward() -> str:
            size = self._write_big("forwarded.bin", self.extra)
            (self.there / "renamed.txt").write_text("from the laptop\n")
            for device in (self.desk, self.laptop):
                device.run("folder", "scan", LABEL, timeout=SYNC_TIMEOUT)
            self.desk.wait(SYNC_TIMEOUT)
            path = self._path()
            self.failed |= path != "relay"
            return f"{size // MIB} MiB one way, an edit the other; their own sealed channel, via: {path}"

        self._step("two homes behind NATs", meet)
        self._step("both online, forwarded by the relay", forward, compare=self._both, carried=self._on_the_wire)

    def _path(self) -> str | None:
        """How the desk reaches the laptop."""
        return next((str(d["via"]) for d in self._known() if d["id"] == self.laptop.id and d["connected"]), None)

    def _on_the_wire(self) -> int:
        """Bytes the desk's connections have carried both ways."""
        return sum(d["sent_bytes"] + d["received_bytes"] for d in self._known())

    def _known(self) -> list[dict[str, Any]]:
        return list(self.desk.status()["devices"])

    def _end(self) -> None:
        def check() -> str:
            for device in (self.desk, self.laptop):
                device.stop()
            self.relay.stop()
            found = json.loads(self.relay.admin("check", "--json"))
            return f"{found['chunks']} chunks, {found['size'] / MIB:.1f} MiB, nothing lost, all figures right"

        self._step("the relay's own check", check)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _leave(self, device: Device, least: int) -> int:
        """Have a device leave everything at the relay, then stop it; bytes it has sent since it was started."""
        device.run("folder", "scan", LABEL, timeout=SYNC_TIMEOUT)
        sent = until_left(device, LABEL, least, SYNC_TIMEOUT)
        device.stop()
        return sent

    def _find(self, device: Device, one: Path | None = None, other: Path | None = None) -> str:
        """Have a device online alone; return once it has everything. Its folder and the one it is to equal."""
        one, other = one or self.here, other or self.there
        if device.process is None:
            device.start()
        until(device, "everything has come", lambda: sketch(one) == sketch(other), SYNC_TIMEOUT)
        until(device, "nothing is in need", lambda: device.folder(LABEL)["need_files"] == 0, SYNC_TIMEOUT)
        return f"{len(sketch(one))} files, no other device was there"

    @property
    def _both(self) -> tuple[Path, Path]:
        return self.here, self.there

    def _members(self) -> list[str]:
        return [str(member["name"]) for member in self.desk.json("folder", "members", LABEL)]

    def _write_files(self) -> int:
        """Files of 1 to 32 KiB in a few directories; returns their size."""
        total = 0
        for number in range(self.files):
            path = self.here / "docs" / f"{number % 10}" / f"note {number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            total += path.write_bytes(self.random.randbytes(self.random.randrange(1024, 32 * 1024)))
        return total

    def _write_big(self, name: str, size: int) -> int:
        with (self.here / name).open("wb") as file:
            for _ in range(size // MIB):
                file.write(self.random.randbytes(MIB))
        return size

    def _print(self) -> None:
        table = Table(title="p2psync relay demo: one account, three devices, one relay", title_justify="left")
        for heading, justify in (("step", "left"), ("seconds", "right"), ("MiB at the relay", "right")):
            table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column("what")
        for step in self.steps:
            style = "red" if step.note == "DIFFERENT" else None
            table.add_row(step.what, f"{step.seconds:.2f}", f"{step.carried / MIB:.2f}", step.note, style=style)
        self.console.print(table)
        verdict = (
            "something is not as it must be" if self.failed else "all trees were identical by content hash each time"
        )
        self.console.print(verdict, style="bold red" if self.failed else "bold green")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo in a fresh temporary directory; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_relay", description=__doc__)
    parser.add_argument("--files", type=int, default=500, help="small files (default 500)")
    parser.add_argument("--big", type=int, default=300, metavar="MIB", help="size of the large file (default 300)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new directory and leave it there")
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    base = options.keep or Path(tempfile.mkdtemp(prefix="p2psync-demo-relay-"))
    base.mkdir(parents=True, exist_ok=True)
    # Its processes are sessions of their own: they must be ended with us, whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        if options.keep is None:
            stack.callback(shutil.rmtree, base, ignore_errors=True)
        homes = stack.enter_context(Homes())
        try:
            return 0 if Demo(base, console, homes, options.files, options.big * MIB).run() else 1
        except CommandFailedError as error:
            console.print(f"the demo failed: {error}", style="bold red", markup=False)
            return 1


if __name__ == "__main__":
    sys.exit(main())
