"""The real process: it says when it is ready, serves, keeps others out, and ends in order."""

from __future__ import annotations

import base64
import hashlib
import signal
import ssl
from pathlib import Path

import trio

from tests.relay.process import RelayProcess


async def test_a_life(relay_process: RelayProcess) -> None:
    relay = relay_process
    pem = (relay.data / "tls" / "certificate.pem").read_text()
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
    url = relay.url
    assert url.endswith(f"/#sha256={base64.urlsafe_b64encode(fingerprint).decode().rstrip('=')}")
    assert all(path.stat().st_mode & 0o077 == 0 for path in relay.data.rglob("*"))

    second = await trio.to_thread.run_sync(relay.run, "serve", "--listen", "127.0.0.1:0")
    assert (second.returncode, second.stdout) == (1, "")
    assert "another relay runs" in second.stderr

    async with relay.http() as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["service"]) == (200, "p2psync-relay")
        # The connection is idle now and must not delay the end.
        with trio.fail_after(30):
            assert await trio.to_thread.run_sync(relay.stop) == 0

    await trio.to_thread.run_sync(relay.start)
    assert relay.url == url
    relay.signal(signal.SIGHUP)
    relay.signal(signal.SIGINT)
    assert await trio.to_thread.run_sync(relay.stop) == 0
    assert "the certificate was loaded anew" in relay.log.read_text()


def test_commands_answer_without_a_relay(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path / "data", '[mail]\nhost = "smtp.example"\npassword = "hunter2"\n')
    shown = relay.run("config")
    assert shown.returncode == 0
    assert "smtp.example" in shown.stdout
    assert "hunter2" not in shown.stdout
    wrong = RelayProcess(tmp_path / "other", "[server]\nlistn = 1\n").run("config")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "listn" in wrong.stderr
