"""What users do in a folder: all that editors, shells and build tools do, at random, with unique content."""

import random
from collections.abc import Callable
from typing import Any, Protocol

import trio

from p2psync.errors import EscapeError
from p2psync.ports import Kind
from p2psync.testing import Oracle, SimDevice

ALL_ACTIONS = (
    "write",
    "append",
    "edit",
    "atomic_save",
    "rename",
    "exchange",
    "delete",
    "delete_tree",
    "mkdir",
    "rmdir",
    "symlink",
    "chmod",
    "touch",
    "change_kind",
)
FLAT_ACTIONS = ("write", "append", "edit", "atomic_save")
_NAMES = (b"a", b"b", b"c", b"notes.txt", b"d", b"A", b"Notes.txt", b"x\xff", "\u00e9".encode(), "e\u0301".encode())
"""Some are one name to a disk that folds case or form."""
_SIZES = (0, 1, 100, 4095, 4096, 5000, 20_000)


class Alive(Protocol):
    """What a person needs to know of the machine."""

    @property
    def idle(self) -> bool: ...


class Habits(Protocol):
    """What a person needs to know of the plan."""

    @property
    def pause_s(self) -> float: ...

    @property
    def sync_share(self) -> float: ...


class Person:
    """One user of one device; all errors of system calls are theirs to shrug off."""

    def __init__(
        self,
        device: SimDevice,
        folder: bytes,
        oracle: Oracle,
        actions: tuple[str, ...],
        habits: Habits,
        touched: set[bytes],
    ) -> None:
        """`touched` gets every path that the person acts on."""
        self.touched = touched
        self.name = device.name
        self.user = device.user(folder, oracle)
        self.rng = random.Random(device.rng.random())
        self.actions = actions
        self.habits = habits
        self.saved = 0

    async def live(self, machine: Alive, note: Callable[..., None]) -> None:
        """Act for ever, at random moments, while the machine has power."""
        while True:
            await trio.sleep(self.rng.expovariate(1 / self.habits.pause_s))
            if not machine.idle:
                self.act(note)

    def act(self, note: Callable[..., None]) -> None:
        """Do one thing."""
        kind = self.rng.choice(self.actions)
        path, other = self.path(), self.path()
        self.touched |= {path, other}
        try:
            getattr(self, kind)(path, other)
        except (OSError, EscapeError) as error:
            note(self.name, "user error", action=kind, path=path, error=getattr(error, "errno", "symlink"))
        else:
            note(self.name, f"user {kind}", path=path, other=other)

    def path(self) -> bytes:
        """An existing path most of the time, else a new one; flat unless directories can be made."""
        names = [self.rng.choice(_NAMES)]
        if "mkdir" in self.actions:
            while len(names) < 4 and self.rng.random() < 0.4:
                names.append(self.rng.choice(_NAMES))
        return b"/".join(names)

    def content(self) -> bytes:
        """Bytes nobody ever wrote before."""
        self.saved += 1
        stamp = f"{self.name} {self.saved} ".encode()
        size = self.rng.choice(_SIZES)
        return stamp + self.rng.randbytes(min(size, 16)).ljust(size, b".")

    @property
    def sync(self) -> bool:
        """Whether this program fsyncs."""
        return self.rng.random() < self.habits.sync_share

    # ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def write(self, path: bytes, _: bytes) -> None:
        self.user.write(path, self.content(), sync=self.sync)

    def append(self, path: bytes, _: bytes) -> None:
        self.user.append(path, self.content(), sync=self.sync)

    def edit(self, path: bytes, _: bytes) -> None:
        self.user.edit(path, self.rng.choice(_SIZES), self.content(), sync=self.sync)

    def atomic_save(self, path: bytes, _: bytes) -> None:
        self.user.atomic_save(path, self.content(), sync=self.sync)

    def rename(self, path: bytes, other: bytes) -> None:
        self.user.rename(path, other)

    def exchange(self, path: bytes, other: bytes) -> None:
        self.user.exchange(path, other)

    def delete(self, path: bytes, _: bytes) -> None:
        self.user.delete(path)

    def delete_tree(self, path: bytes, _: bytes) -> None:
        self.user.delete_tree(path)

    def mkdir(self, path: bytes, _: bytes) -> None:
        self.user.mkdir(path)

    def rmdir(self, path: bytes, _: bytes) -> None:
        self.user.rmdir(path)

    def symlink(self, path: bytes, other: bytes) -> None:
        self.user.symlink(other, path)

    def chmod(self, path: bytes, _: bytes) -> None:
        stat = self.user.stat(path)
        if stat is not None and stat.kind is Kind.FILE:
            self.user.chmod(path, stat.mode ^ 0o111)

    def touch(self, path: bytes, _: bytes) -> None:
        self.user.touch(path, self.rng.randrange(2 * 10**18))

    def change_kind(self, path: bytes, other: bytes) -> None:
        self.user.delete_tree(path)
        kinds: list[Any] = [self.write, self.mkdir, self.symlink]
        self.rng.choice(kinds)(path, other)
