"""Configuration: every default is valid, every mistake is named with its line, and edits keep what people wrote."""

import contextlib
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import ConfigError, InputError
from p2psync.node.config import (
    SETTINGS,
    Config,
    get_setting,
    load_config,
    parse_config,
    render_default_config,
    render_markdown,
    set_setting,
    show_setting,
)
from p2psync.node.values import format_size, parse_size


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_missing_and_default_files_mean_the_defaults(path: Path) -> None:
    assert load_config(path) == Config()
    path.write_text(render_default_config())
    assert load_config(path) == Config()


def test_uncommenting_every_default_changes_nothing(path: Path) -> None:
    lines = render_default_config().splitlines()
    path.write_text(
        "\n".join(line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in lines)
    )
    assert sum(len(section) for section in tomllib.loads(path.read_text()).values()) == len(SETTINGS)
    assert load_config(path) == Config()


def test_documentation_is_made_from_the_code() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == render_markdown(), "run: python -m p2psync.node.config > docs/configuration.md"


def test_values_are_read() -> None:
    config = parse_config(
        b'[network]\nlisten = ["127.0.0.1:0", "[::1]:7"]\nmax_send_rate = "1.5MiB"\ndiscovery = false\n[log]\n'
        b'level = "debug"\n',
        "x",
    )
    assert config.network.listen == ("127.0.0.1:0", "[::1]:7")
    assert config.network.max_send_rate == 1_572_864
    assert not config.network.discovery
    assert config.log.level == "debug"
    assert config.sync == Config().sync


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[sync]\n\nrescan_interval_s = -1", 3, ["sync.rescan_interval_s", "-1", "whole number from 0"]),
        ("[sync]\nrescan_interval_s = true", 2, ["= true", "whole number"]),
        ("[sync]\nhash_threads = 2.0", 2, ["2.0", "from 1 to 64"]),
        ("# c\n[log]\nlevel = 'loud'", 3, ["log.level", "'loud'", '"debug" | "info"']),
        ("[network]\nlisten = []", 2, ["network.listen", "HOST:PORT"]),
        ("[network]\nlisten = [\n 'x',\n]", 2, ["network.listen", "['x']"]),
        ("[network]\nlisten = [1]", 2, ["[1]"]),
        ("[network]\nmax_send_rate = '10 parsec'", 2, ["'10 parsec'", "10MiB"]),
        ("[network]\nmax_send_rate = -1", 2, ["-1"]),
        ("[sync]\nfetch_window_bytes = '1KiB'", 2, ["4MiB to 4GiB"]),
        ("[network]\n\ndiscovry = true", 3, ["network.discovry", "did you mean discovery?"]),
        ("[network]\nzzz = 1", 2, ["network.zzz", "there are:", "listen"]),
        ("\n[netwrok]\nx = 1", 2, ["[netwrok]", "did you mean network?"]),
        ("device = 'x'", 1, ["device is a section"]),
        ("[device]\nname = 7", 2, ["device.name"]),
        ("[device]\nname = 'a\\u0007'", 2, []),
        ("sync.hash_threads = 0", 1, ["sync.hash_threads = 0"]),
        ("[guards]\nmax_delete_percent = 101", 2, ["101", "0 to 100"]),
        ("[guards]\nfollow_unsafe_symlinks = 'yes'", 2, ["true | false"]),
    ],
)
def test_mistakes_name_file_line_setting_value_and_what_is_allowed(text: str, line: int, words: list[str]) -> None:
    if "\\u0007" in text:
        text = text.replace("'", '"')
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode(), "/home/config.toml")
    assert str(caught.value).startswith(f"/home/config.toml, line {line}: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[log]\nlevel = \n", "line 2"),
        (b"[log]\nlevel = 'info'\nlevel = 'info'\n", "line 3"),
        (b"\n\n\xff = 1", "line 3: not UTF-8"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
        (b"#" * ((1 << 20) + 1), "larger than"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_place(raw: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(raw, "config.toml")


def test_unreadable_file(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*config\.toml"):
        load_config(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ConfigError):
        parse_config(raw, "x")


def test_get_and_show() -> None:
    assert get_setting(Config(), "sync.fetch_window_bytes") == 64 << 20
    assert show_setting(Config(), "sync.fetch_window_bytes") == '"64MiB"'
    assert show_setting(Config(), "network.listen") == '[":22067"]'
    for bad in ("sync", "sync.", "sync.nothing", "x.y"):
        with pytest.raises(InputError, match="there is no setting"):
            get_setting(Config(), bad)
    with pytest.raises(InputError, match=r"did you mean sync\.debounce_ms"):
        get_setting(Config(), "sync.debounce")


WRITTEN = """\
# my file
[log]   # how much
level = "info"   # not "debug" # really

# another
[network]
listen = [   # three lines
  ":1",
]
# the end
"""


@pytest.mark.parametrize(
    ("name", "text", "old", "new"),
    [
        ("log.level", "debug", 'level = "info"   #', 'level = "debug"   #'),
        ("log.level", '"error"', 'level = "info"', 'level = "error"'),
        ("log.format", "json", '# really\n', '# really\nformat = "json"\n'),
        ("network.listen", "127.0.0.1:0, [::1]:0", '[   # three lines\n  ":1",\n]', '["127.0.0.1:0", "[::1]:0"]'),
        ("network.max_send_rate", "10MiB", "]\n# the end", ']\nmax_send_rate = "10MiB"\n# the end'),
        ("device.name", "büro", "# the end\n", '# the end\n\n[device]\nname = "büro"\n'),
        ("device.name", "true", "# the end\n", '# the end\n\n[device]\nname = "true"\n'),
    ],
)  # fmt: skip
def test_set_changes_one_value_and_keeps_the_rest(path: Path, name: str, text: str, old: str, new: str) -> None:
    path.write_text(WRITTEN)
    config = set_setting(path, name, text)
    assert old in WRITTEN
    assert path.read_text() == WRITTEN.replace(old, new)
    assert load_config(path) == config
    assert get_setting(config, name) != get_setting(Config(), name) or name == "log.level"


def test_set_on_no_file_writes_the_commented_one(path: Path) -> None:
    assert set_setting(path, "sync.quiet_ms", "5").sync.quiet_ms == 5
    assert path.read_text() == render_default_config().replace("#quiet_ms = 1000\n", "#quiet_ms = 1000\nquiet_ms = 5\n")


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_setting_can_be_set_to_its_default(path: Path, name: str) -> None:
    shown = show_setting(Config(), name)
    assert set_setting(path, name, shown) == Config()
    assert set_setting(path, name, shown) == Config()
    assert path.read_text().count(f"\n{name.partition('.')[2]} = ") == 1


@pytest.mark.parametrize(
    ("name", "text"), [("log.level", "loud"), ("sync.quiet_ms", "soon"), ("network.discovery", "1")]
)
def test_set_refuses_what_is_not_allowed_and_leaves_the_file(path: Path, name: str, text: str) -> None:
    path.write_text(WRITTEN)
    with pytest.raises(ConfigError, match=f"{name} = '{text}' is not allowed"):
        set_setting(path, name, text)
    assert path.read_text() == WRITTEN
    assert list(path.parent.iterdir()) == [path]


def test_set_refuses_a_layout_it_does_not_understand(path: Path) -> None:
    path.write_text("log = { level = 'info' }\n")
    with pytest.raises(ConfigError):
        set_setting(path, "log.level", "debug")
    assert path.read_text() == "log = { level = 'info' }\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10MiB", 10 << 20),
        ("10 mib", 10 << 20),
        ("1.5KB", 1500),
        ("2TiB", 2 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e3", "1 PiB", "1..2KB", "٣", "9" * 16, "1 Ki"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 49))
def test_sizes_round_trip(count: int) -> None:
    assert parse_size(format_size(count)) == count
