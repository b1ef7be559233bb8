"""What goes wrong around the nodes: power cuts, kills, bad links, failing operations, racing programs, clocks."""

import errno
import random
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.simulation.people import Person

if TYPE_CHECKING:
    from tests.simulation.harness import Host, Story

_ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS)
_RACES = frozenset({"stat", "open", "rename", "unlink", "rmdir", "link", "create", "pread"})


async def disturb(story: "Story") -> None:
    """Cause one fault after the other, for ever."""
    rng = story.sim.rng("weather")
    kinds = sorted(story.scenario.faults)
    while True:
        await trio.sleep(rng.expovariate(1 / story.plan.trouble_s))
        kind = rng.choice(kinds)
        host = story.hosts[rng.choice(story.plan.devices)]
        if not host.dead:
            _FAULTS[kind](story, host, rng)
            story.note(host.device.name, f"fault {kind}")


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


def _error(story: "Story", host: "Host", rng: random.Random) -> None:
    """Some operations of the near future fail, as on a full or failing disk."""
    del story
    number = rng.choice(_ERRORS)
    for _ in range(rng.choice((1, 1, 5))):
        host.device.disk.faults.fail(rng.randrange(1, 100), number)


def _intrusion(story: "Story", host: "Host", rng: random.Random) -> None:
    """A user acts between two system calls of the node."""
    person = Person(host.device, b"/sync/folder", story.oracle, story.scenario.actions, story.plan)
    person.name += f"-intruder-{story.counters['fault intrusion']}"
    host.device.disk.faults.at(rng.randrange(1, 20), partial(person.act, story.note), _RACES)


def _clock(_: "Story", host: "Host", rng: random.Random) -> None:
    host.device.clock.jump(rng.choice((-3600.0, -1.0, 1.0, 3600.0, 86_400.0)))


def _hints(_: "Story", host: "Host", rng: random.Random) -> None:
    host.device.watcher.loss = rng.choice((0.0, 0.5, 1.0))


_FAULTS = {
    "crash": _crash,
    "kill": _kill,
    "cut": _cut,
    "reset": _reset,
    "error": _error,
    "intrusion": _intrusion,
    "clock": _clock,
    "hints": _hints,
}
