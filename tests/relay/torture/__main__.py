"""The real relay, killed at work: `python -m tests.relay.torture --kills 100 --seed 1`."""

from __future__ import annotations

import argparse
import functools
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.relay.torture.campaign import run_campaign


def main() -> int:
    """Exit code 1 when the relay did not keep its word."""
    parser = argparse.ArgumentParser(prog="python -m tests.relay.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many times kill -9 (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="decides what clients do (default 0)")
    parser.add_argument("--quiet-every", type=int, default=4, metavar="K", help="kills between checks (default 4)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new directory and leave it there")
    arguments = parser.parse_args()
    # The relay is a session of its own: it must be ended with us, whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    base = arguments.keep or Path(tempfile.mkdtemp(prefix="p2psync-torture-"))
    began = time.monotonic()
    campaign = functools.partial(run_campaign, base, arguments.seed, arguments.kills, arguments.quiet_every, _report)
    done = trio.run(campaign)
    for violation in done.violations:
        _report(f"VIOLATION {violation}")
    print(
        f"{done.kills} kills ({done.startup_kills} while starting), {done.lives_with_sweeps} lives with sweeps, "
        f"{done.quiets} quiets, {done.chunks} chunks, {done.refs} references, {done.entries} entries, "
        f"{done.grants} grants acknowledged, {done.repeated} sent again, {done.swept} chunks swept, "
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


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
