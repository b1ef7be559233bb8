"""Short programs of users, every one and two steps long and a sample of three: what there is to be interrupted.

Bounded black-box crash testing (Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing",
OSDI 2018): bugs that long random runs seldom meet show in a few operations on a small tree, if all of them are tried.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from p2psync.model.paths import PRIVATE_DIRECTORY
from p2psync.ports import Kind
from p2psync.testing import User
from p2psync.testing.root import SimFile

CHUNK = 8 * 1024
"""Chunks are this small in these runs, so that a file of several costs little."""
_SMALL = 5000
_LARGE = 10 * CHUNK - 1000
IGNORED = b"ignored"
"""Name of the file that the action `ignore` makes and asks to leave alone."""

Action = Callable[[User, bytes], None]
"""What a user does; the bytes are unique to the step."""


class LazyUser(User):
    """Works with programs that never sync."""

    def _edit(self, path: bytes, change: Callable[[SimFile], None], sync: bool) -> None:
        super()._edit(path, change, False)

    def atomic_save(self, path: bytes, data: bytes, *, sync: bool = False) -> None:
        """As `User.atomic_save`."""
        super().atomic_save(path, data, sync=False)


def text(stamp: bytes, size: int = _SMALL) -> bytes:
    """Content that nobody else writes and that differs in every sector."""
    line = stamp + b" %08d\n"
    lines = b"".join(line % number for number in range(size // (len(stamp) + 10) + 1))
    return lines[:size]


def base(user: User) -> None:
    """The tree that every workload starts from."""
    user.write(b"a", text(b"base a"))
    user.mkdir(b"d")
    user.write(b"d/a", text(b"base d/a"))
    user.write(b"d/c", text(b"base d/c"))
    user.symlink(b"a", b"l")
    user.write(b"big", text(b"base big", _LARGE))


def _make_directory(user: User, stamp: bytes) -> None:
    user.mkdir(b"e")
    user.write(b"e/a", text(stamp))


def _directory_to_file(user: User, stamp: bytes) -> None:
    user.delete_tree(b"d")
    user.write(b"d", text(stamp))


def _file_to_directory(user: User, stamp: bytes) -> None:
    user.delete_tree(b"a")
    user.mkdir(b"a")
    user.write(b"a/a", text(stamp))


def _relink(user: User, _: bytes) -> None:
    user.delete_tree(b"l")
    user.symlink(b"d", b"l")


def _link_to_file(user: User, stamp: bytes) -> None:
    user.delete_tree(b"l")
    user.write(b"l", text(stamp))


def _chmod(user: User, _: bytes) -> None:
    stat = user.stat(b"a")
    if stat is not None and stat.kind is Kind.FILE:
        user.chmod(b"a", stat.mode ^ 0o111)
        _sync(user, b"a")


def _tool(user: User, stamp: bytes) -> None:
    user.write(b"b", text(stamp))
    user.chmod(b"b", 0o755)
    _sync(user, b"b")


def _touch(user: User, _: bytes) -> None:
    user.touch(b"a", 1_000_000_000 * 10**9)
    _sync(user, b"a")


def _sync(user: User, path: bytes) -> None:
    if not isinstance(user, LazyUser):
        file = user.root.open(path)
        file.sync()
        file.close()


def _ignore(user: User, stamp: bytes) -> None:
    user.write(b".p2psyncignore", IGNORED + b"\n")
    user.write(IGNORED, text(stamp))


ACTIONS: dict[str, Action] = {
    "create": lambda user, stamp: user.write(b"b", text(stamp)),
    "replace": lambda user, stamp: user.write(b"a", text(stamp)),
    "save": lambda user, stamp: user.atomic_save(b"a", text(stamp)),
    "append": lambda user, stamp: user.append(b"a", text(stamp)),
    "delete": lambda user, _: user.delete(b"a"),
    "rename": lambda user, _: user.rename(b"a", b"b"),
    "move": lambda user, _: user.rename(b"a", b"d/b"),
    "swap": lambda user, _: user.exchange(b"a", b"d/a"),
    "rename-dir": lambda user, _: user.rename(b"d", b"e"),
    "mkdir": _make_directory,
    "rmdir": lambda user, _: user.delete_tree(b"d"),
    "dir-to-file": _directory_to_file,
    "file-to-dir": _file_to_directory,
    "link": lambda user, _: user.symlink(b"a", b"m"),
    "relink": _relink,
    "link-to-file": _link_to_file,
    "chmod": _chmod,
    "tool": _tool,
    "touch": _touch,
    "copy": lambda user, _: user.write(b"b", user.read(b"a")),
    "big": lambda user, stamp: user.write(b"B", text(stamp, _LARGE)),
    "edit-big": lambda user, stamp: user.edit(b"big", 3 * CHUNK + 100, text(stamp, 600)),
    "ignore": _ignore,
}
"""What a user may do to the tree, by name. An action that finds the tree otherwise fails like the program would."""

HERE, THERE = "L", "R"
"""Sides: on the device that will crash, and on the other one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One action of the user on one side. `settled`: only once both devices agree on what went before."""

    side: str
    action: str
    settled: bool = False

    def __str__(self) -> str:
        return f"{';' if self.settled else ','}{self.side}.{self.action}"


@dataclass(frozen=True, slots=True)
class Workload:
    """Steps in order; text such as `R.replace,L.delete` (at once) or `R.replace;L.delete` (settled in between).

    `lazy`: the programs on the device that crashes never sync what they write.
    """

    steps: tuple[Step, ...]
    lazy: bool = False

    def __str__(self) -> str:
        return "".join(str(step) for step in self.steps).lstrip(",;") + ("~" if self.lazy else "")

    @staticmethod
    def parse(name: str) -> Workload:
        """From its text; ValueError when it is none."""
        steps = []
        for part in name.removesuffix("~").replace(";", ",;").split(","):
            side, dot, action = part.removeprefix(";").partition(".")
            if side not in (HERE, THERE) or not dot or action not in ACTIONS:
                raise ValueError(f"{part!r} is no step: L or R, a dot, and one of {', '.join(ACTIONS)}")
            steps.append(Step(side, action, part.startswith(";")))
        return Workload(tuple(steps), name.endswith("~"))

    @property
    def sides(self) -> frozenset[str]:
        """On which sides something happens."""
        return frozenset(step.side for step in self.steps)


def ones() -> Iterator[Workload]:
    """Every workload of one step; local ones also with programs that do not sync."""
    for side, action in product((THERE, HERE), ACTIONS):
        yield Workload((Step(side, action),))
    for action in ACTIONS:
        yield Workload((Step(HERE, action),), lazy=True)


def twos() -> Iterator[Workload]:
    """Every pair of steps, both at once; on two sides, that is every conflict."""
    steps = [Step(side, action) for side, action in product((THERE, HERE), ACTIONS)]
    for first, second in product(steps, steps):
        yield Workload((first, second))


def threes(count: int, seed: int) -> Iterator[Workload]:
    """A sample of three steps, with and without quiet in between."""
    rng = random.Random(f"{seed} three steps")
    for _ in range(count):
        steps = tuple(
            Step(rng.choice((HERE, THERE)), rng.choice(list(ACTIONS)), number > 0 and rng.random() < 0.4)
            for number in range(3)
        )
        yield Workload(steps, lazy=any(step.side == HERE for step in steps) and rng.random() < 0.2)


def make_durable(user: User, directory: bytes = b"") -> None:
    """What a careful program does at its end: sync the directories it may have changed, here all of them."""
    root = user.root
    for name, stat in root.scan(directory):
        path = directory + b"/" + name if directory else name
        if stat.kind is Kind.DIRECTORY and path != PRIVATE_DIRECTORY:
            make_durable(user, path)
    root.sync_directory(directory)
