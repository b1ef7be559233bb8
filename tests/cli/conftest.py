"""Commands run in this process, on a pretended device; nothing is started."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

import p2psync.node
from p2psync.cli.main import main
from p2psync.node.control import serve_control
from p2psync.node.home import Home, HomeState
from tests.cli.fake import FakeOperations, offline


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of an initialised device."""
    made = Home(tmp_path / "home")
    made.create()
    made.save_state(HomeState())
    return made.path


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `p2psync --home HOME WORDS…` and return what it did."""

    def command(*words: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            main(["--home", str(home), *words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return command


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOperations:
    """The operations on a home without a node."""
    operations = FakeOperations()
    monkeypatch.setattr(p2psync.node, "open_offline", lambda home: offline(home, operations), raising=False)
    return operations


@pytest.fixture
def node(home: Path) -> Iterator[FakeOperations]:
    """The operations of a "running node": a real control API in another thread."""
    with running(home) as operations:
        yield operations


@contextlib.contextmanager
def running(home: Path) -> Iterator[FakeOperations]:
    operations = FakeOperations()
    ready = threading.Event()
    stop: list[Callable[[], None]] = []

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, operations, home)
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(10)
        yield operations
    finally:
        stop[0]()
        thread.join(10)
