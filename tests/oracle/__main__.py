"""Three real nodes, killed at work: `python -m tests.oracle --kills 100`; then system calls that fail, under strace."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from p2psync.testing.oracle import Violation
from tests.oracle import failing_calls, strace
from tests.oracle import kills as killing


def main() -> int:
    """Exit code 1 when anything was lost, left over, in conflict without reason, damaged, or not done."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many times kill -9 (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="decides what users do and who is killed (default 0)")
    parser.add_argument("--quiet-every", type=int, default=4, metavar="K", help="kills between checks (default 4)")
    parser.add_argument(
        "--inject", action=argparse.BooleanOptionalAction, default=True, help="fail system calls as well (default)"
    )
    parser.add_argument("--points", type=int, default=10, help="failures per kind of call and workload (default 10)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new directory and leave it there")
    arguments = parser.parse_args()
    # The nodes are sessions of their own: they must be ended with us, whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    base = arguments.keep or Path(tempfile.mkdtemp(prefix="p2psync-oracle-"))
    began = time.monotonic()
    seed = arguments.seed
    done = killing.Figures()
    failing = failing_calls.Figures()
    if arguments.kills:
        done = killing.run_kills(base / "kills", seed, arguments.kills, arguments.quiet_every, _report)
    if arguments.inject and not done.violations:
        why = strace.unusable()
        if why:
            done.violations.append(Violation("campaign", f"no system call can be made to fail: {why} (--no-inject)"))
        else:
            failing = failing_calls.run_failing_calls(base / "calls", seed, arguments.points, report=_report)
    violations = [*done.violations, *failing.violations]
    for violation in violations:
        _report(f"VIOLATION {violation}")
    counted = Counter(violation.invariant for violation in violations)
    print(
        f"{done.kills} kills ({done.startup_kills} while starting), {done.actions} user actions, "
        f"{done.troubles} link troubles, {done.quiets} quiets, {done.contents + failing.contents} contents checked, "
        f"{done.copies + failing.copies} conflict copies, {failing.points} failing calls ({failing.struck} struck, "
        f"{failing.ended} ended the node, {failing.restarted} needed a restart), {counted['I2']} losses, "
        f"{counted['tmp']} leftovers, {len(violations)} violations, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    if violations:
        _report(f"the story, homes, folders and logs are in {base}")
        _report(f"replay (the same decisions, not the same timing): python -m tests.oracle {' '.join(sys.argv[1:])}")
        return 1
    if arguments.keep is None:
        shutil.rmtree(base)
    return 0


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
