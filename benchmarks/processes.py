"""What a side of a run costs: CPU and peak memory of its processes and their children, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.05


def parse_cpu(stat: str) -> tuple[float, float]:
    """CPU seconds in the text of /proc/PID/stat, (all, in the kernel): its own and of the children it waited for."""
    fields = stat[stat.rindex(")") + 2 :].split()
    own, system, children, of_children = (int(field) / _TICK for field in fields[11:15])
    return own + system + children + of_children, system + of_children


def parse_peak(status: str) -> int:
    """Peak resident bytes (VmHWM) in the text of /proc/PID/status; 0 for a zombie, which has no memory."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def family(root: int) -> list[int]:
    """A process and its living descendants."""
    members, unseen = [], [root]
    while unseen:
        pid = unseen.pop()
        members.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    unseen += map(int, (task / "children").read_text().split())
    return members


def cpu_seconds(root: int) -> float:
    """CPU of a process and all its descendants, also of those that have ended and were waited for."""
    return cpu_times(root)[0]


def cpu_times(root: int) -> tuple[float, float]:
    """As `cpu_seconds`: (all, in the kernel)."""
    total = kernel = 0.0
    for pid in family(root):
        with contextlib.suppress(OSError):
            of_all, of_kernel = parse_cpu(Path(f"/proc/{pid}/stat").read_text())
            total, kernel = total + of_all, kernel + of_kernel
    return total, kernel


class PeakMeter:
    """Peak memory of one process and its family, sampled so that processes which end are seen too.

    The kernel's own high-water mark is read, so for a single process that lives to the end the figure is exact. The
    peaks of processes that live at the same time are added: an upper bound, pages they share count twice.
    """

    def __init__(self, root: int) -> None:
        self._meter = EndMeter(lambda: root)

    def stop(self) -> int:
        """Bytes at the peak since the meter was made."""
        return self._meter.stop()


class EndMeter:
    """CPU and peak memory of one end of a tool, also across restarts of its process, until `stop`."""

    def __init__(self, root: Callable[[], int | None]) -> None:
        """`root`: the process of the end as it is now, None while there is none."""
        self._root = root
        self._peak = 0
        first = root()
        self._before = (0.0, 0.0) if first is None else cpu_times(first)
        self._cpu: dict[int, tuple[float, float]] = {}
        self._ended = threading.Event()
        _forget_peaks(first)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def cpu(self) -> tuple[float, float]:
        """CPU seconds since the meter was made, (all, in the kernel); of a process that ended, until shortly before."""
        self._sample()
        total, kernel = (sum(values) for values in zip((0.0, 0.0), *self._cpu.values(), strict=True))
        return total - self._before[0], kernel - self._before[1]

    def stop(self) -> int:
        """Bytes at the peak since the meter was made."""
        self._ended.set()
        self._thread.join()
        self._sample()
        return self._peak

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        root = self._root()
        if root is not None:
            self._peak = max(self._peak, _peak(root))
            self._cpu[root] = max(self._cpu.get(root, (0.0, 0.0)), cpu_times(root))


def _forget_peaks(root: int | None) -> None:
    for pid in [] if root is None else family(root):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak(root: int) -> int:
    total = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            total += parse_peak(Path(f"/proc/{pid}/status").read_text())
    return total


def settle(cpu: Callable[[], float], quiet_s: float = 0.5, limit_s: float = 60.0) -> bool:
    """Wait until hardly any CPU (2 %) was used for `quiet_s`; False when that never comes."""
    deadline = time.monotonic() + limit_s
    before = cpu()
    while time.monotonic() < deadline:
        time.sleep(quiet_s)
        now = cpu()
        if now - before <= max(0.02 * quiet_s, 1 / _TICK):
            return True
        before = now
    return False
