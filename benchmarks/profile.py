"""Where the time of a first sync or an edit goes: py-spy on both nodes, summed by function.

    python -m benchmarks.profile big|small|edit [--directory DIR]

Needs py-spy (`.venv/bin/pip install py-spy`). Prints, per node, the functions that were on the CPU (self) and on the
stack (total), as shares of the samples of threads that were not idle; writes the raw stacks beside the results.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import workloads
from benchmarks.measure import Cell, synchronise
from benchmarks.network import Network, network
from benchmarks.processes import cpu_seconds
from benchmarks.tools import P2PSync

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
    """Run one workload under py-spy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("workload", choices=["big", "small", "edit"])
    parser.add_argument("--directory", type=Path, help="where the trees are made")
    parser.add_argument("--gil", action="store_true", help="only samples of the thread that holds the GIL")
    arguments = parser.parse_args()
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise SystemExit(f"py-spy is not installed; run: {sys.executable} -m pip install py-spy")
    RESULTS.mkdir(exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="p2psync-profile-", dir=arguments.directory))
    try:
        with network() as link:
            extra = ["--gil"] if arguments.gil else []
            _profile(spy, extra, arguments.workload, P2PSync(base, link), base, link)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _profile(spy: str, extra: list[str], workload: str, tool: P2PSync, base: Path, link: Network) -> None:
    rng, staged = random.Random(1), base / "staged"
    if workload == "small":
        workloads.make_small(staged, workloads.FULL.small_files, rng)
    else:
        workloads.make_big(staged, workloads.FULL.big_bytes, rng)
    expected = [(name.replace("staged", "data", 1), size) for name, size in workloads.listing(staged)]
    big = Path("data", "big.bin")

    def first_sync() -> workloads.Arrived:
        staged.rename(tool.left / "data")
        return workloads.files_arrived(tool.right, expected)

    def edit() -> workloads.Arrived:
        return workloads.block_arrived(tool.right / big, *workloads.edit(tool.left / big, rng))

    def run(apply: Callable[[], workloads.Arrived]) -> float:
        cell = Cell(workload, tool.name, 1)
        synchronise(cell, tool, link, apply, "data", changed=apply is edit, limit=180, reserve=4 << 30)
        return cell.wall or 0.0

    try:
        tool.start()
        if workload == "edit":
            run(first_sync)
        _watched(spy, extra, workload, tool, lambda: run(edit if workload == "edit" else first_sync))
    finally:
        tool.stop()


def _watched(spy: str, extra: list[str], workload: str, tool: P2PSync, run: Callable[[], float]) -> None:
    files = [RESULTS / f"profile-{workload}-{side}.raw" for side in ("left", "right")]
    options = ["-r", str(_RATE), "-f", "raw", "-d", "600", *extra]
    spies = [
        subprocess.Popen([spy, "record", "-p", str(pid), "-o", str(file), *options], stdout=quiet, stderr=quiet)
        for pid, file in zip(tool.roots(), files, strict=True)
        for quiet in [subprocess.DEVNULL]
    ]
    time.sleep(2)
    before = [cpu_seconds(pid) for pid in tool.roots()]
    idle = [thread_times(pid) for pid in tool.roots()]
    try:
        wall = run()
        spent = [cpu_seconds(pid) - start for pid, start in zip(tool.roots(), before, strict=True)]
        busy = [thread_times(pid) for pid in tool.roots()]
    finally:
        for process in spies:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    print(f"{workload}: {wall:.2f} s under py-spy; {_RATE} samples a second of every thread that does not wait")
    for end, side in enumerate(("left (sends)", "right (receives)")):
        threads: dict[str, float] = collections.defaultdict(float)
        for (number, name), seconds in busy[end].items():
            threads[name] += seconds - idle[end].get((number, name), 0.0)
        show(side, spent[end], threads, files[end].read_text())


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
