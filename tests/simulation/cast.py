"""Who takes part in a story: devices and their disks, who meets whom, who comes late, is away, or only reads."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

from p2psync.ports import FsCapabilities
from p2psync.testing.disk import DiskProfile

Topology = Literal["full", "line", "star", "ring"]

DISKS: Mapping[str, DiskProfile] = {
    "plain": DiskProfile(),
    "folding": DiskProfile(FsCapabilities(case_insensitive=True, utf8_only=True)),
    "normalising": DiskProfile(FsCapabilities(case_insensitive=True, normalising=True, utf8_only=True)),
    "poor": DiskProfile(
        FsCapabilities(
            case_insensitive=True,
            symlinks=False,
            hard_links=False,
            exchange=False,
            noreplace=False,
            granularity_ns=2_000_000_000,
        )
    ),
    "simple": DiskProfile(FsCapabilities(hard_links=False, exchange=False, granularity_ns=1_000_000_000)),
}
"""Kinds of disk: as ext4, as APFS, as HFS+, as a FAT stick, as a network share."""

ASPECTS = frozenset({"topology", "late", "away", "names", "viewer", "sighting"})
"""Faults that belong to the cast: they hold for the whole story."""


@dataclass(frozen=True)
class Cast:
    """The devices of a story; the first founds the folder and is never late or away."""

    devices: tuple[str, ...]
    topology: Topology = "full"
    late: Mapping[str, float] = field(default_factory=dict)
    """Who joins in mid-story, and after which share of it."""
    away: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Who cannot be reached from one share of the story to another."""
    disks: Mapping[str, str] = field(default_factory=dict)
    """Kind of disk, where it is not plain."""
    viewers: tuple[str, ...] = ()
    sighted: bool = False
    """Whether devices find each other by discovery instead of by given addresses."""

    @staticmethod
    def draw(rng: random.Random) -> "Cast":
        """A cast of 2 to 6 devices; large ones are rare, as their stories cost the most."""
        (size,) = rng.choices((2, 3, 4, 5, 6), (42, 36, 16, 4, 2))
        devices = tuple("abcdef"[:size])
        others = devices[1:]
        late = {name: rng.uniform(0.1, 0.9) for name in others if rng.random() < 0.15}
        away = {name: (rng.uniform(0.0, 0.4), rng.uniform(0.6, 1.0)) for name in others if rng.random() < 0.15}
        odd = rng.random() < 0.3
        disks = {name: rng.choice(sorted(DISKS)) for name in others} if odd else {}
        viewers = tuple(name for name in others if rng.random() < 0.1)
        # Content that a disk cannot hold does not pass through its device, nor what a viewer has changed for itself.
        topology: Topology = "full" if disks or viewers else rng.choice(("full", "line", "star", "ring"))
        return Cast(devices, topology, late, away, disks, viewers, sighted=rng.random() < 0.25)

    def within(self, faults: Iterable[str]) -> "Cast":
        """The same without what is not among the faults of a scenario."""
        plain = Cast(self.devices)
        missing = ASPECTS - set(faults)
        return replace(
            self,
            topology=plain.topology if "topology" in missing else self.topology,
            late=plain.late if "late" in missing else self.late,
            away=plain.away if "away" in missing else self.away,
            disks=plain.disks if "names" in missing else self.disks,
            viewers=plain.viewers if "viewer" in missing else self.viewers,
            sighted=plain.sighted if "sighting" in missing else self.sighted,
        )

    def aspects(self) -> list[str]:
        """Names of what is not ordinary about this cast, for the counters."""
        shown = {
            "topology": self.topology != "full" and len(self.devices) > 2,
            "late": self.late,
            "away": self.away,
            "names": any(kind != "plain" for kind in self.disks.values()),
            "viewer": self.viewers,
            "sighting": self.sighted,
        }
        return [name for name, there in shown.items() if there]

    def profile(self, name: str) -> DiskProfile:
        """The disk of a device."""
        return DISKS[self.disks.get(name, "plain")]

    def apart(self) -> list[tuple[str, str]]:
        """Pairs of devices that never meet; what one writes reaches the other through others."""
        count = len(self.devices)
        met: set[tuple[int, int]]
        match self.topology:
            case "full":
                return []
            case "line":
                met = {(i, i + 1) for i in range(count - 1)}
            case "star":
                met = {(0, i) for i in range(1, count)}
            case "ring":
                met = {(i, i + 1) for i in range(count - 1)} | {(0, count - 1)}
        return [(self.devices[i], self.devices[j]) for i, j in combinations(range(count), 2) if (i, j) not in met]
