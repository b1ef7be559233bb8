"""Every target, in every run: its corpus again, and some hundred inputs that nobody meant."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import corpus, worker
from tests.fuzz.__main__ import replay
from tests.fuzz.mutate import SHAPES, Mutator, write_msgpack
from tests.fuzz.rules import MAX_INPUT, Judge, Target, Violation
from tests.fuzz.targets import TARGETS

BATCH = 10
"""Mutated inputs for one that hypothesis draws: its own work would be most of it otherwise."""


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_was_kept_breaks_no_rule(target: Target) -> None:
    with target.setting():
        judge = Judge(target)
        for data in [b"", *target.seeds(), *corpus.load(target.name)]:
            judge.feed(data)
    assert judge.inputs > 1


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_input_breaks_a_rule(target: Target) -> None:
    with target.setting():
        mutator, judge = Mutator([*target.seeds(), *corpus.load(target.name)], target.shape), Judge(target)

        @settings(max_examples=max(3, int(60 * min(target.share * 2, 1))), deadline=None, database=None)
        @given(st.binary(max_size=200), st.integers(0, 2**32))
        def attack(data: bytes, seed: int) -> None:
            judge.feed(data)
            rng = Random(seed)
            for _ in range(BATCH if target.share == 1 else 1):
                judge.feed(mutator.fresh(rng, MAX_INPUT))

        attack()
    assert judge.inputs > 3


def test_the_corpus_is_small() -> None:
    assert {path.stem for path in corpus.DIRECTORY.iterdir()} <= set(TARGETS)
    for name in TARGETS:
        kept = corpus.load(name)
        assert len(kept) <= 100
        assert all(len(data) <= MAX_INPUT for data in kept)
    assert sum(path.stat().st_size for path in corpus.DIRECTORY.iterdir()) <= 1 << 20


# ── the judge and the mutators ──────────────────────────────────────────────────────────────────────────────────────
def _target(feed: Callable[[bytes], object], max_seconds: float = 0.1) -> Target:
    return Target("test", feed, (KeyError,), lambda: [b""], "bytes", max_seconds=max_seconds)


def _raise(error: Exception) -> Callable[[bytes], object]:
    def feed(_: bytes) -> None:
        raise error

    return feed


def _spin(_: bytes) -> None:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass


@pytest.mark.parametrize("error", [ValueError("x"), RecursionError(), AssertionError(), MemoryError()])
def test_what_is_not_documented_is_a_violation(error: Exception) -> None:
    with pytest.raises(Violation, match=type(error).__name__):
        Judge(_target(_raise(error))).feed(b"")


def test_what_is_documented_is_a_refusal() -> None:
    judge = Judge(_target(_raise(KeyError())))
    assert not judge.feed(b"")
    assert (judge.inputs, judge.accepted) == (1, 0)
    assert Judge(_target(len)).feed(b"")


def test_what_takes_too_long_is_a_violation() -> None:
    with pytest.raises(Violation, match="takes"):
        Judge(_target(_spin, max_seconds=0.005)).feed(b"")
    assert Judge(_target(_spin)).feed(b"")


def test_what_grows_too_much_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(_target(len), inputs=63)
    monkeypatch.setattr("tests.fuzz.rules.peak_bytes", lambda: 1 << 40)
    with pytest.raises(Violation, match="grown"):
        judge.feed(b"")


def test_a_failure_is_saved_with_what_replays_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    job = worker.Job("size", 50, 1, str(tmp_path))
    worker.run(job, blind=True)
    assert job.figures().inputs == 50
    job.inputs = 70
    worker.run(job, blind=True)
    assert job.figures().inputs == 70
    worker.run(job, blind=True)
    assert job.figures().inputs == 70
    bad = _target(_raise(ValueError("x")))
    monkeypatch.setitem(TARGETS, "size", bad)
    monkeypatch.setattr("os._exit", sys.exit)
    job.inputs = 90
    with pytest.raises(SystemExit) as ended:
        worker.run(job, blind=True)
    assert ended.value.code == worker.FAILED
    assert job.figures().inputs == 71
    [saved] = tmp_path.glob("failed-*")
    assert replay(bad, saved.read_bytes()) == 1
    assert replay(_target(len), saved.read_bytes()) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_mutation_ends_keeps_to_its_limit_and_is_a_function_of_its_seed(shape: str) -> None:
    seeds = [
        b'{"a":[1,null,"x"]}',
        write_msgpack([1, b"x" * 20, [None, {"k": 2.5}], write_msgpack([b"y"], None)], None),
    ]
    made = set()
    for seed in range(300):
        first, again = (Mutator(seeds, shape).fresh(Random(seed), 500) for _ in range(2))
        assert first == again
        assert len(first) <= 500
        made.add(first)
    assert len(made) > 150
