"""What renaming costs: a directory of many small files, and one large file, between two nodes.

    python -m benchmarks.moves [--files N] [--mib N] [--parts tree file] [--directory DIR]

Prints, for each, the time until the other side shows it, the CPU of both sides (user + system) and the bytes on the
wire until both rest.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.network import Network, network
from benchmarks.processes import settle
from p2psync.testing.processes import Device, introduce, share

_MIB = 1 << 20
_SMALL = 10 * 1024
_PER_DIRECTORY = 100
_LIMIT_S = 120.0
_POLL_S = 0.004


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moves", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="of 10 KiB, in the directory that is renamed")
    parser.add_argument("--mib", type=int, default=1024, help="size of the file that is renamed")
    parser.add_argument("--parts", nargs="+", choices=["tree", "file"], default=["tree", "file"])
    parser.add_argument("--directory", type=Path, help="where the trees are made")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="p2psync-moves-", dir=arguments.directory))
    try:
        with network() as link:
            _run(base, link, arguments)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _run(base: Path, link: Network, arguments: argparse.Namespace) -> None:
    devices = [
        Device(base, name, listen=f"{host.address}:0", prefix=host.prefix)
        for name, host in (("one", link.left), ("two", link.right))
    ]
    one, two = devices
    left, right, rng = base / "left", base / "right", random.Random(1)
    left.mkdir()
    try:
        for device in devices:
            device.init()
            device.start()
        introduce(one, two)
        one.run("folder", "add", str(left), "--label", "bench")
        one.connected(two)
        share(one, "bench", [(two, right)])
        if "tree" in arguments.parts:
            for number in range(arguments.files):
                path = base / "staged" / f"d{number // _PER_DIRECTORY:04}" / f"f{number:06}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(rng.randbytes(_SMALL))
            _renamed("tree", devices, link, (left, right), (base / "staged", "data", "renamed"))
        if "file" in arguments.parts:
            with (base / "staged.bin").open("wb") as file:
                for _ in range(arguments.mib // 4):
                    file.write(rng.randbytes(4 * _MIB))
            _renamed("file", devices, link, (left, right), (base / "staged.bin", "large.bin", "renamed.bin"))
    finally:
        for device in devices:
            device.kill()


def _renamed(
    what: str, devices: list[Device], link: Network, sides: tuple[Path, Path], names: tuple[Path, str, str]
) -> None:
    """Sync what is staged first, under one name; then give it another."""
    left, right = sides
    staged, name, renamed = names
    staged.rename(left / name)
    devices[0].run("folder", "scan", "bench")
    _wait(lambda: (right / name).exists() and _listing(right / name) == _listing(left / name))
    pids = [device.process.pid for device in devices if device.process is not None]
    settle(pids, quiet_s=1.0, limit_s=60)
    expected = [(right / renamed / path, size) for path, size in sorted(_listing(left / name).items())]
    wire, before, start = link.wire_bytes(), [_cpu(pid) for pid in pids], time.perf_counter()
    (left / name).rename(left / renamed)
    for path, size in expected:
        _wait(lambda path=path, size=size: path.exists() and path.stat().st_size == size)  # type: ignore[misc]
    _wait(lambda: not (right / name).exists())
    wall = time.perf_counter() - start
    settle(pids, quiet_s=1.0, limit_s=60)
    wire = link.wire_bytes() - wire
    spent = [[now - then for now, then in zip(_cpu(pid), b, strict=True)] for pid, b in zip(pids, before, strict=True)]
    cpu = ", ".join(f"{user:.2f} + {system:.2f}" for user, system in spent)
    print(f"{what}: {wall:.2f} s; CPU of left, right: {cpu} s; wire {wire / 1e3:.1f} kB", flush=True)


def _listing(path: Path) -> dict[str, int]:
    """Sizes of the files in a directory by their paths there; of a file, its own."""
    if path.is_file():
        return {"": path.stat().st_size}
    return {str(p.relative_to(path)): p.stat().st_size for p in path.rglob("*") if p.is_file()}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_LIMIT_S:.0f} s")
        time.sleep(_POLL_S)


def _cpu(pid: int) -> tuple[float, float]:
    """User and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


if __name__ == "__main__":
    main()
