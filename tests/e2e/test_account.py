"""An account by the commands a person types: a relay, two nodes, a recovery key, a lost device."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from p2psync.testing.processes import Device
from tests.e2e.conftest import Make
from tests.relay.process import RelayProcess

pytestmark = pytest.mark.e2e
EMAIL = "me@example.org"


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    relay = RelayProcess(tmp_path / "relay")
    relay.start()
    yield relay
    relay.kill()


def mailed_code(relay: RelayProcess) -> str:
    """The newest code in the outbox directory."""
    for _ in range(300):
        for file in sorted((relay.data / "outbox").glob("*.eml"), reverse=True):
            found = re.search(r"code is (\S+)", message_from_bytes(file.read_bytes(), policy=default).get_content())
            if found:
                return found[1]
        time.sleep(0.1)
    raise AssertionError("no mail came")


def refusal(device: Device, *words: str) -> str:
    result = device.run("account", *words, expect=1)
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    return result.stderr


def test_an_account_from_sign_up_to_its_end(relay: RelayProcess, make: Make, tmp_path: Path) -> None:
    one, two, three = make("one"), make("two"), make("three", start=False)
    password, recovery = tmp_path / "password", tmp_path / "recovery"
    password.write_text("correct horse battery\n")
    who = ("--email", EMAIL, "--password-file", str(password))
    at = ("--relay", relay.url)

    assert "no account" in refusal(one, "status")
    signed = one.run("account", "signup", *at, *who, "--recovery-file", str(recovery))
    assert "account verify" in signed.stdout
    assert "wrong" in refusal(one, "verify", "AAAA-AAAA")
    one.run("account", "verify", mailed_code(relay))

    # Next to the first device, by a code, said on both sides.
    code = one.pairing_code("--account")
    assert two.json("pair", code, "--address", one.address, "--account")["account"] is True
    assert one._pairing is not None
    assert one._pairing.wait(30) == 0
    one.end_pairing()
    assert [d["name"] for d in two.json("account", "devices")] == ["one", "recovery key", "two"]

    # Far away, by the recovery key, without a node.
    assert "recovery key" in refusal(three, "login", *at, *who)
    joined = three.json("account", "login", *at, *who, "--recovery-file", str(recovery))
    assert (joined["state"], joined["devices"]) == ("active", 3)
    one.run("account", "remove-device", three.id)
    assert three.json("account", "status")["usage"] is None

    # A relay that is away keeps nobody from anything else.
    relay.kill()
    assert one.status()["device"]["name"] == "one"
    relay.start()
    one.stop()
    one.start()
    status = one.json("account", "status")
    assert (status["state"], status["devices"], status["problems"]) == ("active", 2, [])
    one.run("account", "delete", "--yes", "--password-file", str(password))
    assert "no account" in refusal(one, "status")
    assert two.json("account", "status")["problems"]
