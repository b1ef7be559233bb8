"""Scratch copies of the working tree: bugs are planted there and nowhere else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant

HERE = Path(__file__).parents[2]
TEST_LIMIT_S = 120
"""Seconds one test may take: a mutant that makes a test hang is killed by the test's time-out."""
_PASSED, _FAILED = 0, 1
"""Exit codes of pytest; any other means that the tests could not be run."""


class BrokenRun(Exception):  # noqa: N818 - a state of the machinery, not of a test
    """The tests could not be run, so they have said nothing."""


@dataclass(frozen=True)
class Verdict:
    """What a run of tests said. `failed` names the first test that failed, empty when all passed."""

    failed: str
    output: str


class Scratch:
    """A copy of the tree in which the copy of p2psync is the one that is imported."""

    def __init__(self, directory: Path, *, committed: bool = False) -> None:
        """Copy the tree as it stands, or as it was committed last."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        if committed:
            archive = _git("archive", "HEAD")
            subprocess.run(["tar", "-x", "-C", directory], input=archive, check=True)
        else:
            names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split(b"\0")
            for name in sorted({os.fsdecode(n) for n in names if n}):
                if (HERE / name).is_file():
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(HERE / name, directory / name)
        # Compiled files checked by hash: a planted bug may have the size and the time of what it replaces.
        self._python("-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "p2psync")
        found = Path(self._python("-c", "import p2psync; print(p2psync.__file__)").stdout.strip())
        if not found.is_relative_to(directory):
            raise BrokenRun(f"the tests would import {found}, not the copy in {directory}")

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """The copy with one bug in it."""
        before = {edit.file: (self.directory / edit.file).read_bytes() for edit in mutant.edits}
        try:
            for edit in mutant.edits:
                edit.apply(self.directory)
            yield
        finally:
            for file, text in before.items():
                (self.directory / file).write_bytes(text)

    def run(self, tests: Sequence[str], limit_s: float) -> Verdict:
        """Run tests until the first fails. BrokenRun when pytest could not, or was not done after `limit_s`."""
        options = ("-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", "--hypothesis-seed=0")
        try:
            done = self._python("-m", "pytest", *options, f"--timeout={TEST_LIMIT_S}", *tests, limit_s=limit_s)
        except subprocess.TimeoutExpired as error:
            raise BrokenRun(f"nothing was decided after {limit_s:.0f} s: {error.stdout!r:.2000}") from None
        output = done.stdout + done.stderr
        if done.returncode not in {_PASSED, _FAILED}:
            raise BrokenRun(output)
        failed = next((line.split(" ", 1)[1] for line in output.splitlines() if line.startswith(_RED)), "")
        if bool(failed) is not bool(done.returncode):
            raise BrokenRun(output)
        test, _, why = failed.partition(" - ")
        return Verdict(f"{test} (time-out)" if "Timeout" in why else test, output)

    def simulate(self, seeds: int, limit_s: float) -> Verdict:
        """Run that many simulated stories; the first that fails has noticed."""
        try:
            done = self._python("-m", "tests.simulation", "--seeds", str(seeds), limit_s=limit_s)
        except subprocess.TimeoutExpired:
            raise BrokenRun(f"{seeds} stories took more than {limit_s:.0f} s") from None
        output = done.stdout + done.stderr
        failed = next((line.partition(":")[0] for line in output.splitlines() if _STORY_FAILED.match(line)), "")
        if bool(failed) is not bool(done.returncode):
            raise BrokenRun(output)
        return Verdict(failed, output)

    def _python(self, *arguments: str, limit_s: float | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.directory), "HYPOTHESIS_STORAGE_DIRECTORY": os.devnull}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )


_RED = ("FAILED ", "ERROR ")
_STORY_FAILED = re.compile(r"seed \d+: FAILED")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, check=True).stdout
