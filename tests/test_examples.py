"""The programs in examples/ run as they stand there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import devices_in

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str | Path) -> str:
    """Run an example to its end; what it printed."""
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_tested() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == {"embed.py", "two_nodes.py", "watch_events.py"}


def test_two_nodes(tmp_path: Path) -> None:
    printed = run("two_nodes.py", tmp_path)
    assert "identical: True" in printed
    assert "reply.txt: Hello from the laptop" in printed
    assert (tmp_path / "laptop" / "hello.txt").read_text() == "Hello from the desk"


def test_embed(tmp_path: Path) -> None:
    for _ in range(2):
        printed = run("embed.py", tmp_path / "home", tmp_path / "notes")
        assert printed == "notes: 5 files, idle\n"


def test_watch_events(tmp_path: Path) -> None:
    with devices_in(tmp_path) as make:
        device = make("one")
        (tmp_path / "docs").mkdir()
        device.run("folder", "add", tmp_path / "docs")
        (tmp_path / "docs" / "new.txt").write_text("seen")
        device.run("folder", "scan", "docs")
        printed = run("watch_events.py", device.home, "4")
        assert len(printed.splitlines()) == 4
        assert "node.ready" in printed
        assert "file.changed docs new.txt" in printed
