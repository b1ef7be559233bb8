"""People who sign up and log in, as devices do it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership.sigchain import AccountChain, Add, ChainLink, DeviceKind, Remove, begin_account
from relay.ports import Mail
from tests.relay.stack import Answer, Client, MemoryMailer, Stack

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(slots=True)
class Person:
    """Somebody with an address, a password and one or more devices; `clients[0]` began the account."""

    stack: Stack
    email: str
    login_key: bytes = KEY
    clients: list[Client] = field(default_factory=list)
    chain: AccountChain | None = None

    @property
    def first(self) -> Client:
        return self.clients[0]

    @property
    def account_id(self) -> bytes:
        assert self.chain is not None
        return self.chain.account_id

    async def sign_up(self) -> Answer:
        if not self.clients:
            self.clients.append(self.stack.client())
            self.chain = begin_account(self.first.keys, bytes(16))
        assert self.chain is not None
        genesis = b64(self.chain.head.encoded)
        return await self.first.post(
            "/api/v1/accounts", {"email": self.email, "login_key": b64(self.login_key), "genesis": genesis}
        )

    async def verify(self, code: str) -> Answer:
        answer = await self.first.post("/api/v1/accounts/verify", {"account_id": b64(self.account_id), "code": code})
        return self._take(self.first, answer)

    async def log_in(self, client: Client | None = None) -> Answer:
        client = client or self.first
        answer = await client.post("/api/v1/sessions", {"email": self.email, "login_key": b64(self.login_key)})
        return self._take(client, answer)

    async def log_in_by_key(self, client: Client | None = None) -> Answer:
        client = client or self.first
        return self._take(client, await client.post("/api/v1/sessions/key", {"account_id": b64(self.account_id)}))

    async def append(self, client: Client, link: ChainLink) -> Answer:
        return await client.post("/api/v1/account/chain", {"link": b64(link.encoded)})

    async def add(self, keys: DeviceKeys, kind: DeviceKind = DeviceKind.DEVICE) -> Client:
        """Let another device in; it has no session yet."""
        assert self.chain is not None
        await self._grow(self.chain.sign(self.first.keys, Add(keys.card.encode(), kind)))
        client = self.stack.client(keys=keys)
        self.clients.append(client)
        return client

    async def remove(self, client: Client) -> None:
        assert self.chain is not None
        await self._grow(self.chain.sign(self.first.keys, Remove(client.device_id)))

    async def _grow(self, link: ChainLink) -> None:
        assert self.chain is not None
        answer = await self.append(self.first, link)
        assert answer.status == 204, answer.body
        self.chain = self.chain.extend([link.encoded])

    def _take(self, client: Client, answer: Answer) -> Answer:
        if answer.status == 200:
            client.token = answer.json()["access_token"]
            client.account_id = self.account_id
        return answer


async def mails(stack: Stack) -> list[Mail]:
    """What is in the mailboxes by now."""
    while await stack.services.accounts.outbox.send_due():
        pass
    mailer = stack.services.ports.mailer
    assert isinstance(mailer, MemoryMailer)
    return mailer.sent


def code_in(sent: Iterable[Mail], email: str) -> str:
    """The code of the newest message to an address that has one."""
    codes = [
        m[1] for mail in sent if mail.to == email and (m := re.search(r"code is ([A-Z2-7]{4}-[A-Z2-7]{4})", mail.body))
    ]
    return codes[-1]


async def registered(stack: Stack, email: str = "ann@example.org", login_key: bytes = KEY) -> Person:
    person = Person(stack, email, login_key)
    assert (await person.sign_up()).status == 202
    answer = await person.verify(code_in(await mails(stack), email))
    assert answer.status == 200, answer.body
    return person


async def alive(client: Client) -> bool:
    """Whether the client's token is worth something."""
    answer = await client.get("/api/v1/account")
    assert answer.status in {200, 401}
    return answer.status == 200


def shape(answer: Answer) -> tuple[Any, ...]:
    """All that an answer tells, but for the time of day."""
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    return answer.status, answer.body, tuple(sorted(headers.items()))
