"""`init`, `run` and what only a process or a terminal shows."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2psync.node
from p2psync.errors import StateError
from p2psync.node.views import Identity
from tests.cli.conftest import Run
from tests.cli.fake import ME, FakeOperations

NODE = """
import sys, trio
import p2psync.node
from p2psync.errors import StateError

async def run(home, *, listen, discovery, on_ready):
    print(home, listen, discovery, file=sys.stderr)
    if listen == ["used:1"]:
        raise OSError(98, "Address already in use")
    if listen == ["other:1"]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise StateError("another node runs on this home")
    on_ready("AAAAAAA", listen or ["0.0.0.0:22067"])
    try:
        await trio.sleep_forever()
    finally:
        print("clean end", file=sys.stderr)

p2psync.node.run = run
from p2psync.cli.main import main
main()
"""


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", NODE, "--home", str(home), "run", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_run_says_ready_once_and_stops_cleanly(home: Path, how: signal.Signals) -> None:
    with start(home, "--listen", "a:1", "--listen", "b:2", "--no-discovery") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready AAAAAAA listening on a:1 b:2\n"
        process.send_signal(how)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "")
    assert f"{home} ['a:1', 'b:2'] False" in err
    assert "clean end" in err


def test_run_leaves_the_rest_to_the_settings(home: Path) -> None:
    with start(home) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready ")
        process.terminate()
        assert f"{home} None None" in process.communicate(timeout=10)[1]


@pytest.mark.parametrize(
    ("listen", "text"), [("used:1", "Address already in use"), ("other:1", "another node runs on this home")]
)
def test_run_that_fails_says_why_in_one_line(home: Path, listen: str, text: str) -> None:
    with start(home, "--listen", listen) as process:
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[1:] == [f"error: {text}"]


def test_run_with_a_bad_setting_names_it(home: Path, run: Run) -> None:
    (home / "config.toml").write_text("[log]\nlevel = 3\n")
    result = run("run")
    assert (result.code, result.out) == (1, "")
    assert "config.toml" in result.err
    assert "line 2" in result.err


def test_init_prints_the_id_and_refuses_a_second_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []

    def init(home: Path, name: str | None, passphrase: str | None) -> Identity:
        if made:
            raise StateError("there is a device here already; `p2psync device id` shows its ID")
        made.append((name, passphrase))
        return ME

    monkeypatch.setattr(p2psync.node, "init", init, raising=False)
    monkeypatch.setenv("P2PSYNC_PASSPHRASE", "horse")
    assert json.loads(run("init", "--name", "desk", "--passphrase", "--json").out)["id"] == ME.id
    result = run("init")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: there is a device here already")
    assert made == [("desk", "horse")]


# ── terminals and pipes ─────────────────────────────────────────────────────────────────────────────────────────────
class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
        command = [sys.executable, "-m", "p2psync.cli", *words]
        self.process = subprocess.Popen(
            # As shells start what has the terminal: whoever runs these tests may ignore the signal.
            ["env", "--default-signal=INT", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def until(self, text: bytes) -> None:
        deadline = time.monotonic() + 10
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_watch_shows_progress_until_interrupted(node: FakeOperations, home: Path, terminals: list[Terminal]) -> None:
    terminals.append(terminal := Terminal("--home", str(home), "status", "--watch"))
    terminal.until(b"photos")
    terminal.until("━".encode())
    terminal.until(b"2 s left")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(30) == 130
    assert b"Traceback" not in terminal.seen


def test_pair_on_a_terminal_counts_down(node: FakeOperations, home: Path, terminals: list[Terminal]) -> None:
    node.paired.clear()
    terminals.append(terminal := Terminal("--home", str(home), "pair"))
    terminal.until(b"Pairing code")
    terminal.until(b"7-crossover-clockwork")
    terminal.until(b"left (Ctrl-C withdraws the code)")
    node.paired.set()
    terminal.until(b"Paired with laptop (LAPTOPX).")
    assert terminal.process.wait(30) == 0


def test_json_of_an_open_pairing_comes_before_the_other_side(node: FakeOperations, home: Path) -> None:
    node.paired.clear()
    command = [sys.executable, "-m", "p2psync.cli", "--home", str(home), "pair", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"code": "7-crossover-clockwork", "expires_s": 300.0}
        node.paired.set()
        assert process.communicate(timeout=10)[0] == ""
    assert process.returncode == 0


def test_a_reader_that_leaves_is_no_traceback(node: FakeOperations, home: Path) -> None:
    command = [sys.executable, "-m", "p2psync.cli", "--home", str(home), "status", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        err = process.communicate(timeout=10)[1]
    assert (process.returncode, err) == (1, "")


def test_verbose_shows_where_an_error_comes_from(home: Path) -> None:
    command = [sys.executable, "-m", "p2psync.cli", "--home", str(home), "--verbose", "wait"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: no node runs on this home; start it with: p2psync run"


def test_the_relay_has_a_command_of_its_own() -> None:
    command = [sys.executable, "-c", "from relay.cli import main; main()"]
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, timeout=20)
    assert (result.returncode, result.stdout) == (0, f"p2psync-relay {p2psync.__version__}\n")
    assert subprocess.run([*command, "admin"], capture_output=True, check=False, timeout=20).returncode == 2


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("--version", {"trio", "rich", "msgspec", "p2psync.node"}),
        ("device id", {"rich", "hypercorn", "lmdb", "watchdog", "zeroconf", "asyncio", "pydantic"}),
        ("status --json", {"rich", "hypercorn", "lmdb", "watchdog", "zeroconf", "asyncio", "pydantic"}),
    ],
)
def test_commands_load_only_what_they_use(node: FakeOperations, home: Path, words: str, absent: set[str]) -> None:
    program = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, sep='\\n'))\n"
        f"from p2psync.cli.main import main; main(['--home', {str(home)!r}, *{words.split()!r}])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert absent.isdisjoint(result.stdout.split())
