"""rsync and Unison: programs that are run when there is work, against a server of theirs on the other host."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.network import Network
from benchmarks.tools.base import START_LIMIT_S, NotInstalledError, end, free_port


class _RunOnce(ABC):
    """A server on the right; on the left a shell that waits for commands, so that its children can be counted."""

    name: str

    def __init__(self, base: Path, network: Network) -> None:
        if shutil.which(self.name.lower()) is None:
            raise NotInstalledError(self.name)
        self.folders = [base / "end0", base / "end1"]
        self._base = base
        self._left, self._right = network.hosts[0], network.hosts[-1]
        self._port = 8730 if self._right.namespace else free_port()
        self._shell: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Server and shell, and two empty folders."""
        for folder in self.folders:
            folder.mkdir()
        with (self._base / f"{self.name}.log").open("wb") as log:
            self._server = subprocess.Popen(
                [*self._right.prefix, *self._serving()], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            self._shell = subprocess.Popen([*self._left.prefix, "sh"], stdin=subprocess.PIPE, stdout=log, stderr=log)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server of {self.name} did not start")
            time.sleep(0.05)

    def roots(self) -> tuple[int | None, ...]:
        """The shell and the server."""
        assert self._shell is not None
        assert self._server is not None
        return self._shell.pid, self._server.pid

    def kick(self, changed: bool) -> None:
        """Run it once."""
        assert self._shell is not None
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{shlex.join(self._running())}\n".encode())
        self._shell.stdin.flush()

    def stop(self) -> None:
        """End both."""
        for process in (self._shell, self._server):
            if process is not None:
                end(process)

    def _answers(self) -> bool:
        try:
            with self._left.entered():
                socket.create_connection((self._right.address, self._port), 1).close()
        except OSError:
            return False
        return True

    @abstractmethod
    def _serving(self) -> list[str]:
        """The command of the server."""

    @abstractmethod
    def _running(self) -> list[str]:
        """The command that is run when there is work."""


class Rsync(_RunOnce):
    """rsync to an rsync daemon: no encryption, no hash of its own kept, no fsync, the tree sent anew where renamed."""

    name = "rsync"

    def _serving(self) -> list[str]:
        config = self._base / "rsyncd.conf"
        config.write_text(
            f"use chroot = no\nlog file = {self._base / 'rsyncd.log'}\n"
            f"[bench]\npath = {self.folders[-1]}\nread only = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
        )
        listening = [f"--port={self._port}", f"--address={self._right.address}"]
        return ["rsync", "--daemon", "--no-detach", f"--config={config}", *listening]

    def _running(self) -> list[str]:
        where = f"rsync://{self._right.address}:{self._port}/bench/"
        return ["rsync", "-a", "--delete", f"{self.folders[0]}/", where]


class Unison(_RunOnce):
    """Unison over a plain socket, with its defaults: no encryption; its archives lie beside the folders."""

    name = "Unison"

    def _serving(self) -> list[str]:
        home = f"UNISON={self._base / 'right.unison'}"
        return ["env", home, "unison", "-socket", str(self._port), "-listen", self._right.address]

    def _running(self) -> list[str]:
        home = f"UNISON={self._base / 'left.unison'}"
        there = f"socket://{self._right.address}:{self._port}/{self.folders[-1]}"
        return ["env", home, "unison", str(self.folders[0]), there, "-batch", "-ui", "text"]
