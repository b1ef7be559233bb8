"""An account at a real relay: mail in a file, sessions that outlive a crash, requests that do not."""

from __future__ import annotations

import email
import email.policy
import time
from typing import Any

import httpx2
import msgspec
import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership.sigchain import begin_account
from p2psync.protocol.http_signature import sign_request
from relay.ports import Mail
from tests.relay.process import RelayProcess

from .helpers import KEY, b64, code_in

KEYS = DeviceKeys(bytes(range(64)))
ADDRESS = "ann@example.org"
_count = iter(range(1, 10**6))


async def send(
    client: httpx2.AsyncClient, method: str, path: str, body: Any = None, token: str | None = None, created: int = 0
) -> httpx2.Response:
    """One signed request, as a device sends it."""
    content = b"" if body is None else msgspec.json.encode(body)
    fields = sign_request(
        KEYS,
        "localhost",
        method,
        path,
        body=content,
        authorization=f"Bearer {token}" if token else None,
        created=created or int(time.time()),
        nonce=next(_count).to_bytes(16, "big"),
    )
    return await client.request(method, path, content=content, headers=fields | {"content-type": "application/json"})


async def read_code(relay: RelayProcess) -> str:
    """The code in the newest message; it comes soon after the answer."""
    with trio.fail_after(30):
        while not (files := sorted((relay.data / "outbox").glob("*.eml"))):
            await trio.sleep(0.05)
    message = email.message_from_bytes(files[-1].read_bytes(), policy=email.policy.default)

    return code_in([Mail(message["To"], message["Subject"], message.get_content())], ADDRESS)


async def test_an_account_outlives_a_crash(relay_process: RelayProcess) -> None:
    relay, chain = relay_process, begin_account(KEYS, bytes(16))
    async with relay.http() as client:
        # Requests from before the process began are refused, and it may have begun in this very second.
        while (await send(client, "POST", "/api/v1/password-resets", {"email": "eve@example.org"})).status_code == 401:
            await trio.sleep(0.1)
        body = {"email": ADDRESS, "login_key": b64(KEY), "genesis": b64(chain.head.encoded)}
        assert (await send(client, "POST", "/api/v1/accounts", body)).status_code == 202
        code = await read_code(relay)
        verification = {"account_id": b64(chain.account_id), "code": code}
        answer = await send(client, "POST", "/api/v1/accounts/verify", verification)
        assert answer.status_code == 200
        tokens = answer.json()
    relay.kill()
    await trio.to_thread.run_sync(relay.start)
    async with relay.http() as client:
        before = int(time.time()) - 5
        old = await send(client, "GET", "/api/v1/account", token=tokens["access_token"], created=before)
        assert old.status_code == 401
        with trio.fail_after(30):
            while (
                status := await send(client, "GET", "/api/v1/account", token=tokens["access_token"])
            ).status_code == 401:
                await trio.sleep(0.1)
        assert status.json()["email"] == ADDRESS
        renewed = await send(client, "POST", "/api/v1/sessions/refresh", {"refresh_token": tokens["refresh_token"]})
        assert renewed.status_code == 200
    log = relay.log.read_text()
    assert str(relay.data / "outbox") in log
    for secret in (ADDRESS, code, tokens["access_token"], tokens["refresh_token"]):
        assert secret not in log
