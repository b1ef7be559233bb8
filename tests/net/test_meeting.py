"""Two machines whose routers let nobody in open one connection together: network namespaces, and the kernel's TCP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.net.namespaces import PUBLIC, Homes, homes

pytestmark = pytest.mark.netns
PORT = 22067

_MACHINE = """
import json, sys, trio
from p2psync.net.tcp import TcpNetwork

async def main(address, port, delay, patience):
    network = TcpNetwork()
    listeners = await network.listen(f":{port}")
    await trio.sleep(delay)
    try:
        with trio.fail_after(patience):
            stream = await network.meet(address, port)
            await stream.send_all(b"hello")
            buffer = bytearray(5)
            said = bytes(buffer[:await stream.receive_into(memoryview(buffer))]).decode()
        return {"remote": stream.remote, "said": said}
    except (OSError, trio.TooSlowError) as error:
        return {"failed": type(error).__name__}

print(json.dumps(trio.run(main, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
"""


def meeting(made: Homes, delays: Sequence[float], patience: float = 6.0) -> list[dict[str, str]]:
    """Both machines meet the other, each after a delay; what each says of it."""
    numbers = [(str(PORT), str(delay), str(patience)) for delay in delays]
    machines = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", _MACHINE, f"{address}:{PORT}", *how],
            stdout=subprocess.PIPE,
        )
        for name, address, how in zip(made.machines, reversed(PUBLIC), numbers, strict=True)
    ]
    return [json.loads(machine.communicate(timeout=20)[0]) for machine in machines]


def test_two_behind_routers_of_their_own_meet() -> None:
    with homes() as made:
        assert meeting(made, (0.0, 0.0)) == [{"remote": f"{ip}:{PORT}", "said": "hello"} for ip in reversed(PUBLIC)]
        # One hears of it a little later than the other; its first packets were dropped.
        assert meeting(made, (0.5, 0.0)) == [{"remote": f"{ip}:{PORT}", "said": "hello"} for ip in reversed(PUBLIC)]


def test_routers_that_change_ports_keep_them_apart() -> None:
    with homes(ports_kept=False) as made:
        assert meeting(made, (0.0, 0.0), 1.5) == [{"failed": "TooSlowError"}] * 2
