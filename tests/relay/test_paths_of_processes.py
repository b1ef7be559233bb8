"""Real nodes at two homes, behind routers that let nobody in, and a relay between them: forwarded, then met."""

from __future__ import annotations

import re
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from p2psync.testing.processes import Device, difference, introduce, share
from tests.e2e.conftest import devices_in
from tests.net.namespaces import MIDDLE, homes
from tests.relay.process import RelayProcess

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.large]
EMAIL = "ann@example.org"


class RelayBetween(RelayProcess):
    """A relay in a network namespace."""

    def __init__(self, data: Path, namespace: str) -> None:
        super().__init__(data)
        self.listen = f"{MIDDLE}:0"
        self._namespace = namespace

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self._namespace, *super().command(*arguments)]


def join(relay: RelayBetween, desk: Device, laptop: Device, base: Path) -> None:
    """Both are of one account."""
    recovery, password = base / "recovery", base / "password"
    password.write_text("correct horse battery staple\n")
    who = ("--relay", relay.url, "--email", EMAIL, "--password-file", password, "--recovery-file", recovery)
    desk.run("account", "signup", *who)
    (mail,) = (relay.data / "outbox").glob("*.eml")
    found = re.search(r"code is (\S+)", message_from_bytes(mail.read_bytes(), policy=default).get_content())
    assert found is not None
    desk.run("account", "verify", found[1])
    laptop.run("account", "login", *who)


def test_nodes_behind_routers_are_forwarded_and_then_meet(tmp_path: Path) -> None:
    with homes() as made, devices_in(tmp_path) as make:
        relay = RelayBetween(tmp_path / "relay", made.middle)
        relay.start()
        try:
            desk, laptop = (
                make(name, listen=":22067", prefix=("ip", "netns", "exec", namespace))
                for name, namespace in zip(("desk", "laptop"), made.machines, strict=True)
            )
            introduce(desk, laptop)
            join(relay, desk, laptop, tmp_path)
            here, there = tmp_path / "here", tmp_path / "there"
            here.mkdir()
            (here / "a").write_bytes(bytes(range(256)) * 40_000)
            desk.run("folder", "add", here, "--label", "docs")
            desk.connected(laptop, timeout=90)
            share(desk, "docs", [(laptop, there)])
            for device in (desk, laptop):
                device.until("met", lambda status: status["devices"][0]["via"] == "direct", timeout=90)
            desk.wait()
            assert difference(here, there) == []
        finally:
            relay.kill()
