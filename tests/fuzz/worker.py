"""Targets in processes of their own: libFuzzer ends the process at a failure, and limits are those of a process.

    python -m tests.fuzz.worker [--blind]

Standard input has jobs, a line of JSON each. Every one is a fork: instrumenting the product takes seconds, once. What a
job says goes to standard error, and after it the line `ENDED` with its exit code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import resource
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NoReturn

import msgspec

if TYPE_CHECKING:
    from tests.fuzz.rules import Judge, Target

MAX_ADDRESSES = 4 << 30
"""Bytes of address space: what asks for more gets MemoryError, and no target documents that."""
FAILED = 77
ENDED = "ended with "
_REPORT_EVERY = 4096
"""Inputs after which figures are written, so that a job that is cut off can go on."""
_ANEW = 0.2
"""Inputs that begin with a seed again: what coverage keeps is mostly refused, and hides what stands behind."""


class Figures(msgspec.Struct):
    """What the inputs of a target have come to so far."""

    inputs: int = 0
    accepted: int = 0
    cpu_s: float = 0.0
    slowest_ms: float = 0.0
    growth: int = 0
    """Bytes the process has grown by; the most of any, where a job was cut off and went on."""
    features: int = 0
    """Places, and how often they were reached, as libFuzzer counts them; 0 without it."""
    kept: int = 0
    """Inputs that libFuzzer has kept."""


class Job(msgspec.Struct):
    """A target to be fed until it has had `inputs`.

    `directory` has what earlier jobs on it have left, and receives `figures.json`, the inputs that libFuzzer found
    interesting (`corpus/`), and an input that failed (`failed-*`).
    """

    target: str
    inputs: int
    seed: int
    directory: str

    @property
    def figures_file(self) -> Path:
        """Where the figures are."""
        return Path(self.directory, "figures.json")

    def figures(self) -> Figures:
        """What was done already."""
        written = self.figures_file
        return msgspec.json.decode(written.read_bytes(), type=Figures) if written.exists() else Figures()


def have_atheris() -> bool:
    """Whether inputs can be led by coverage here."""
    return importlib.util.find_spec("atheris") is not None


def main(arguments: list[str]) -> None:
    """Do the jobs of standard input."""
    blind = arguments == ["--blind"]
    if blind:
        instrumented = nullcontext()
    else:
        import atheris  # type: ignore[import-untyped]

        instrumented = atheris.instrument_imports(include=["p2psync"])
    with instrumented:
        import tests.fuzz.targets  # noqa: F401  (its import is the long part, and what it imports is instrumented)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                run(msgspec.json.decode(line, type=Job), blind=blind)
            except BaseException:  # noqa: BLE001 -- a fork must not go on with its parent's work
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{ENDED}{status}", file=sys.stderr, flush=True)


def run(job: Job, *, blind: bool) -> None:
    """One job to its end; exits with `FAILED` when an input broke a rule."""
    from tests.fuzz import corpus
    from tests.fuzz.rules import Judge
    from tests.fuzz.targets import TARGETS

    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    target = TARGETS[job.target]
    with target.setting():
        seeds = [*target.seeds(), *corpus.load(target.name)]
        feeder = _Feeder(job, Judge(target))
        if feeder.left > 0:
            (_feed_blindly if blind else _feed_guided)(feeder, target, seeds)


class _Feeder:
    """Feeds the inputs of a job and keeps its figures."""

    def __init__(self, job: Job, judge: Judge) -> None:
        self.job = job
        self._judge = judge
        self._before = job.figures()
        self._began = time.process_time()

    @property
    def left(self) -> int:
        """Inputs that are still to come."""
        return self.job.inputs - self._before.inputs - self._judge.inputs

    def feed(self, data: bytes) -> None:
        """One input. Ends the process when it breaks a rule."""
        from tests.fuzz.rules import Violation

        try:
            self._judge.feed(data)
        except Violation as violation:
            self._fail(data, violation)
        if self._judge.inputs % _REPORT_EVERY == 0:
            self.report()

    def report(self) -> None:
        """Write the figures."""
        before, judge = self._before, self._judge
        figures = msgspec.structs.replace(
            before,
            inputs=before.inputs + judge.inputs,
            accepted=before.accepted + judge.accepted,
            cpu_s=before.cpu_s + time.process_time() - self._began,
            slowest_ms=max(before.slowest_ms, judge.slowest * 1000),
            growth=max(before.growth, judge.growth),
        )
        written = self.job.figures_file
        fresh = written.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(figures))
        fresh.replace(written)

    def _fail(self, data: bytes, violation: Exception) -> NoReturn:
        """Save the input and end; libFuzzer would, but without what Python knows."""
        traceback.print_exception(violation, file=sys.stderr)
        path = Path(self.job.directory, f"failed-{hashlib.sha256(data).hexdigest()[:16]}")
        path.write_bytes(data)
        self.report()
        sys.stderr.flush()
        os._exit(FAILED)


def _feed_guided(feeder: _Feeder, target: Target, seeds: list[bytes]) -> None:
    import atheris

    from tests.fuzz.mutate import Mutator
    from tests.fuzz.rules import MAX_INPUT

    job = feeder.job
    found = Path(job.directory, "corpus")
    found.mkdir(parents=True, exist_ok=True)
    for data in seeds:
        (found / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    # Another seed than that of the inputs before.
    seed = job.seed + (job.inputs - feeder.left)
    mutator, rng = Mutator(seeds, target.shape), Random(seed)

    def mutate(data: bytes, limit: int, _seed: int) -> bytes:
        # To begin a sequence with each seed that is given would take longer than most mutations.
        pick = rng.random()
        if pick < _ANEW:
            return mutator.fresh(rng, limit)
        changed: bytes = atheris.Mutate(data, limit) if pick < _ANEW + 0.2 else mutator.mutate(data, rng, limit)
        return changed

    flags = [f"-atheris_runs={feeder.left}", f"-seed={seed or 1}", f"-max_len={MAX_INPUT}", "-timeout=10"]
    flags += ["-rss_limit_mb=1024", "-len_control=0", f"-artifact_prefix={job.directory}/", str(found)]
    atheris.Setup([sys.argv[0], *flags], feeder.feed, custom_mutator=mutate)
    try:
        atheris.Fuzz()
    except SystemExit as ended:
        if ended.code:
            raise
    feeder.report()
    # libFuzzer tears the interpreter down while it still stands on its stack, and that sometimes ends in a crash.
    sys.stderr.flush()
    os._exit(0)


def _feed_blindly(feeder: _Feeder, target: Target, seeds: list[bytes]) -> None:
    from tests.fuzz.mutate import Mutator
    from tests.fuzz.rules import MAX_INPUT

    mutator, rng = Mutator(seeds, target.shape), Random(feeder.job.seed + (feeder.job.inputs - feeder.left))
    while feeder.left > 0:
        feeder.feed(mutator.fresh(rng, MAX_INPUT))
    feeder.report()


if __name__ == "__main__":
    main(sys.argv[1:])
