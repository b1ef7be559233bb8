"""kill -9 of a relay at work: lives of random length, some with a greedy sweeper, and a judgement now and then."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from p2psync.model.ids import FolderId
from tests.relay.process import RelayProcess
from tests.relay.torture.book import Book, Figures
from tests.relay.torture.judge import Judge
from tests.relay.torture.people import PATIENT, Account, restart, sign_up
from tests.relay.torture.tenant import Tenant
from tests.relay.torture.work import Listener, Worker

LONGEST_LIFE = 200
"""Acknowledged requests."""
KILL_PAUSE_S = 0.05
LIFE_TIMEOUT_S = 60.0
LAST_WORDS_S = 0.05
"""Answers that are on their way when the relay dies are read all the same."""
GREEDY, CALM = "keep_unreferenced_s = 1", "keep_unreferenced_s = 86400"


@dataclass(slots=True)
class Scene:
    """Two accounts that share two folders, each paid by one; a guest comes and goes."""

    relay: RelayProcess
    accounts: list[Account]
    books: list[Book]
    workers: list[Worker]
    listeners: list[Listener]
    tenant: Tenant

    @property
    def clients(self) -> list[Worker | Listener | Tenant]:
        """Everybody who works."""
        return [*self.workers, *self.listeners, self.tenant]


async def set_up(relay: RelayProcess, rng: random.Random, figures: Figures) -> Scene:
    """Accounts, folders and who works in them, at a relay that was just started."""
    ann = await sign_up(relay, "ann@example.org", rng.randbytes(32), ["ann desk", "ann laptop", "ann phone"], rng)
    bob = await sign_up(relay, "bob@example.org", rng.randbytes(32), ["bob desk", "bob phone"], rng)
    guest = await sign_up(relay, "guest@example.org", rng.randbytes(32), ["guest"], rng)
    books = [Book(FolderId(rng.randbytes(16))) for _ in range(2)]
    listeners = [Listener(account.devices[-1], figures) for account in (ann, bob)]
    for listener in listeners:
        await listener.begin()
    for owner, other, book in ((ann, bob, books[0]), (bob, ann, books[1])):
        async with owner.first.client() as client:
            await client.mailbox.create_folder(book.folder)
            await client.mailbox.set_access(book.folder, other.account_id, "append")
    recipients = [listener.device.keys.device_id for listener in listeners]
    workers = []
    for device, book in [(d, b) for d in (*ann.devices[:2], *bob.devices[:1]) for b in books]:
        owner = (ann, bob)[books.index(book)]
        lets_in = guest.account_id if device is owner.first else None
        workers.append(Worker(device, book, recipients, random.Random(rng.random()), figures, lets_in))
    tom = await sign_up(relay, "tom@example.org", rng.randbytes(32), ["tom"], rng)
    tenant = Tenant(tom.first, random.Random(rng.random()), figures)
    return Scene(relay, [ann, bob], books, workers, listeners, tenant)


async def run_campaign(
    base: Path,
    seed: int,
    kills: int,
    quiet_every: int,
    report: Callable[[str], None] = lambda _: None,
    figures: Figures | None = None,
) -> Figures:
    """Kill that often, with a judgement after each `quiet_every` kills; ends early when one found something wrong.

    `figures` are filled in as it goes on.

    The seed decides what clients want and how long the relay may live; how far it was when killed, nobody does.
    """
    rng, figures = random.Random(seed), figures or Figures()
    base.mkdir(parents=True, exist_ok=True)
    relay = RelayProcess(base / "data", configuration(CALM))
    try:
        await restart(relay)
        scene = await set_up(relay, rng, figures)
        judge, sweeping = Judge(relay, figures), False
        while not figures.violations and figures.kills < kills:
            began = time.monotonic()
            for _ in range(min(quiet_every, kills - figures.kills)):
                await _live(scene, rng, figures, sweeping=sweeping)
                sweeping = await _rise(scene, rng, figures, judge, swept=sweeping)
            await work_for(scene, rng.uniform(0, 1))
            await judge_all(scene, judge)
            figures.quiets += 1
            report(f"quiet {figures.quiets}: {figures.kills} kills, {time.monotonic() - began:.1f} s, {figures}")
        if await trio.to_thread.run_sync(relay.stop) != 0:
            figures.violations.append("the relay did not end in order")
    finally:
        relay.kill()
    return figures


def configuration(storage: str) -> str:
    """The relay's, with this about storage."""
    return f"{PATIENT}\n[storage]\n{storage}\n"


# ── lives ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def _live(scene: Scene, rng: random.Random, figures: Figures, *, sweeping: bool) -> None:
    """Everybody works until the relay is killed."""
    for book in scene.books:
        book.loose.clear()
    async with trio.open_nursery() as nursery:
        never = trio.Event()
        for client in scene.clients:
            nursery.start_soon(client.run, never)
        end = figures.acknowledged + rng.randrange(LONGEST_LIFE)
        collected = trio.Event()
        if sweeping:
            figures.lives_with_sweeps += 1
            nursery.start_soon(_collect, scene.relay, figures, collected)
            if rng.random() < 0.5:
                with trio.move_on_after(LIFE_TIMEOUT_S):
                    await collected.wait()
        with trio.move_on_after(LIFE_TIMEOUT_S):
            while figures.acknowledged < end:
                await trio.sleep(0.005)
        await trio.sleep(rng.uniform(0, KILL_PAUSE_S))
        await trio.to_thread.run_sync(scene.relay.kill)
        figures.kills += 1
        await trio.sleep(LAST_WORDS_S)
        nursery.cancel_scope.cancel()


async def _collect(relay: RelayProcess, figures: Figures, collected: trio.Event) -> None:
    """The operator's own collection, beside the relay and perhaps longer than it."""
    done = await trio.to_thread.run_sync(relay.run, "admin", "collect", "--json")
    figures.swept += msgspec.json.decode(done.stdout)["swept"] if done.stdout else 0
    if done.returncode > 0:
        figures.violations.append(f"admin collect: {done.stderr}")
    collected.set()


async def _rise(scene: Scene, rng: random.Random, figures: Figures, judge: Judge, *, swept: bool) -> bool:
    """Start the relay again, perhaps killing it once more on its way up; whether it sweeps greedily now.

    What the last life acknowledged, be it referred to or not, is there if neither life sweeps.
    """
    sweeping = rng.random() < 0.5
    scene.relay.configure(configuration(GREEDY if sweeping else CALM))
    if rng.random() < 0.2:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_start_in_vain, scene.relay)
            await trio.sleep(rng.uniform(0.3, 2))
            await trio.to_thread.run_sync(scene.relay.kill)
        figures.kills += 1
        figures.startup_kills += 1
    await restart(scene.relay)
    if not (swept or sweeping):
        for account, book in zip(scene.accounts, scene.books, strict=True):
            async with account.first.client() as client:
                await judge.chunks(client, book, sorted(book.loose))
    return sweeping


async def _start_in_vain(relay: RelayProcess) -> None:
    with contextlib.suppress(AssertionError):
        await restart(relay)


async def work_for(scene: Scene, seconds: float, until: float = math.inf) -> None:
    """Everybody works for a while, or until so much is acknowledged, and ends what is begun."""
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        for client in scene.clients:
            nursery.start_soon(client.run, stopping)
        with trio.move_on_after(seconds):
            while scene.workers[0].figures.acknowledged < until:
                await trio.sleep(0.005)
        stopping.set()


async def judge_all(scene: Scene, judge: Judge) -> None:
    """Everything is as it was acknowledged."""
    for listener in scene.listeners:
        await judge.listener(listener, scene.books)
    recipients = [listener.device for listener in scene.listeners]
    for account, book in zip(scene.accounts, scene.books, strict=True):
        async with account.first.client() as client:
            await judge.account(client, account.email, [book], recipients)
    await scene.tenant.judge()
    await trio.to_thread.run_sync(judge.operator)
