"""The operator's examples fit the relay that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config import load_config

EXAMPLES = Path(__file__).parents[2] / "examples" / "relay"


@pytest.mark.parametrize("name", ["relay.toml", "relay.large.toml"])
def test_the_configurations_are_valid(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / name).read_text()
    for place in ("/run/secrets", "/etc"):
        text = text.replace(f'file = "{place}/', f'file = "{tmp_path}/')
    for secret in ("database_url", "s3_secret_key", "p2psync-relay.mail-password"):
        (tmp_path / secret).write_text("secret")
    path = tmp_path / name
    path.write_text(text)
    assert load_config(path).server.url == "https://relay.example:22443"


def test_the_compose_file_names_only_what_it_has() -> None:
    given: dict[str, Any] = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    for service in given["services"].values():
        assert set(service["secrets"]) <= given["secrets"].keys()
        named = {volume.partition(":")[0] for volume in service["volumes"]}
        assert {name for name in named if "/" not in name} <= given["volumes"].keys()
        assert set(service.get("depends_on", ())) <= given["services"].keys()
    large = (EXAMPLES / "relay.large.toml").read_text()
    assert all(f"/run/secrets/{name}" in large for name in given["services"]["relay"]["secrets"])


def test_the_unit_has_what_the_relay_needs() -> None:
    unit = (EXAMPLES / "p2psync-relay.service").read_text()
    assert "p2psync-relay serve --data ${STATE_DIRECTORY}" in unit
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit
