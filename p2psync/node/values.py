"""How a setting's value is written: one `Kind` per shape of value, with its check, its text and what it allows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2psync.errors import InputError
from p2psync.net.addresses import parse_address

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT", start=1)
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})", re.ASCII)
_MAX_TEXT = 200
_MAX_LIST = 32


@dataclass(frozen=True, slots=True)
class Kind:
    """One shape of value: `check` turns a TOML value into the setting's own or raises ValueError, `allowed` says what
    passes, `show` writes it as TOML.
    """

    check: Callable[[Any], Any]
    allowed: str
    show: Callable[[Any], str] = json.dumps


def parse_size(text: str) -> int:
    """Bytes from text such as `10MiB`, `1.5 GB` or `4096` (KiB = 1024, KB = 1000).

    Raises:
        InputError: it is no such text.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = match and {name.lower(): value for name, value in _UNITS.items()}.get(match[2].lower())
    if not match or not factor:
        raise InputError(f"{text[:_MAX_TEXT]!r} is not a size; write bytes, or a number with KiB, MiB, GiB, TiB, KB…")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_size(count: int) -> str:
    """The shortest exact text of a number of bytes: `64MiB`, `1500`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % _UNITS[unit] == 0:
            return f"{count // _UNITS[unit]}{unit}"
    return str(count)


def whole(low: int, high: int) -> Kind:
    """A whole number in [low, high]."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return Kind(check, f"a whole number from {low} to {high}", str)


def size(low: int = 0, high: int = 1 << 60) -> Kind:
    """A number of bytes in [low, high], as a number or as text with a unit."""

    def check(value: Any) -> int:
        if isinstance(value, str):
            try:
                value = parse_size(value)
            except InputError:
                raise ValueError from None
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    span = f" from {format_size(low)} to {format_size(high)}" if (low, high) != (0, 1 << 60) else ""
    return Kind(check, f'bytes{span}, or text with a unit such as "10MiB"', lambda value: _show_size(int(value)))


def _show_size(count: int) -> str:
    text = format_size(count)
    return text if text.isdigit() else f'"{text}"'


def choice(*values: str) -> Kind:
    """One of a few words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise ValueError
        return value

    return Kind(check, " | ".join(f'"{value}"' for value in values))


def _check_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _check_name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 64 or not (value == "" or value.isprintable()):
        raise ValueError
    return value.strip()


def _check_addresses(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MAX_LIST:
        raise ValueError
    for item in value:
        if not isinstance(item, str):
            raise ValueError
        try:
            parse_address(item)
        except InputError:
            raise ValueError from None
    return tuple(dict.fromkeys(item.strip() for item in value))


BOOL = Kind(_check_bool, "true | false", lambda value: "true" if value else "false")
NAME = Kind(_check_name, "text of at most 64 printable characters", lambda value: json.dumps(value, ensure_ascii=False))
ADDRESSES = Kind(
    _check_addresses,
    f'a list of 1 to {_MAX_LIST} addresses "HOST:PORT", "[IPv6]:PORT" or ":PORT"',
    lambda value: json.dumps(list(value)),
)
