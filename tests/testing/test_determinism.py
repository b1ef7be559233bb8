"""The canary: the same seed gives the same run, here and in another process; and trio still has what this rests on."""

import os
import subprocess
import sys
from functools import partial

import pytest
import trio

from p2psync.ports import ByteStream, Root
from p2psync.testing import SimWorld, Trace, run_deterministic


async def _babble(seed: int) -> str:
    """Tasks that race each other in every way nodes do: streams, timers, events, cancellation, disk, randomness."""
    sim = SimWorld(seed)
    devices = [sim.device(name) for name in ("a", "b", "c", "d")]
    for device in devices:
        device.disk.make_directories(b"/f")

    def touch(root: Root, path: bytes) -> None:
        root.create(path).close()

    async def serve(name: str) -> None:
        world = sim.device(name).world()
        [listener] = await world.network.listen(":1000")
        async with trio.open_nursery() as nursery:
            while True:
                stream = await listener.accept()
                nursery.start_soon(echo, name, stream)

    async def echo(name: str, stream: ByteStream) -> None:
        buffer = memoryview(bytearray(64))
        while count := await stream.receive_into(buffer):
            sim.trace.add(name, "got", data=bytes(buffer[:count]).hex(), remote=stream.remote)

    async def talk(name: str) -> None:
        world = sim.device(name).world()
        root = world.storage.open_root(b"/f")
        for other in sorted({"a", "b", "c", "d"} - {name}):
            with trio.move_on_after(world.rng.uniform(0.01, 0.1)):
                stream = await world.network.dial(f"{other}:1000")
                for _ in range(5):
                    token = world.rng.token(4)
                    await stream.send_all(token)
                    await world.offload.run(partial(touch, root, token.hex().encode()))
                    await trio.lowlevel.checkpoint()
                await stream.aclose()
        sim.trace.add(name, "done", names=b" ".join(n for n, _ in root.scan(b"")))

    async with trio.open_nursery() as nursery:
        for device in devices:
            nursery.start_soon(serve, device.name)
        async with trio.open_nursery() as talkers:
            await trio.sleep(0.1)
            for device in devices:
                talkers.start_soon(talk, device.name)
        nursery.cancel_scope.cancel()
    assert sim.trace.count > 20
    return sim.trace.digest()


def test_a_seed_replays_and_seeds_differ() -> None:
    digests = [run_deterministic(seed, _babble, seed) for seed in (1, 2, 3)]
    assert [run_deterministic(seed, _babble, seed) for seed in (1, 2, 3)] == digests
    assert len(set(digests)) == 3


def _in_other_processes(call: str, *hash_seeds: str) -> set[str]:
    """What a run prints in processes with these PYTHONHASHSEEDs."""
    program = "from tests.testing import test_determinism as t; from p2psync.testing import run_deterministic\n"
    program += f"async def main(): return await t.{call}\nprint(run_deterministic(7, main))"
    return {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in hash_seeds
    }


def test_other_processes_replay_it_whatever_their_hash_seed() -> None:
    assert _in_other_processes("_babble(7)", "1", "2") == {run_deterministic(7, _babble, 7)}


async def _careless() -> str:
    trace = Trace()
    for name in set("abcdefg"):
        trace.add(name, "went")
    return trace.digest()


def test_the_canary_notices_the_order_of_a_set() -> None:
    assert len(_in_other_processes("_careless()", "1", "2", "3", "4")) > 1


async def _interleaving() -> list[int]:
    order: list[int] = []

    async def task(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(task, number)
    return order


def test_the_seed_decides_the_scheduler() -> None:
    orders = {tuple(run_deterministic(seed, _interleaving)) for seed in range(8)}
    assert len(orders) == 8


def test_virtual_time_costs_nothing() -> None:
    async def year() -> float:
        await trio.sleep(365 * 86_400)
        return trio.current_time()

    assert run_deterministic(1, year) == 365 * 86_400


def test_everything_is_put_back() -> None:
    scheduler = trio._core._run
    before = (scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING)

    async def fail() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run_deterministic(1, fail)
    assert (scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING) == before


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING"])
def test_a_trio_without_these_names_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(trio._core._run, name)
    with pytest.raises(RuntimeError, match="would not replay"):
        run_deterministic(1, _interleaving)


def test_a_trace_shows_what_happened() -> None:
    trace = Trace(keep=True, now=lambda: 1.5)
    empty = trace.digest()
    trace.add("a", "wrote", path=b"x", size=3)
    assert trace.lines == ["      1.500000 a        wrote path=b'x' size=3"]
    assert trace.digest() != empty
