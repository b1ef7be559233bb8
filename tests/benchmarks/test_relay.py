"""The benchmark of the relay: it runs whole on a small scale, and says rightly what is met."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from benchmarks.relay.load import Client, Load
from benchmarks.relay.rows import Row
from benchmarks.relay.run import Run, Scale
from benchmarks.relay.stage import PRESENCE, FailedError, Stage

TINY = Scale(streams=6, hold_s=0.01, connections=2, rounds=1, seconds=0.05, settle_s=0.01, chunks=2, slow=4)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("relay")) as made:
        yield made


def test_every_part_runs_and_gives_figures(stage: Stage) -> None:
    run = Run(stage, TINY, 1, lambda _text: None)
    rows = [row for part in run.parts().values() for row in part()]
    figures = {row.what: row for row in rows}
    assert (figures["idle streams held"].relay, figures["idle streams held"].bare) == (6, 6)
    for what in ("chunks up", "chunks down", "signed requests answered from the database"):
        assert math.isfinite(figures[what].relay)
        assert figures[what].relay > 0
        assert figures[what].bare > 0


def test_a_refusal_is_no_answer(stage: Stage) -> None:
    device = replace(stage.devices(1)[0], seed=bytes(64))
    with closing(Client(stage.relay, [device])) as client, pytest.raises(FailedError, match="401"):
        client.warm(PRESENCE)


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("w", "u", 5, 10, least_ratio=0.5), True),
        (Row("w", "u", 4, 10, least_ratio=0.5), False),
        (Row("w", "u", 99, 1, most=100), True),
        (Row("w", "u", 101, 1, most=100), False),
        (Row("w", "u", 301, 0, least=300), True),
        (Row("w", "u", 299, 0, least=300), False),
        (Row("w", "u", 1, 1), None),
    ],
)
def test_an_aim_is_met_or_not(row: Row, met: bool | None) -> None:
    assert row.met is met
    assert row.as_json()["met"] is met


def test_a_load_counts_what_was_answered() -> None:
    load = Load(seconds=2.0, cpu=0.5, latencies=[0.1] * 10)
    assert (load.rate, load.cost) == (5.0, 0.05)
