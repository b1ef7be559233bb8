"""A short campaign of kill -9, and proof that the judge would notice what it is there to notice."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
import trio

from tests.relay.process import RelayProcess
from tests.relay.torture import campaign
from tests.relay.torture.book import Figures
from tests.relay.torture.judge import Judge


@pytest.mark.e2e
async def test_a_relay_that_is_killed_keeps_its_word(tmp_path: Path) -> None:
    figures = await campaign.run_campaign(tmp_path, seed=1, kills=2, quiet_every=2)
    assert figures.violations == []
    assert figures.kills >= 2
    assert figures.acknowledged > 20
    assert figures.checked > 0
    assert figures.events > 0


@pytest.mark.e2e
async def test_the_judge_notices_what_is_lost_and_what_is_charged_twice(tmp_path: Path) -> None:
    rng, figures = random.Random(2), Figures()
    relay = RelayProcess(tmp_path / "data", campaign.configuration(campaign.CALM))
    try:
        await campaign.restart(relay)
        scene, judge = await campaign.set_up(relay, rng, figures), Judge(relay, figures)
        await campaign.work_for(scene, 60, until=100)
        await campaign.judge_all(scene, judge)
        assert figures.violations == []
        _damage(relay.data, scene.books[0].folder)
        await campaign.judge_all(scene, judge)
    finally:
        await trio.to_thread.run_sync(relay.kill)
    found = "\n".join(figures.violations)
    for what in (
        "acknowledged chunks are gone",
        "is charged",
        "keeps nothing",
        "a grant is not there",
        "entries",
        "admin check",
    ):
        assert what in found


def _damage(data: Path, folder: bytes) -> None:
    """Take one of everything away from a folder, and charge for something that is not there."""
    with sqlite3.connect(data / "relay.db", timeout=30) as database:
        for table, key in (("entries", "-seq"), ("grants", "key_id"), ("refs", "ref_id")):
            first = f"SELECT rowid FROM {table} WHERE folder_id = ? ORDER BY {key} LIMIT 1"
            database.execute(f"DELETE FROM {table} WHERE rowid = ({first})", (folder,))
        for change in ("folders SET last_seq = last_seq - 1", "chunks SET upload_id = NULL"):
            database.execute(f"UPDATE {change} WHERE folder_id = ?", (folder,))
    database.close()
