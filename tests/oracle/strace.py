"""System calls that fail: strace attached to a running node makes the N-th call of a kind return an error."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sync": (("fsync", "fdatasync", "syncfs"), ("EIO", "ENOSPC")),
    "write": (("write", "pwrite64", "pwritev"), ("ENOSPC", "EIO")),
    "rename": (("rename", "renameat", "renameat2"), ("EIO", "ENOSPC")),
    "open": (("openat", "openat2"), ("EMFILE", "EIO")),
}
"""Kind of call → (system calls, errors they fail with by turns)."""
ATTACH_TIMEOUT_S = 30.0

_CALL = re.compile(rb"^(\d+) +(\w+)\(", re.MULTILINE)


class Strace:
    """Traces every thread of a process, also those it starts later, for as long as the block lasts.

    A call that is to fail is counted per thread, as strace does: with several threads at work more than one may fail.
    """

    def __init__(self, pid: int, calls: tuple[str, ...], output: Path, inject: str = "") -> None:
        """`inject` is what follows "inject=", such as "fsync:error=EIO:when=3"."""
        self._output = output
        self._command = ["strace", "-f", "-e", "signal=none", "-e", f"trace={','.join(calls)}"]
        if inject:
            self._command += ["-e", f"inject={inject}"]
        self._command += ["-o", str(output), "-p", str(pid)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if "attached" not in line:
            self.__exit__(None, None, None)
            raise OSError(f"strace could not attach: {line.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=ATTACH_TIMEOUT_S)

    @property
    def struck(self) -> int:
        """How many calls were made to fail so far."""
        return self._output.read_bytes().count(b"(INJECTED)") if self._output.exists() else 0

    def most(self) -> Counter[str]:
        """Per system call, how often the busiest thread made it."""
        per_thread = Counter(_CALL.findall(self._output.read_bytes()))
        most: Counter[str] = Counter()
        for (_, call), count in per_thread.items():
            most[call.decode()] = max(most[call.decode()], count)
        return most


def unusable() -> str:
    """Why system calls cannot be made to fail here; empty when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            with Strace(sleeper.pid, ("write",), Path("/dev/null"), "write:error=EIO:when=1"):
                return ""
        except OSError as error:
            return str(error)
        finally:
            sleeper.kill()


def spread(most: Counter[str], calls: tuple[str, ...], points: int) -> list[tuple[str, int]]:
    """`points` pairs (system call, N): every call that is made gets a share, its first, a late one and between.

    The last quarter is left out: threads share the work anew in each run, and a call that is not made cannot fail.

    Where fewer calls are made than that, pairs repeat, to be used with another error.
    """
    made = [call for call in calls if most[call]]
    if not made:
        return []
    share = -(-points // len(made))
    pairs: list[tuple[str, int]] = []
    for call in made:
        last = -(-most[call] * 3 // 4)
        pairs += [(call, 1 + round(i * (last - 1) / max(share - 1, 1))) for i in range(share)]
    return pairs
