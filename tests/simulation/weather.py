"""What goes wrong around the nodes: power cuts, kills, bad links, failing operations, racing programs, clocks.

`mishaps` has what befalls the things that people look after.
"""

import errno
import random
from typing import TYPE_CHECKING

import trio

from tests.simulation.mishaps import MISHAPS, Fault

if TYPE_CHECKING:
    from tests.simulation.harness import Host, Story

_ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS, errno.EDQUOT)
_SYNCS = ("sync", "sync_directory", "sync_all")
_YEAR_S = 365.25 * 86_400
_RACES = frozenset({"stat", "open", "rename", "unlink", "rmdir", "link", "create", "pread"})


async def disturb(story: "Story") -> None:
    """Cause one fault after the other, for ever."""
    rng = story.sim.rng("weather")
    kinds = sorted(story.scenario.faults & FAULTS.keys())
    while kinds:
        await trio.sleep(rng.expovariate(1 / story.plan.trouble_s))
        kind = rng.choice(kinds)
        host = story.hosts[rng.choice(story.plan.devices)]
        if not host.dead:
            story.note(host.device.name, f"fault {kind}")
            FAULTS[kind](story, host, rng)


def _crash(_: "Story", host: "Host", rng: random.Random) -> None:
    """Power is cut now, or in the middle of something that the node will do soon."""
    if rng.random() < 0.3:
        host.die(power=True, resting_s=rng.choice((0.1, 5.0, 60.0)))
    else:
        host.resting_s = rng.choice((0.1, 5.0, 60.0))
        host.device.disk.faults.cut_power(rng.randrange(1, 60))


def _kill(_: "Story", host: "Host", rng: random.Random) -> None:
    host.die(power=False, resting_s=rng.choice((0.1, 5.0, 60.0)))


def _cut(story: "Story", host: "Host", rng: random.Random) -> None:
    """A link is cut one way or both, or heals; or a host is alone."""
    network, name = story.sim.network, host.device.name
    others = [other for other in story.plan.devices if other != name]
    match rng.randrange(4):
        case 0:
            network.isolate(name)
        case 1:
            network.cut(name, rng.choice(others), one_way=rng.random() < 0.5)
        case 2:
            network.heal_all()
        case _:
            link = network.link(name, rng.choice(others))
            link.latency_s, link.jitter_s = rng.choice((0.001, 0.05, 0.5)), rng.choice((0.0, 0.2))
            link.bytes_per_s = rng.choice((float("inf"), 1e6, 2e4))


def _reset(story: "Story", host: "Host", _: random.Random) -> None:
    story.sim.network.reset(host.device.name)


def _abandon(story: "Story", host: "Host", _: random.Random) -> None:
    """Connections are half open: this side has lost them, the other hears nothing of it."""
    story.sim.network.abandon(host.device.name)


def _corrupt(story: "Story", host: "Host", rng: random.Random) -> None:
    """Bits flip on the way to or from a host."""
    other = rng.choice([name for name in story.plan.devices if name != host.device.name])
    pair = [host.device.name, other]
    rng.shuffle(pair)
    story.sim.network.link(*pair).corrupt = rng.choice((1, 3))


def _sighting(story: "Story", host: "Host", rng: random.Random) -> None:
    """Announcements are lost, come again, or lead to a wrong place."""
    hub = story.sim.discovery
    match rng.randrange(4):
        case 0:
            hub.loss = rng.choice((0.5, 1.0))
        case 1:
            hub.loss = 0.0
            hub.repeat()
        case 2:
            hub.mislead(host.device.name, rng.choice(("10.9.9.9:1", f"{rng.choice(story.plan.devices)}:22067")))
        case _:
            hub.withdraw(host.device.name)


def _fsync(story: "Story", host: "Host", rng: random.Random) -> None:
    """The next sync fails, and what it was to make durable may be gone."""
    del story
    host.device.disk.faults.fail(rng.randrange(1, 4), rng.choice((errno.EIO, errno.ENOSPC, errno.EDQUOT)), _SYNCS)


def _commit(story: "Story", host: "Host", rng: random.Random) -> None:
    """A commit of a database fails, before or after it is durable."""
    del story
    kind = rng.choice(("commit", "committed"))
    host.device.disk.faults.fail(rng.randrange(1, 10), rng.choice((errno.EIO, errno.ENOSPC)), (kind,))


def _error(story: "Story", host: "Host", rng: random.Random) -> None:
    """Some operations of the near future fail, as on a full or failing disk."""
    del story
    number = rng.choice(_ERRORS)
    for _ in range(rng.choice((1, 1, 5))):
        host.device.disk.faults.fail(rng.randrange(1, 100), number)


def _intrusion(story: "Story", host: "Host", rng: random.Random) -> None:
    """A user acts between two system calls of the node."""
    person = story.person(host)
    person.name += f"-intruder-{story.counters['fault intrusion']}"

    def act() -> None:
        if not host.unplugged:
            person.act(story.note)

    host.device.disk.faults.at(rng.randrange(1, 20), act, _RACES)


def _clock(story: "Story", host: "Host", rng: random.Random) -> None:
    seconds = rng.choice((-3600.0, -1.0, 1.0, 3600.0, 86_400.0, rng.uniform(-10, 10) * _YEAR_S))
    host.device.clock.jump(seconds)
    if abs(seconds) > _YEAR_S:
        story.note(host.device.name, "clock jumped by years", seconds=seconds)


def _hints(_: "Story", host: "Host", rng: random.Random) -> None:
    host.device.watcher.loss = rng.choice((0.0, 0.5, 1.0))


FAULTS: dict[str, Fault] = {
    "crash": _crash,
    "kill": _kill,
    "cut": _cut,
    "reset": _reset,
    "error": _error,
    "intrusion": _intrusion,
    "clock": _clock,
    "hints": _hints,
    "abandon": _abandon,
    "corrupt": _corrupt,
    "sighting": _sighting,
    "fsync": _fsync,
    "commit": _commit,
    **MISHAPS,
}
