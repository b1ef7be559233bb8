"""The campaign: `python -m tests.fuzz [TARGET…]`; a failure again: `python -m tests.fuzz TARGET --replay FILE`."""

from __future__ import annotations

import argparse
import queue
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.fuzz import corpus
from tests.fuzz.rules import Judge, Target, Violation
from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import ENDED, Figures, Job, have_atheris

LEAST = 1000
"""Inputs that a target is given at least, however small its share."""
FOUND = Path("build/fuzz")
_STATUS = re.compile(r"#(\d+)\s+(\w+).*?ft: (\d+) corp: (\d+)")
_NO_ATHERIS = """atheris is not installed, so nothing can lead the inputs by coverage.
Install it where it has wheels (Linux on x86-64): pip install 'p2psync[fuzz]'
or say --blind: the same mutations without that lead."""


@dataclass
class Outcome:
    """What became of one target."""

    target: Target
    figures: Figures
    failed: bool
    failures: list[Path]

    def __str__(self) -> str:
        """The target's line."""
        if self.failed:
            replays = [f"python -m tests.fuzz {self.target.name} --replay {path}" for path in self.failures]
            return "\n".join([f"{self.target.name}: FAILED", *(f"  {replay}" for replay in replays)])
        f = self.figures
        return (
            f"{self.target.name:27} {f.inputs:9,} inputs {f.inputs / max(f.cpu_s, 1e-3):8,.0f}/s "
            f"{f.accepted / max(f.inputs, 1):5.0%} accepted {f.features:6} features {f.kept:5} kept "
            f"{f.slowest_ms:5.1f} ms slowest {f.growth >> 20:4} MiB"
        )


def main() -> int:
    """0 when no input broke a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"any of: {', '.join(TARGETS)}")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each target (slow ones get their share)")
    parser.add_argument("--full", action="store_true", help="all inputs for slow targets too")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="without coverage, where atheris cannot be had")
    parser.add_argument("--keep", action="store_true", help="put what was found worth keeping into tests/fuzz/corpus")
    parser.add_argument("--state", type=Path, help="directory of what is done: cut off, a campaign goes on")
    parser.add_argument("--replay", type=Path, help="feed this file to the one TARGET and show what happens")
    options = parser.parse_args()
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are: {', '.join(TARGETS)}")
    targets = [TARGETS[name] for name in options.targets] or list(TARGETS.values())
    if options.replay is not None:
        return replay(targets[0], options.replay.read_bytes())
    if not options.blind and not have_atheris():
        print(_NO_ATHERIS, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        return _campaign(targets, options, options.state or Path(scratch))


def _campaign(targets: list[Target], options: argparse.Namespace, state: Path) -> int:
    workers: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
    for _ in range(options.jobs):
        workers.put(_start_worker(blind=options.blind))

    def run(target: Target) -> Outcome:
        worker = workers.get()
        try:
            return _run(target, options, state / target.name, worker)
        finally:
            workers.put(worker)

    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(run, targets):
            print(outcome, flush=True)
            outcomes.append(outcome)
    for _ in range(options.jobs):
        workers.get().communicate()
    code = _total(outcomes, blind=options.blind)
    if not code:
        # The next campaign is about the program as it is then.
        for target in targets:
            shutil.rmtree(state / target.name)
    return code


def _start_worker(*, blind: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fuzz.worker", *["--blind"] * blind]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True, errors="replace")


def _run(target: Target, options: argparse.Namespace, directory: Path, worker: subprocess.Popen[str]) -> Outcome:
    """One target, by a worker that is free."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("failed-*"):
        old.unlink()
    inputs = options.inputs if options.full else max(min(LEAST, options.inputs), int(options.inputs * target.share))
    job = Job(target.name, inputs, options.seed, str(directory))
    assert worker.stdin is not None
    worker.stdin.write(f"{msgspec.json.encode(job).decode()}\n")
    worker.stdin.flush()
    features, kept, code = _follow(target, worker)
    figures = job.figures()
    if features:
        figures.features, figures.kept = features, kept
        job.figures_file.write_bytes(msgspec.json.encode(figures))
    known = {job.figures_file, directory / "corpus"}
    failures = [_save(target, path) for path in sorted(directory.iterdir()) if path not in known]
    if options.keep and not failures and (directory / "corpus").exists():
        with target.setting():
            found = [path.read_bytes() for path in (directory / "corpus").iterdir()]
            corpus.save(target, [*corpus.load(target.name), *found])
    return Outcome(target, figures, code != 0 or bool(failures), failures)


def _follow(target: Target, worker: subprocess.Popen[str]) -> tuple[int, int, int]:
    """Pass on what a worker says that is worth a line; (features, inputs kept, exit code) when a job has ended."""
    features = kept = 0
    assert worker.stderr is not None
    told: list[str] = []
    for line in worker.stderr:
        if line.startswith(ENDED):
            code = int(line.removeprefix(ENDED))
            break
        if match := _STATUS.search(line):
            features, kept = int(match[3]), int(match[4].split("/")[0])
            if match[2] == "pulse":
                print(f"{target.name}: {line.strip()}", file=sys.stderr, flush=True)
        elif not line.startswith(("INFO:", "WARNING: Failed to find")):
            told = [*told[-60:], line]
    else:
        raise RuntimeError(f"the worker has ended:\n{''.join(told)}")
    if code:
        print("".join(told), f"exit code {code}", file=sys.stderr)
    return features, kept, code


def _save(target: Target, path: Path) -> Path:
    """A failing input, where it stays."""
    FOUND.mkdir(parents=True, exist_ok=True)
    kept = FOUND / f"{target.name}-{path.name}"
    kept.write_bytes(path.read_bytes())
    return kept


def replay(target: Target, data: bytes) -> int:
    """Feed one input and say what came of it; 1 when it breaks a rule."""
    with target.setting():
        judge = Judge(target)
        try:
            accepted = judge.feed(data)
        except Violation as violation:
            print(f"{violation}\ncaused by {violation.__cause__!r}")
            return 1
    print(f"{target.name}: {'accepted' if accepted else 'refused as documented'}, {judge.slowest * 1000:.1f} ms")
    return 0


def _total(outcomes: list[Outcome], *, blind: bool) -> int:
    done = [outcome.figures for outcome in outcomes]
    failed = sum(outcome.failed for outcome in outcomes)
    inputs, cpu_s = sum(f.inputs for f in done), sum(f.cpu_s for f in done)
    print(
        f"{len(outcomes)} targets, {inputs:,} inputs {'without coverage' if blind else 'led by coverage'}, "
        f"{failed} failed, {inputs / max(cpu_s, 1e-3):,.0f} inputs per core-second, "
        f"slowest {max((f.slowest_ms for f in done), default=0):.1f} ms, "
        f"most memory {max((f.growth for f in done), default=0) >> 20} MiB"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
