"""Where the time of a first sync goes: py-spy on both nodes, summed by function.

    python -m benchmarks.profile big|small [--directory DIR]

Needs py-spy (`.venv/bin/pip install py-spy`). Prints, per node, the functions that were on the CPU (self) and on the
stack (total), as shares of the samples of threads that were not idle; writes the raw stacks beside the results.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import workloads
from benchmarks.measure import Cell, synchronise
from benchmarks.network import Network, network
from benchmarks.processes import cpu_seconds
from benchmarks.tools import P2PSync

RESULTS = Path(__file__).parent / "results"
_RATE = 200


def main() -> None:
    """Run one first sync under py-spy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("workload", choices=["big", "small"])
    parser.add_argument("--directory", type=Path, help="where the trees are made")
    arguments = parser.parse_args()
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise SystemExit(f"py-spy is not installed; run: {sys.executable} -m pip install py-spy")
    RESULTS.mkdir(exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="p2psync-profile-", dir=arguments.directory))
    try:
        with network() as link:
            _profile(spy, arguments.workload, P2PSync(base, link), base, link)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _profile(spy: str, workload: str, tool: P2PSync, base: Path, link: Network) -> None:
    rng, staged = random.Random(1), base / "staged"
    if workload == "big":
        workloads.make_big(staged, workloads.FULL.big_bytes, rng)
    else:
        workloads.make_small(staged, workloads.FULL.small_files, rng)
    expected = [(name.replace("staged", "data", 1), size) for name, size in workloads.listing(staged)]
    tool.start()
    files = [RESULTS / f"profile-{workload}-{side}.raw" for side in ("left", "right")]
    spies = [
        subprocess.Popen(
            [spy, "record", "-p", str(pid), "-r", str(_RATE), "-t", "-f", "raw", "-o", str(file), "-d", "600", "--nonblocking"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for pid, file in zip(tool.roots(), files, strict=True)
    ]  # fmt: skip
    time.sleep(2)
    before = [cpu_seconds(pid) for pid in tool.roots()]
    cell = Cell(workload, tool.name, 1)

    def apply() -> workloads.Arrived:
        staged.rename(tool.left / "data")
        return workloads.files_arrived(tool.right, expected)

    try:
        synchronise(cell, tool, link, apply, "data", changed=False, limit=180)
        spent = [cpu_seconds(pid) - start for pid, start in zip(tool.roots(), before, strict=True)]
    finally:
        for process in spies:
            process.send_signal(2)
            process.wait(30)
        tool.stop()
    print(f"{workload}: {cell.wall:.2f} s under py-spy; {_RATE} samples a second of every thread on the CPU")
    for side, file, cpu in zip(("left (sends)", "right (receives)"), files, spent, strict=True):
        summary(side, cpu, file.read_text())


def summary(side: str, cpu: float, raw: str, top: int = 25) -> None:
    """Print the functions with the most samples in py-spy's raw format: `frame;frame;frame COUNT`."""
    own: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    threads: collections.Counter[str] = collections.Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame.replace(f"{Path(__file__).parents[1]}/", "") for frame in stack.split(";")]
        threads[frames[0].partition(" (")[0]] += int(count)
        functions = [frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in frames[1:]]
        own[frames[-1]] += int(count)
        for function in set(functions):
            total[function] += int(count)
    samples = sum(own.values()) or 1
    print(f"\n== {side}: {cpu:.2f} s of CPU, {samples} samples")
    for title, counter, most in (
        ("threads", threads, 6),
        ("self, by line", own, top),
        ("total, by function", total, top + 15),
    ):
        print(f"-- {title}")
        for name, count in counter.most_common(most):
            print(f"{100 * count / samples:5.1f} %  {name}")


if __name__ == "__main__":
    main()
