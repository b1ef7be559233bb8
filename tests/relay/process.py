"""The real relay as a process of this machine, driven by its command line."""

from __future__ import annotations

import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx2

from p2psync.protocol.relay_address import parse_relay_address

READY_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
COMMAND_TIMEOUT = 180.0


class RelayProcess:
    """A relay and its data directory; it may be started again after its end, on the same port."""

    def __init__(self, data: Path, config: str = "") -> None:
        self.data = data
        self.log = data.with_suffix(".log")
        self.listen = "127.0.0.1:0"
        self.url = ""
        self.ready_line = ""
        self._config = data.with_suffix(".toml")
        self._config.write_text(config)
        self._process: subprocess.Popen[str] | None = None

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "relay.cli", *arguments]

    def configure(self, config: str) -> None:
        """The configuration from the next start on."""
        self._config.write_text(config)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command to its end, with the same configuration and data."""
        places = ("--config", str(self._config))
        if arguments[0] != "config":
            places += ("--data", str(self.data))
        return subprocess.run(
            self.command(*arguments, *places), capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False
        )

    def start(self) -> None:
        """Start it and wait for its "ready" line."""
        places = ("--data", str(self.data), "--config", str(self._config), "--listen", self.listen)
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self.command("serve", *places), stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self.ready_line = _first_line(self._process)
        if not self.ready_line.startswith("ready "):
            self.kill()
            raise AssertionError(f"the relay did not become ready: {self.ready_line!r}\n{self.log.read_text()[-4000:]}")
        self.url = self.ready_line.split()[1]
        self.listen = self.url.removeprefix("https://").partition("/")[0]

    @property
    def identity(self) -> str:
        """By what devices know it."""
        return parse_relay_address(self.url).identity

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def resident(self) -> int:
        """Bytes of memory that it takes now."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> int:
        """Ask it to end with SIGTERM; returns its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        try:
            return process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"the relay did not stop within {STOP_TIMEOUT} s") from None
        finally:
            assert process.stdout is not None
            process.stdout.close()

    def tls(self) -> ssl.SSLContext:
        """Trusts exactly this relay."""
        return ssl.create_default_context(cafile=self.data / "tls" / "certificate.pem")

    def http(self, *, http2: bool = False) -> httpx2.AsyncClient:
        """A client of this relay."""
        return httpx2.AsyncClient(
            base_url=self.url.partition("#")[0], verify=self.tls(), http2=http2, http1=not http2, timeout=30
        )


def _first_line(process: subprocess.Popen[str]) -> str:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
    try:
        return lines.get(timeout=READY_TIMEOUT).strip()
    except queue.Empty:
        return ""
