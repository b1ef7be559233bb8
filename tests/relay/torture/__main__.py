"""The real relay, killed at work: `python -m tests.relay.torture --kills 100 --seed 1`."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from tests.relay.torture.book import Figures
from tests.relay.torture.campaign import run_campaign


def main() -> int:
    """Exit code 1 when the relay did not keep its word."""
    parser = argparse.ArgumentParser(prog="python -m tests.relay.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many times kill -9 (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="decides what clients do (default 0)")
    parser.add_argument("--quiet-every", type=int, default=4, metavar="K", help="kills between checks (default 4)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new directory and leave it there")
    arguments = parser.parse_args()
    base = arguments.keep or Path(tempfile.mkdtemp(prefix="p2psync-torture-"))
    began = time.monotonic()
    done = Figures()
    trio.run(_run, base, arguments, done)
    for violation in done.violations:
        _report(f"VIOLATION {violation}")
    print(
        f"{done.kills} kills ({done.startup_kills} while starting), {done.lives_with_sweeps} lives with sweeps, "
        f"{done.quiets} quiets, {done.chunks} chunks, {done.refs} references, {done.entries} entries, "
        f"{done.grants} grants acknowledged, {done.snapshots} snapshots, {done.deleted} folders deleted, "
        f"{done.renewals} sessions renewed, {done.repeated} sent again, {done.swept} chunks swept, "
        f"{done.late} of them missed, {done.unknown} answers lost, {done.events} events, "
        f"{done.checked} chunks read back, {len(done.violations)} violations, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    if done.violations:
        _report(f"the relay's data and log are in {base}")
        return 1
    if arguments.keep is None:
        shutil.rmtree(base)
    return 0


async def _run(base: Path, arguments: argparse.Namespace, done: Figures) -> None:
    """The campaign, until SIGTERM: the relay is a session of its own and must be ended with us."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_asked, signals, nursery.cancel_scope)
            await run_campaign(base, arguments.seed, arguments.kills, arguments.quiet_every, _report, done)
            nursery.cancel_scope.cancel()


async def _until_asked(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
