"""Pairing by a short code: both sides know each other by name afterwards, and a code is good for one try only."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from p2psync.testing.processes import Device
from tests.e2e.conftest import Make

pytestmark = pytest.mark.e2e


def finish_pairing(shower: Device) -> int:
    """Wait for the command that shows the code; its exit code."""
    process = shower._pairing
    assert process is not None
    code = process.wait(30)
    shower.end_pairing()
    return code


def test_a_code_makes_two_devices_known_to_each_other(make: Make, tmp_path: Path) -> None:
    one, two = make("one"), make("two")
    code = one.pairing_code()
    joined = two.run("pair", code, "--address", one.address, "--json")
    assert json.loads(joined.stdout) == {"id": one.id, "name": "one", "account": False}
    assert finish_pairing(one) == 0
    # Nobody was told an address of `two`: it dials, and both see the connection.
    one.connected(two)
    two.connected(one)
    assert [(d["id"], d["name"]) for d in one.json("device", "list")] == [(two.id, "two")]
    assert [(d["id"], d["name"]) for d in two.json("device", "list")] == [(one.id, "one")]

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "hello").write_text("paired")
    folder = one.json("folder", "add", here, "--label", "docs")["id"]
    one.run("folder", "share", "docs", "--with", "two")
    two.until_offered("docs")
    two.run("folder", "accept", folder, there)
    one.wait()
    assert (there / "hello").read_text() == "paired"

    # A used code pairs nobody else, even while its device listens.
    three = make("three")
    result = three.run("pair", code, "--address", one.address, expect=1)
    assert result.stderr.startswith("error: ")
    assert three.json("device", "list") == []


@pytest.mark.large
def test_a_wrong_guess_burns_the_code(make: Make) -> None:
    one, two = make("one"), make("two")
    code = one.pairing_code()
    nameplate, first, second = code.split("-")
    wrong = f"{nameplate}-{second}-{first}" if first != second else f"{nameplate}-cross-cover"
    assert "wrong" in two.run("pair", wrong, "--address", one.address, expect=1).stderr
    assert finish_pairing(one) == 1
    two.run("pair", code, "--address", one.address, expect=1)
    assert [d for d in one.json("device", "list") if d["paired"]] == []
    assert two.json("device", "list") == []

    # The other way round, with a fresh code.
    code = two.pairing_code()
    one.run("pair", code, "--address", two.address)
    assert finish_pairing(two) == 0
    one.connected(two)


def test_an_unknown_device_is_shown_and_gets_nothing(make: Make, tmp_path: Path) -> None:
    one, stranger = make("one"), make("stranger")
    here = tmp_path / "here"
    here.mkdir()
    (here / "secret").write_text("for members only")
    one.run("folder", "add", here, "--label", "docs")
    stranger.run("device", "add", one.id, "--address", one.address)
    status = one.until("the stranger is shown", lambda s: s["devices"] != [])
    (shown,) = status["devices"]
    assert (shown["id"], shown["name"], shown["paired"], shown["connected"]) == (stranger.id, "stranger", False, False)
    assert "device add" in one.run("status").stdout
    time.sleep(0.5)
    assert stranger.json("folder", "offers") == []
    assert not stranger.status()["devices"][0]["connected"]

    # Approved by its ID, it connects by itself; still no folder is its own.
    one.run("device", "add", stranger.id)
    one.connected(stranger)
    assert stranger.json("folder", "offers") == []
    one.run("device", "remove", "stranger")  # the name it goes by itself
    stranger.until("it is turned away", lambda s: not s["devices"][0]["connected"])
