"""The inputs that are kept: few, short, each for a line of the product that no earlier one reaches."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import p2psync
from tests.fuzz.rules import Target

DIRECTORY = Path(__file__).parent / "corpus"
MAX_KEPT = 60
MAX_BYTES = 16 * 1024
"""Of one target's file."""

_PRODUCT = str(Path(p2psync.__file__).parent)


def load(target: str) -> list[bytes]:
    """The kept inputs of a target: a line of Base64 each."""
    path = DIRECTORY / f"{target}.txt"
    return [base64.b64decode(line, validate=True) for line in path.read_text().split()] if path.exists() else []


def save(target: Target, inputs: Iterable[bytes]) -> int:
    """Keep the inputs that matter among these, shortest first; how many that are."""
    seen: set[tuple[str, int]] = set()
    kept: list[str] = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        line = base64.b64encode(data).decode()
        if len(kept) == MAX_KEPT or sum(map(len, kept)) + len(line) > MAX_BYTES:
            break
        reached = _lines(target, data)
        if not reached <= seen:
            seen |= reached
            kept.append(line)
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / f"{target.name}.txt").write_text("".join(f"{line}\n" for line in kept))
    return len(kept)


def _lines(target: Target, data: bytes) -> set[tuple[str, int]]:
    """Which lines of the product an input reaches."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, _event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(_PRODUCT):
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        target.feed(data)
    except target.documented:
        pass
    finally:
        sys.settrace(None)
    return lines
