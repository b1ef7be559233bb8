"""Deltas: which parts of a chunk can be copied from older content here, and which have to be asked for.

The holder of a chunk names its leaves (see `model.cutting`); what is known here under the same names is copied, the
rest comes as ranges. A name is short and may lie: what was put together counts only once the whole chunk's
hash is right.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p2psync.errors import InputError
from p2psync.model.cutting import Leaf
from p2psync.model.manifest import Manifest

MAX_NEAR = 16
"""Chunks of an older version that are looked at for one chunk: more than fit in where cuts are ours."""


class Spot(NamedTuple):
    """Where a leaf lies in a source; `source` is a number of the caller's."""

    source: int
    offset: int


class Copy(NamedTuple):
    """`length` bytes of a chunk from `at` on are those at a spot."""

    at: int
    spot: Spot
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How one chunk of `length` bytes comes together. Copies and ranges cover it exactly, both ascending."""

    length: int
    copies: tuple[Copy, ...]
    ranges: tuple[tuple[int, int], ...]
    """(offset, length) in the chunk."""

    @property
    def copied(self) -> int:
        """Bytes that need not be asked for."""
        return sum(copy.length for copy in self.copies)

    @property
    def fetched(self) -> int:
        """Bytes that have to come."""
        return sum(length for _, length in self.ranges)


def whole(length: int) -> Plan:
    """Ask for everything."""
    return Plan(length, (), ((0, length),))


def plan(leaves: Sequence[Leaf], known: Mapping[Leaf, Spot], most: int) -> Plan:
    """Copy the leaves that are known, ask for the others; for everything when that would be more than `most` ranges."""
    copies: list[Copy] = []
    ranges: list[tuple[int, int]] = []
    at = 0
    for leaf in leaves:
        spot = known.get(leaf)
        if spot is None:
            _extend(ranges, at, leaf.length)
        elif copies and _follows(copies[-1], at, spot):
            copies[-1] = copies[-1]._replace(length=copies[-1].length + leaf.length)
        else:
            copies.append(Copy(at, spot, leaf.length))
        at += leaf.length
    return Plan(at, tuple(copies), tuple(ranges)) if len(ranges) <= most else whole(at)


def assemble(found: Plan, read: Callable[[Spot, memoryview], bool], fetched: bytes | memoryview) -> bytearray:
    """The chunk: copies as `read` fills them, between them what was `fetched`, one range after the other.

    InputError when a copy could not be read, or another amount came than was asked for.
    """
    if len(fetched) != found.fetched:
        raise InputError("what came is not what was asked for")
    chunk = bytearray(found.length)
    view = memoryview(chunk)
    for copy in found.copies:
        if not read(copy.spot, view[copy.at : copy.at + copy.length]):
            raise InputError("what was to be copied is gone")
    taken = 0
    for offset, length in found.ranges:
        view[offset : offset + length] = fetched[taken : taken + length]
        taken += length
    return chunk


def neighbourhoods(old: Manifest, new: Manifest, lacking: Sequence[int], longest: int) -> dict[bytes, range]:
    """For chunks of `new` that `old` lacks (by index): which chunks of `old` stand in their place, by their hashes.

    They are between the chunks before and after that both have, and no farther away than a margin of a quarter of
    `longest`: an insertion or removal shorter than that is bridged also where all cuts are at fixed lengths. At most
    `MAX_NEAR` for each.
    """
    starts = [offset for _, offset, _ in old.chunks()]
    place = {chunk: offset for chunk, offset, _ in old.chunks()}
    chunks = new.chunks()
    following = [(old.size, new.size - old.size)]
    for chunk, offset, _ in reversed(chunks):
        following.append((place[chunk], offset - place[chunk]) if chunk in place else following[-1])
    following.reverse()
    wanted = set(lacking)
    low = shift = 0
    found: dict[bytes, range] = {}
    for index, (chunk, offset, length) in enumerate(chunks):
        if chunk in place:
            low, shift = place[chunk] + length, offset - place[chunk]
        elif index in wanted:
            high, other = following[index + 1]
            if high < low or abs(other - shift) > longest:
                high, other = old.size, shift
            first = max(low, offset - max(shift, other) - longest // 4)
            last = min(high, offset + length - min(shift, other) + longest // 4)
            begin = max(bisect_right(starts, first) - 1, bisect_left(starts, low))
            end = bisect_left(starts, last) if last > first else begin
            found[chunk] = range(begin, min(end, begin + MAX_NEAR))
    return {chunk: near for chunk, near in found.items() if near}


def _extend(ranges: list[tuple[int, int]], at: int, length: int) -> None:
    if ranges and sum(ranges[-1]) == at:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
    else:
        ranges.append((at, length))


def _follows(copy: Copy, at: int, spot: Spot) -> bool:
    return copy.at + copy.length == at and copy.spot._replace(offset=copy.spot.offset + copy.length) == spot
