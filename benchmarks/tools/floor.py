"""What the machine itself needs for a first sync, as a tool beside the others: see `benchmarks.floor`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.network import Network
from benchmarks.tools.base import end, free_port


class Floor:
    """Two plain processes: read, hash, seal, send, open, hash, write, sync once."""

    name = "floor"

    def __init__(self, base: Path, network: Network) -> None:
        self.folders = [base / "end0", base / "end1"]
        self._network = network
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """A receiver that listens and a sender that is connected and waits."""
        left, right = self._network.hosts[0], self._network.hosts[-1]
        port = str(free_port())
        for side, host, folder in (("receive", right, self.folders[1]), ("send", left, self.folders[0])):
            folder.mkdir()
            command = [sys.executable, "-m", "benchmarks.floor", side, str(folder), right.address, port]
            process = subprocess.Popen([*host.prefix, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.insert(0, process)
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the floor's side that is to {side} did not start")

    def roots(self) -> tuple[int | None, ...]:
        """Sender and receiver."""
        return self._processes[0].pid, self._processes[1].pid

    def kick(self, changed: bool) -> None:
        """Send the tree once."""
        stdin = self._processes[0].stdin
        assert stdin is not None
        stdin.write(b"go\n")
        stdin.flush()

    def finished(self) -> None:
        """Wait for the receiver's word that everything is synced to disk."""
        stdout = self._processes[0].stdout
        assert stdout is not None
        if stdout.readline() != b"synced\n":
            raise RuntimeError("the floor's sender failed")

    def stop(self) -> None:
        """End both."""
        for process in self._processes:
            end(process)
