"""A deterministic world for whole nodes: simulated disk, database, network and clock, contract suites and an oracle.

Everything here is public: a program that embeds p2psync can test itself against the world p2psync is tested in. One
integer decides everything that happens in a run (`SimWorld(seed)`), so that every failure can be replayed.
"""

from p2psync.testing.determinism import Trace, run_deterministic
from p2psync.testing.disk import DiskProfile, SimDisk
from p2psync.testing.faults import FaultPlan, SimulatedCrash
from p2psync.testing.kv import MemoryDatabase
from p2psync.testing.network import Link, SimNetwork
from p2psync.testing.oracle import Oracle, Violation
from p2psync.testing.user import User
from p2psync.testing.world import SimClock, SimDevice, SimRng, SimWorld

__all__ = [
    "DiskProfile",
    "FaultPlan",
    "Link",
    "MemoryDatabase",
    "Oracle",
    "SimClock",
    "SimDevice",
    "SimDisk",
    "SimNetwork",
    "SimRng",
    "SimWorld",
    "SimulatedCrash",
    "Trace",
    "User",
    "Violation",
    "run_deterministic",
]
