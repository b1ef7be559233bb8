"""One target in a process of its own: libFuzzer ends the process at a failure, and limits are those of a process.

    python -m tests.fuzz.worker TARGET INPUTS SEED DIRECTORY [--blind]

DIRECTORY receives `figures.json`, the inputs libFuzzer found interesting (`corpus/`), and an input that failed.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import NamedTuple, NoReturn

import msgspec

MAX_ADDRESSES = 4 << 30
"""Bytes of address space: what asks for more gets MemoryError, and no target documents that."""
FAILED = 77


class Figures(msgspec.Struct):
    """What a target's run came to."""

    inputs: int
    accepted: int
    cpu_s: float
    slowest_ms: float
    growth: int
    """Bytes the process has grown by."""
    guided: bool


class _Job(NamedTuple):
    name: str
    inputs: int
    seed: int
    directory: Path
    blind: bool


def have_atheris() -> bool:
    """Whether inputs can be led by coverage here."""
    return importlib.util.find_spec("atheris") is not None


def main(arguments: list[str]) -> None:
    """Run one target to its end; exits with `FAILED` when an input broke a rule."""
    name, inputs, seed, directory, *rest = arguments
    job = _Job(name, int(inputs), int(seed), Path(directory), rest == ["--blind"])
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    if job.blind:
        _run_blind(job)
    else:
        _run_guided(job)


def _run_guided(job: _Job) -> None:
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["p2psync"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz import corpus
    from tests.fuzz.mutate import Mutator
    from tests.fuzz.rules import MAX_INPUT, Judge, Violation

    target = TARGETS[job.name]
    seeds = [*target.seeds(), *corpus.load(target.name)]
    found = job.directory / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    for data in seeds:
        (found / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    mutator = Mutator(seeds, target.shape)
    judge = Judge(target)
    began = time.process_time()

    def one(data: bytes) -> None:
        try:
            judge.feed(data)
        except Violation as violation:
            _fail(job, data, violation)

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        rng = Random(seed)
        changed: bytes = atheris.Mutate(data, limit) if rng.random() < 0.3 else mutator.mutate(data, rng, limit)
        return changed

    def end() -> None:
        _report(job, judge.inputs, judge.accepted, began, judge.slowest, judge.growth)
        # libFuzzer tears the interpreter down while it still stands on its stack, and that sometimes ends in a crash.
        sys.stderr.flush()
        os._exit(0)

    atexit.register(end)
    flags = [f"-atheris_runs={job.inputs}", f"-seed={job.seed or 1}", f"-max_len={MAX_INPUT}", "-timeout=10"]
    flags += ["-rss_limit_mb=1024", "-len_control=0", f"-artifact_prefix={job.directory}/", str(found)]
    atheris.Setup([sys.argv[0], *flags], one, custom_mutator=mutate)
    with target.setting():
        atheris.Fuzz()


def _run_blind(job: _Job) -> None:
    from tests.fuzz import corpus
    from tests.fuzz.mutate import Mutator
    from tests.fuzz.rules import MAX_INPUT, Judge, Violation
    from tests.fuzz.targets import TARGETS

    target = TARGETS[job.name]
    with target.setting():
        seeds = [*target.seeds(), *corpus.load(target.name)]
        mutator, judge, rng = Mutator(seeds, target.shape), Judge(target), Random(job.seed)
        began = time.process_time()
        while judge.inputs < job.inputs:
            data = mutator.fresh(rng, MAX_INPUT)
            try:
                judge.feed(data)
            except Violation as violation:
                _fail(job, data, violation)
        _report(job, judge.inputs, judge.accepted, began, judge.slowest, judge.growth)


def _fail(job: _Job, data: bytes, violation: Exception) -> NoReturn:
    """Save the input and end; libFuzzer would, but without what Python knows."""
    traceback.print_exception(violation, file=sys.stderr)
    path = job.directory / f"failed-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    sys.stderr.flush()
    os._exit(FAILED)


def _report(job: _Job, inputs: int, accepted: int, began: float, slowest: float, growth: int) -> None:
    spent = time.process_time() - began
    figures = Figures(inputs, accepted, spent, slowest * 1000, growth, not job.blind)
    (job.directory / "figures.json").write_bytes(msgspec.json.encode(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
