"""The operator's configuration: defaults, strictness, secrets."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from p2psync.errors import ConfigError
from relay.config import Config, load_config, parse_config, parse_listen, render_config


def test_an_empty_file_means_the_defaults_and_they_can_be_read_back() -> None:
    assert parse_config(b"", "relay.toml") == Config()
    assert parse_config(render_config(Config()).encode(), "relay.toml") == Config()


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(
        '[server]\nlisten = "[::1]:0"\n[free]\nbytes = "3MiB"\n'
        '[[plans]]\nname = "big"\nbytes = "2TB"\nprice = "5 a month"\n[[plans]]\nname = "huge"\nfolders = 7\n'
    )
    config = load_config(path)
    assert (config.server.listen, config.free.bytes) == ("[::1]:0", 3 << 20)
    assert [(plan.name, plan.bytes, plan.folders) for plan in config.plans] == [
        ("big", 2 * 10**12, 20),
        ("huge", 10**9, 7),
    ]
    assert tomllib.loads(render_config(config))["plans"][0]["price"] == "5 a month"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server", "not valid TOML"),
        ("[server]\nlistn = 1", "server: Object contains unknown field `listn`"),
        ("[serve]\n", "unknown field `serve`"),
        ("[server]\nlisten = 3", "server.listen"),
        ('[server]\nlisten = "localhost"', "server.listen"),
        ('[server]\nlisten = ":70000"', "server.listen"),
        ('[server]\ncertificate = "x.pem"', "both `certificate` and `key`"),
        ('[server]\nurl = "http://x"', "server.url"),
        ("[server]\nmax_connections = 0", "server.max_connections"),
        ('[free]\nbytes = "3GX"', "free.bytes"),
        ("[free]\nbytes = -1", "free.bytes"),
        ("[free]\nbytes = true", "free.bytes"),
        ('[mail]\nsecurity = "ssl"', "mail.security"),
        ('[database]\nurl = { file = "/nowhere/at/all" }', "/nowhere/at/all"),
        ('[database]\nurl = { file = "x", more = 1 }', "a secret is"),
        ("[database]\nurl = 5", "a secret is"),
        ('[[plans]]\nname = "A b"', "plans[0].name"),
        ('[[plans]]\nname = "a"\n[[plans]]\nname = "a"', "two plans"),
        ('[[plans]]\nname = "free"', "without a plan"),
        ("[[plans]]\nprice = 'x'", "plans[0]"),
    ],
)
def test_a_mistake_is_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode(), "relay.toml")
    assert str(caught.value).startswith("relay.toml: ")
    assert told in str(caught.value)


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    text = f'[mail]\npassword = {{ file = "{tmp_path}/password" }}\n[storage]\nsecret_key = "hunter3"\n'
    config = parse_config(text.encode(), "relay.toml")
    assert (str(config.mail.password), str(config.storage.secret_key)) == ("hunter2", "hunter3")
    assert "hunter" not in render_config(config) + repr(config)


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "missing")
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(tmp_path / "large")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "binary")


def test_where_to_listen() -> None:
    assert parse_listen(":8443") == (None, 8443)
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen("[::1]:443") == ("::1", 443)
    for text in ("", ":", "::1:443", "[x]:1", "a b:1", "x:99999"):
        with pytest.raises(ValueError, match="is not"):
            parse_listen(text)
