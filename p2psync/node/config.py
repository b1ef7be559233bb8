"""The settings of a node: one table of what each means, from which the file, its errors and its documentation derive.

A setting is declared once, as an annotated field: its kind (what is allowed), unit, meaning and default. Loading,
`config get`, `config set`, the commented default file and `docs/configuration.md` (`python -m p2psync.node.config`)
all read that declaration.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec

from p2psync.errors import ConfigError, InputError
from p2psync.node.config_text import locate, replace_value
from p2psync.node.files import replace_file
from p2psync.node.values import ADDRESSES, BOOL, NAME, Kind, choice, size, whole

MAX_CONFIG_BYTES = 1 << 20
MIB = 1 << 20
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class About:
    """What a setting means: the annotation of its field."""

    kind: Kind
    meaning: str
    unit: str = "-"


class Device(msgspec.Struct, frozen=True):
    """This device, as the others see it."""

    name: Annotated[str, About(NAME, "Name shown to other devices; empty means this machine's host name.")] = ""


class Network(msgspec.Struct, frozen=True):
    """How this node reaches others and is reached."""

    listen: Annotated[
        tuple[str, ...],
        About(ADDRESSES, 'Where to accept connections. ":PORT" is every interface, IPv4 and IPv6; port 0 lets the '
              "system choose."),
    ] = (":22067",)  # fmt: skip
    discovery: Annotated[bool, About(BOOL, "Announce this device and look for others on the local network (mDNS).")] = (
        True
    )
    max_send_rate: Annotated[
        int, About(size(), "Limit for everything sent to other devices; 0 is no limit.", "bytes/s")
    ] = 0
    max_receive_rate: Annotated[
        int, About(size(), "Limit for everything received from other devices; 0 is no limit.", "bytes/s")
    ] = 0
    connect_timeout_s: Annotated[
        int, About(whole(1, 300), "Give up one attempt to connect, handshake included, after this long.", "seconds")
    ] = 10
    port_mapping: Annotated[
        bool,
        About(BOOL, "Once this device is in an account: have the router of the local network (NAT-PMP, UPnP) let a "
              "port lead to this node, so that devices elsewhere reach it. Off with discovery."),
    ] = True  # fmt: skip
    relay: Annotated[
        str,
        About(choice("never", "own", "any"), "Which devices may be reached through the account's relay, which sees "
              "sealed bytes only, when there is no direct way: none, those of the account, or any known one."),
    ] = "any"  # fmt: skip


class Sync(msgspec.Struct, frozen=True):
    """How changes are noticed and fetched."""

    rescan_interval_s: Annotated[
        int,
        About(whole(0, 30 * DAY_S), "Time between full scans, which find what the watcher missed; 0 scans only at the "
              "start and on request.", "seconds"),
    ] = 3600  # fmt: skip
    debounce_ms: Annotated[
        int, About(whole(0, 60_000), "Wait this long after a file was closed before it is read.", "milliseconds")
    ] = 50
    quiet_ms: Annotated[
        int,
        About(whole(0, 600_000), "A file that is still open for writing is read once it was quiet for this long.",
              "milliseconds"),
    ] = 1000  # fmt: skip
    fetch_window_bytes: Annotated[
        int,
        About(
            size(4 * MIB, 4096 * MIB), "Most data requested from peers and not yet written, over all folders.", "bytes"
        ),
    ] = 64 * MIB
    hash_threads: Annotated[int, About(whole(1, 64), "Threads that read and hash files.", "threads")] = 2


class History(msgspec.Struct, frozen=True):
    """How long replaced and deleted versions are kept."""

    keep_days: Annotated[
        int,
        About(whole(0, 36_500), "Keep versions that a remote change replaced for this long; 0 is for ever.", "days"),
    ] = 30
    max_bytes: Annotated[
        int,
        About(
            size(), "Most space that one folder's history may take, oldest versions go first; 0 is no limit.", "bytes"
        ),
    ] = 0
    min_free_bytes: Annotated[
        int,
        About(size(), "Drop the oldest versions while the disk has less free space than this; 0 is never.", "bytes"),
    ] = 0


class Scrub(msgspec.Struct, frozen=True):
    """Reading everything again now and then, so that rot is found while another device has what was lost."""

    interval_days: Annotated[
        int, About(whole(0, 3650), "Read every file again within this time, while nothing else is to do; 0 is off.",
                   "days"),
    ] = 30  # fmt: skip
    max_rate: Annotated[int, About(size(64 * 1024, 4096 * MIB), "Read no faster than this.", "bytes/s")] = 16 * MIB


class Guards(msgspec.Struct, frozen=True):
    """When a remote change is suspiciously large, it waits for a person."""

    max_delete_count: Annotated[
        int,
        About(whole(0, 1 << 31), "Hold remote deletions of more files than this within the window; 0 is off.", "files"),
    ] = 50
    max_delete_percent: Annotated[
        int, About(whole(0, 100), "…and more than this share of the folder; 0 leaves it to the count alone.", "percent")
    ] = 20
    max_overwrite_count: Annotated[
        int,
        About(whole(0, 1 << 31), "Hold remote changes of more files than this within the window; 0 is off.", "files"),
    ] = 200
    max_overwrite_percent: Annotated[
        int, About(whole(0, 100), "…and more than this share of the folder; 0 leaves it to the count alone.", "percent")
    ] = 30
    window_s: Annotated[int, About(whole(1, DAY_S), "Time over which these changes are counted.", "seconds")] = 600
    min_free_percent: Annotated[
        int, About(whole(0, 90), "Stop fetching while the disk would have less free than this share…", "percent")
    ] = 1
    min_free_bytes: Annotated[int, About(size(), "…or less than this.", "bytes")] = 256 * MIB
    follow_unsafe_symlinks: Annotated[
        bool, About(BOOL, "Create symbolic links that point outside of their folder instead of holding them.")
    ] = False


class Log(msgspec.Struct, frozen=True):
    """What the node tells about itself, on stderr."""

    level: Annotated[str, About(choice("debug", "info", "warning", "error"), "Least important messages shown.")] = (
        "info"
    )
    format: Annotated[
        str, About(choice("auto", "human", "json"), "auto is human on a terminal and JSON lines otherwise.")
    ] = "auto"


class Config(msgspec.Struct, frozen=True):
    """Every setting, checked; each section of the file is one field."""

    device: Device = Device()
    network: Network = Network()
    sync: Sync = Sync()
    history: History = History()
    scrub: Scrub = Scrub()
    guards: Guards = Guards()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table of settings."""

    section: str
    key: str
    default: Any
    about: About

    @property
    def name(self) -> str:
        """The name on the command line: `section.key`."""
        return f"{self.section}.{self.key}"


def _table() -> dict[str, Setting]:
    settings = {}
    for section, kind in get_type_hints(Config).items():
        defaults = kind()
        for key, hint in get_type_hints(kind, include_extras=True).items():
            setting = Setting(section, key, getattr(defaults, key), hint.__metadata__[0])
            settings[setting.name] = setting
    return settings


SETTINGS: Mapping[str, Setting] = _table()
"""Every setting by its name `section.key`, in the order of the file."""

_SECTIONS: Mapping[str, type[msgspec.Struct]] = get_type_hints(Config)


def load_config(path: Path) -> Config:
    """Read and check the configuration file; a missing file means every default.

    Raises:
        ConfigError: it cannot be read, is not TOML, or holds an unknown setting or a bad value; the text names the
            file, the line, the setting, the value and what is allowed.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; make it readable or remove it") from error
    return parse_config(raw, str(path))


def parse_config(raw: bytes, source: str) -> Config:
    """Check the bytes of a configuration file; `source` names it in errors.

    Raises:
        ConfigError: as `load_config`.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_CONFIG_BYTES} bytes; this is not a configuration file")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}, line {line}: not UTF-8 text; save the file as UTF-8") from error
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}; correct that place") from error
    sections = {}
    for section, content in document.items():
        sections[section] = _parse_section(section, content, text, source)
    return Config(**sections)


def _parse_section(section: str, content: Any, text: str, source: str) -> Any:
    struct = _SECTIONS.get(section)
    if struct is None:
        raise ConfigError(f"{_place(source, text, section)}: unknown section [{section}]{_guess(section, _SECTIONS)}")
    if not isinstance(content, dict):
        raise ConfigError(
            f"{_place(source, text, section)}: {section} is a section; write [{section}] and its settings"
        )
    values = {}
    for key, value in content.items():
        setting = SETTINGS.get(f"{section}.{key}")
        place = _place(source, text, section, key)
        if setting is None:
            known = {row.key for row in SETTINGS.values() if row.section == section}
            raise ConfigError(f"{place}: unknown setting {section}.{key}{_guess(key, sorted(known))}")
        try:
            values[key] = setting.about.kind.check(value)
        except ValueError:
            raise ConfigError(
                f"{place}: {section}.{key} = {_shown(value)} is not allowed; it must be {setting.about.kind.allowed}"
            ) from None
    return struct(**values)


def _place(source: str, text: str, section: str, key: str | None = None) -> str:
    line = locate(text, section, key)
    return f"{source}, line {line + 1}" if line is not None else source


def _guess(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"


def _shown(value: Any) -> str:
    try:
        text = repr(value) if not isinstance(value, bool) else str(value).lower()
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def get_setting(config: Config, name: str) -> Any:
    """The value of `section.key`.

    Raises:
        InputError: there is no such setting.
    """
    setting = _setting(name)
    return getattr(getattr(config, setting.section), setting.key)


def show_setting(config: Config, name: str) -> str:
    """The value of `section.key` as it would stand in the file.

    Raises:
        InputError: there is no such setting.
    """
    return _setting(name).about.kind.show(get_setting(config, name))


def set_setting(path: Path, name: str, text: str) -> Config:
    """Change one setting in the file, keeping its comments and order; returns the configuration that is now in force.

    `text` is a TOML value; a bare word or a comma-separated list is taken as text (`config set log.level debug`).

    Raises:
        InputError: there is no such setting.
        ConfigError: the value is not allowed, or the file was already bad.
        OSError: the file cannot be written.
    """
    setting = _setting(name)
    kind = setting.about.kind
    for value in _readings(text):
        try:
            shown = kind.show(kind.check(value))
            break
        except ValueError:
            continue
    else:
        raise ConfigError(f"{name} = {_shown(text)} is not allowed; it must be {kind.allowed}")
    load_config(path)
    old = path.read_text(encoding="utf-8") if path.exists() else render_default_config()
    new = replace_value(old, setting.section, setting.key, shown).encode()
    config = parse_config(new, str(path))
    if show_setting(config, name) != shown:
        raise ConfigError(f"{path}: cannot change {name} without rewriting the file; edit it by hand")
    replace_file(path, new)
    return config


def _readings(text: str) -> list[Any]:
    """What a word on the command line may mean, most literal first."""
    readings: list[Any] = []
    with contextlib.suppress(ValueError, RecursionError):
        readings.append(tomllib.loads(f"value = {text}")["value"])
    return [*readings, text, [part.strip() for part in text.split(",")]]


def _setting(name: str) -> Setting:
    setting = SETTINGS.get(name)
    if setting is None:
        raise InputError(f"there is no setting {name[:80]!r}{_guess(name[:80], list(SETTINGS))}")
    return setting


def render_default_config() -> str:
    """A configuration file with every setting, its meaning, unit, allowed values and default, all commented out."""
    lines = ["# Settings of p2psync. A line that is commented out shows the default; remove its # to change it.", ""]
    section = None
    for setting in SETTINGS.values():
        if setting.section != section:
            section = setting.section
            lines += [f"# {_SECTIONS[section].__doc__}", f"[{section}]", ""]
        kind = setting.about.kind
        unit = f" Unit: {setting.about.unit}." if setting.about.unit != "-" else ""
        lines += [
            f"# {setting.about.meaning}{unit}",
            f"# Allowed: {kind.allowed}.",
            f"#{setting.key} = {kind.show(setting.default)}",
            "",
        ]
    return "\n".join(lines)


def render_markdown() -> str:
    """The page docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "`config.toml` in the node's home directory (`p2psync config get` lists it, `p2psync config set SETTING VALUE`",
        "changes it and keeps your comments). Every setting is optional. This page is made from the code by",
        "`python -m p2psync.node.config > docs/configuration.md`.",
    ]
    section = None
    for setting in SETTINGS.values():
        if setting.section != section:
            section = setting.section
            lines += ["", f"## [{section}]", "", f"{_SECTIONS[section].__doc__}", ""]
            lines += ["| Setting | Default | Unit | Allowed | Meaning |", "|---|---|---|---|---|"]
        about = setting.about
        allowed = about.kind.allowed.replace("|", "\\|")
        default = about.kind.show(setting.default)
        lines.append(f"| `{setting.key}` | `{default}` | {about.unit} | {allowed} | {about.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render_markdown())
