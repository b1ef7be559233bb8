"""How much work a run does: the sizes of the table, small ones for a quick look, and tiny ones to try everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes in bytes, counts of files or of repetitions, seconds; every field can be set by `--set NAME=NUMBER`."""

    rounds: int
    limit_s: int
    """Seconds that one measurement may take before it has failed."""
    big_bytes: int
    insert_bytes: int
    small_files: int
    samples: int
    """New files whose way to the other side is timed, per round."""
    tree_files: int
    many_files: int
    idle_s: int
    entries: int
    changes: int
    wan_bytes: int
    lossy_bytes: int
    wan_files: int
    shared_bytes: int
    mailbox_mib: int


FULL = Scale(
    rounds=3,
    limit_s=900,
    big_bytes=1024 * MIB,
    insert_bytes=256 * MIB,
    small_files=10_000,
    samples=20,
    tree_files=40_000,
    many_files=100_000,
    idle_s=60,
    entries=1_000_000,
    changes=1_000,
    wan_bytes=200 * MIB,
    lossy_bytes=20 * MIB,
    wan_files=2_000,
    shared_bytes=256 * MIB,
    mailbox_mib=1024,
)
QUICK = Scale(
    rounds=1,
    limit_s=30,
    big_bytes=128 * MIB,
    insert_bytes=32 * MIB,
    small_files=1_000,
    samples=5,
    tree_files=2_000,
    many_files=5_000,
    idle_s=5,
    entries=10_000,
    changes=100,
    wan_bytes=16 * MIB,
    lossy_bytes=2 * MIB,
    wan_files=200,
    shared_bytes=32 * MIB,
    mailbox_mib=64,
)
TINY = Scale(
    rounds=1,
    limit_s=60,
    big_bytes=8 * MIB,
    insert_bytes=4 * MIB,
    small_files=100,
    samples=2,
    tree_files=200,
    many_files=300,
    idle_s=1,
    entries=500,
    changes=10,
    wan_bytes=2 * MIB,
    lossy_bytes=MIB // 4,
    wan_files=20,
    shared_bytes=4 * MIB,
    mailbox_mib=8,
)
SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}


def adjusted(scale: Scale, settings: Iterable[str]) -> Scale:
    """The scale with `NAME=NUMBER` settings applied. ValueError names a setting that is none."""
    values = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        if name not in Scale.__slots__ or not number.isdecimal() or int(number) == 0:
            raise ValueError(f"{setting!r} is not NAME=NUMBER with one of: {', '.join(Scale.__slots__)}")
        values[name] = int(number)
    return dataclasses.replace(scale, **values)
