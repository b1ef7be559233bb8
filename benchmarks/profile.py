"""Where the time of a row of the table goes: py-spy on all nodes, summed by function.

    python -m benchmarks.profile ROW [--scale NAME] [--set NAME=NUMBER] [--gil] [--directory DIR]

Needs py-spy (`.venv/bin/pip install py-spy`). Prints, per node, the functions that were on the CPU (self) and on the
stack (total), as shares of the samples of threads that were not idle; writes the raw stacks beside the results.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.__main__ import options, sizes
from benchmarks.measure import Cell
from benchmarks.processes import cpu_seconds
from benchmarks.run import Run
from benchmarks.stage import Stage
from benchmarks.table import BY_KEY
from benchmarks.tools.p2psync import P2PSync

RESULTS = Path(__file__).parent / "results"
_RATE = 200


_WAITING = {
    "WorkerThread._work (trio/_core/_thread_cache.py)",
    "EpollIOManager.get_events (trio/_core/_io_epoll.py)",
    "Condition.wait (threading.py)",
    "InotifyFD._check_inotify_fd (watchdog/observers/inotify_c.py)",
    "LmdbStore._serve (p2psync/index/lmdb_store.py)",
}
_OTHERS = "trio and other libraries by themselves"
_UNINTERESTING = ("typer", "threading.py", "runpy", "outcome", "thread (", "_thread_cache", "cli/__main__", "cli/main")


def main() -> None:
    """Run the row's session, with py-spy around the row."""
    parser = options(__doc__)
    parser.add_argument("row", choices=list(BY_KEY))
    parser.add_argument("--gil", action="store_true", help="only samples of the thread that holds the GIL")
    arguments = parser.parse_args()
    if which("py-spy") is None:
        raise SystemExit(f"py-spy is not installed; run: {sys.executable} -m pip install py-spy")
    RESULTS.mkdir(exist_ok=True)
    scale = dataclasses.replace(sizes(parser, arguments), rounds=1)

    def around(stage: Stage, cell: Cell) -> AbstractContextManager[None]:
        return _watched(stage, cell, gil=arguments.gil) if cell.row == arguments.row else contextlib.nullcontext()

    run = Run(scale, {P2PSync.name: P2PSync}, frozenset((arguments.row,)), arguments.seed, print, around)
    run.measure(arguments.directory)


def which(command: str) -> str | None:
    """Where a program is: beside this Python, or on the path."""
    return shutil.which(command, path=str(Path(sys.executable).parent)) or shutil.which(command)


@contextlib.contextmanager
def _watched(stage: Stage, cell: Cell, *, gil: bool) -> Iterator[None]:
    roots = [root for root in stage.tool.roots() if root is not None]
    files = [RESULTS / f"profile-{cell.row}-{end}.raw" for end in range(len(roots))]
    options = ["-r", str(_RATE), "-f", "raw", "-d", "3600", *(["--gil"] if gil else [])]
    quiet = subprocess.DEVNULL
    spies = [
        subprocess.Popen(
            [str(which("py-spy")), "record", "-p", str(pid), "-o", str(file), *options], stdout=quiet, stderr=quiet
        )
        for pid, file in zip(roots, files, strict=True)
    ]
    time.sleep(2)
    before = [cpu_seconds(pid) for pid in roots]
    idle = [thread_times(pid) for pid in roots]
    try:
        yield
        spent = [cpu_seconds(pid) - start for pid, start in zip(roots, before, strict=True)]
        busy = [thread_times(pid) for pid in roots]
    finally:
        for process in spies:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    print(
        f"{cell.row}: {cell.wall or 0:.2f} s under py-spy; {_RATE} samples a second of every thread that does not wait"
    )
    for end, file in enumerate(files):
        threads: dict[str, float] = collections.defaultdict(float)
        for (number, name), seconds in busy[end].items():
            threads[name] += seconds - idle[end].get((number, name), 0.0)
        show(f"end {end}{' (makes the change)' if end == 0 else ''}", spent[end], threads, file.read_text())


def thread_times(pid: int) -> dict[tuple[int, str], float]:
    """CPU seconds of each living thread: (thread ID, name) → seconds."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            stat = (task / "stat").read_text()
            own = [int(field) for field in stat[stat.rindex(")") + 2 :].split()[11:13]]
            name = "main loop" if int(task.name) == pid else stat[stat.index("(") + 1 : stat.rindex(")")]
            found[int(task.name), name] = sum(own) / os.sysconf("SC_CLK_TCK")
    return found


def functions(raw: str) -> tuple[collections.Counter[str], collections.Counter[str], collections.Counter[str]]:
    """Samples in py-spy's raw format (`frame;frame;frame COUNT` a line), waiting left out, counted three ways.

    Returns: by the function that ran; by the innermost function of the project, so that libraries count for who called
    them; by every function on the stack.
    """
    own: collections.Counter[str] = collections.Counter()
    ours: collections.Counter[str] = collections.Counter()
    stacked: collections.Counter[str] = collections.Counter()
    for line in raw.splitlines():
        stack, _, text = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        if frames[-1] in _WAITING:
            continue
        count, project = int(text), [frame for frame in frames if "(p2psync/" in frame and "(p2psync/cli/" not in frame]
        own[frames[-1]] += count
        ours[project[-1] if project else _OTHERS] += count
        for function in set(frames):
            if not any(part in function for part in _UNINTERESTING):
                stacked[function] += count
    return own, ours, stacked


def show(side: str, cpu: float, threads: dict[str, float], raw: str) -> None:
    """Print one node's share."""
    own, ours, stacked = functions(raw)
    samples = own.total()
    print(f"\n== {side}: {cpu:.2f} s of CPU; {samples} samples")
    for name, seconds in sorted(threads.items(), key=lambda item: -item[1])[:6]:
        print(f"   thread {name:24} {seconds:.2f} s")
    views = (("self", own, 20), ("innermost function of the project", ours, 30), ("with callees", stacked, 40))
    for title, counter, most in views:
        print(f"-- {title}")
        for name, count in counter.most_common(most):
            print(f"{100 * count / max(1, samples):5.1f} %  {name}")


if __name__ == "__main__":
    main()
