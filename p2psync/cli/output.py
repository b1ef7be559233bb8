"""How results look: JSON for programs, and for people text in which no foreign name can steer the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 4096


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import msgspec

    document = msgspec.json.encode(value)
    # One line for programs, so that a reader of lines has all of it at once.
    say((msgspec.json.format(document, indent=2) if sys.stdout.isatty() else document).decode())


def say(text: str = "") -> None:
    """A line on stdout, at once: other programs wait for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{plain(text)}\n")
    sys.stderr.flush()


def plain(text: str) -> str:
    """`text` with everything escaped that is not printable: names come from other devices and from disks."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python carries it in text
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode() if code > 0x7F else f"\\x{code:02x}"


def console(stderr: bool = False) -> Console:
    """A rich console that never reads markup in what it prints. Without a terminal nothing is cut or wrapped."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=None if terminal else _WIDE)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Aligned columns, or the sentence `empty` when there are no rows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        say(empty)


# ── words for numbers ───────────────────────────────────────────────────────────────────────────────────────────────
def size(count: float) -> str:
    """Bytes for people: `0 B`, `1.5 KiB`, `12 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number of things: `1 file`, `2,000 files`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Seconds for people, in the two largest units: `4 s`, `2 min 5 s`, `3 d 4 h`."""
    rest = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def moment(seconds: float | None) -> str:
    """A point in time in the local time zone; `-` for none."""
    if seconds is None:
        return "-"
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s"


def ago(seconds: float | None) -> str:
    """How long ago a moment was; `never` for none."""
    return "never" if seconds is None else f"{duration(time.time() - seconds)} ago"


def short(device_id: str) -> str:
    """The first group of a device ID."""
    return device_id.partition("-")[0]


def percent(done: int, total: int) -> str:
    """Part of a whole, rounded down: 100 % means all of it."""
    return f"{100 * done // total if total else 100} %"
