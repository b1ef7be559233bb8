"""Finding and replacing one value in TOML text, so that a person's comments, order and spacing survive.

`tomllib` gives values without places. This looks only at the shape of lines; whoever replaces a value parses the result
and compares (`p2psync.node.config.set_setting`), so a layout that is not understood is refused, never damaged.
"""

from __future__ import annotations

import re
import tomllib

# Both take linear time: no two parts that repeat can match the same characters.
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?")
_KEY = re.compile(r"""\s*([A-Za-z0-9_.\-"'][A-Za-z0-9_.\- \t"']*)=""")


def locate(text: str, section: str, key: str | None = None) -> int | None:
    """Index of the line where `[section]`, or `key` in it, is set; None when the layout hides it."""
    lines = text.split("\n")
    current: list[str] = []
    header: int | None = None
    for number, line in enumerate(lines):
        if match := _HEADER.fullmatch(line):
            current = _parts(match[1])
        elif match := _KEY.match(line):
            path = current + _parts(match[1])
            if key is not None and path[:2] == [section, key]:
                return number
            if path[:1] == [section] and header is None:
                header = number
            continue
        else:
            continue
        if current[:1] == [section] and header is None:
            header = number
    return header


def replace_value(text: str, section: str, key: str, value: str) -> str:
    """The text with `key` of `[section]` set to `value` (TOML source).

    An existing value is replaced where it stands, a commented-out one (`#key = …`) is followed by the new line, a
    missing one goes to the end of its section, and a missing section to the end of the text.
    """
    lines = text.split("\n")
    place = locate(text, section, key)
    match = _KEY.match(lines[place]) if place is not None else None
    if place is not None and match and _parts(match[1])[-1] == key:
        end = _statement_end(lines, place)
        comment = _comment(lines[place]) if end == place + 1 else ""
        lines[place:end] = [f"{match[0]} {value}{comment}"]
        return "\n".join(lines)
    start = _header(lines, section)
    if start is None:
        while lines and not lines[-1].strip():
            lines.pop()
        return "\n".join([*lines, *([""] if lines else []), f"[{section}]", f"{key} = {value}", ""])
    commented = re.compile(rf"\s*#\s*{re.escape(key)}\s*=.*")
    last = start
    for number in range(start + 1, len(lines)):
        if _HEADER.fullmatch(lines[number]):
            break
        if commented.fullmatch(lines[number]):
            last = number
            break
        if lines[number].strip() and not lines[number].lstrip().startswith("#"):
            last = number
    lines.insert(last + 1, f"{key} = {value}")
    return "\n".join(lines)


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _header(lines: list[str], section: str) -> int | None:
    for number, line in enumerate(lines):
        match = _HEADER.fullmatch(line)
        if match and _parts(match[1]) == [section]:
            return number
    return None


def _statement_end(lines: list[str], start: int) -> int:
    """Index after the last line of the statement that begins at `start`."""
    for end in range(start + 1, len(lines) + 1):
        try:
            tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
        return end
    return start + 1


def _comment(line: str) -> str:
    """The comment at the end of a one-line statement, with the space before it."""
    whole = tomllib.loads(line)
    for match in re.finditer(r"\s*#", line):
        try:
            if tomllib.loads(line[: match.start()]) == whole:
                return line[match.start() :].rstrip("\r")
        except tomllib.TOMLDecodeError:
            continue
    return ""
