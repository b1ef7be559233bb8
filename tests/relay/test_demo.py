"""The relay's demo, small: what people are shown first must work, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.large
@pytest.mark.e2e
def test_the_demo_runs_to_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tools.demo_relay", "--files", "40", "--big", "8"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "are taken" in result.stdout
    assert "identical by content hash" in result.stdout
    assert list(tmp_path.iterdir()) == []
