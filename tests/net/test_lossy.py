"""The lossy queue: bounded, newest kept, reachable from threads."""

import threading

import pytest
import trio

from p2psync.net.lossy import LossyQueue


async def test_oldest_entries_are_dropped() -> None:
    queue: LossyQueue[int] = LossyQueue(3)
    for entry in range(10):
        queue.put(entry)
    assert [await queue.get() for _ in range(3)] == [7, 8, 9]
    with trio.move_on_after(0):
        await queue.get()
        pytest.fail("the queue is empty")


async def test_threads_wake_every_waiting_task() -> None:
    queue: LossyQueue[int] = LossyQueue(8)
    token = trio.lowlevel.current_trio_token()
    got: list[int] = []

    async def take() -> None:
        got.append(await queue.get())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            threads = [threading.Thread(target=queue.put_from_thread, args=(entry, token)) for entry in range(3)]
            for thread in threads:
                thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [0, 1, 2]


def test_a_thread_may_outlive_trio() -> None:
    async def token() -> trio.lowlevel.TrioToken:
        return trio.lowlevel.current_trio_token()

    queue: LossyQueue[int] = LossyQueue(1)
    queue.put_from_thread(1, trio.run(token))
