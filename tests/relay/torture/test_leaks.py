"""Many secrets go through a real relay; then its directory and its log are searched for every one of them."""

from __future__ import annotations

import base64
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from p2psync.crypto.epochs import EpochKey, KeyRing
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.password import login_key
from p2psync.crypto.recovery import format_recovery_key, founding_random, recovery_keys
from p2psync.crypto.seal import SALT_SIZE, ChunkKind, ChunkName, chunk_id, ref_id, seal_body, seal_chunk, snapshot_hash
from p2psync.errors import RelayRefusal
from p2psync.membership import Membership, make_epoch, make_grant
from p2psync.membership.fold import create_folder
from p2psync.membership.sigchain import Add, DeviceKind, begin_account
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import content_root
from p2psync.net.relay_call import Request
from p2psync.net.relay_client import RelayClient
from p2psync.protocol.mailbox import ChainKey, EntryKind, Snapshot, next_slot
from p2psync.protocol.relay_api import LinkWish, PresignedLink
from tests.relay.process import RelayProcess
from tests.relay.torture.leaks import Search, files_below, spellings
from tests.relay.torture.people import PATIENT, Device, all_at_once, mailed_code, restart

FILES = 20
CODE, ADDRESS = "a mailed code", "an e-mail address"
PART = "a part of another secret"


@dataclass(slots=True)
class Person:
    """An account with one device, one folder, and all that nobody else may know of them."""

    relay: RelayProcess
    number: int
    rng: random.Random
    search: Search
    device: Device = field(init=False)
    email: str = field(init=False)
    codes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.device = Device(self.relay, "desk", DeviceKeys(self.rng.randbytes(64)))
        self.email = f"person{self.number}.{self._word()}@example.org"
        self._plant_keys(self.device.keys)
        self.search.plant(self.email, ADDRESS)

    def _word(self) -> str:
        return base64.b32encode(self.rng.randbytes(10)).decode().lower()

    def _text(self, what: str, parting: str = "\n") -> str:
        """Text with everything in it that is spelt differently somewhere."""
        text = f"{self._word()} “{what}” grün/50%+\\{parting}{self._word()}"
        self.search.plant(text, what)
        # A part of it is as bad as all of it.
        self.search.plant(text[:16], PART)
        return text

    def _plant_keys(self, keys: DeviceKeys) -> None:
        self.search.plant(keys.seed[:32], "a signing key")
        self.search.plant(keys.seed[32:], "a sealing key")

    def _login_key(self) -> bytes:
        password = self._text("password")
        key = login_key(password, self.email, self.relay.identity)
        self.search.plant(key, "a login key")
        return key

    async def live(self) -> None:
        """Sign up, store and read what is in a folder, change and lose the password, and make every mistake."""
        keys, first = self.device.keys, await trio.to_thread.run_sync(self._login_key)
        recovery = self.rng.randbytes(32)
        self.search.plant(recovery, "a recovery key")
        self.search.plant(format_recovery_key(recovery), PART)
        self._plant_keys(recovery_keys(recovery))
        chain = begin_account(keys, founding_random(recovery, keys.device_id))
        async with self.device.client() as client:
            await client.accounts.sign_up(self.email, first, chain.head.encoded)
            await self._mistakes(client, chain.account_id)
            await client.accounts.verify(chain.account_id, await self._code())
            link = chain.sign(keys, Add(recovery_keys(recovery).card.encode(), DeviceKind.RECOVERY))
            await client.accounts.append_link(link.encoded)
            await self._folder(client)
            await self._passwords(client, first)
        for session in self.device.sessions:
            for token in (session.access_token, session.refresh_token):
                self.search.plant(token, "a token")
                self.search.plant(base64.urlsafe_b64decode(token + "==")[16:], PART)

    async def _code(self) -> str:
        code = await mailed_code(self.relay, self.email, self.codes)
        self.codes |= {code}
        self.search.plant(code, CODE)
        return code

    async def _passwords(self, client: RelayClient, first: bytes) -> None:
        await client.accounts.log_in(self.email, first)
        second = await trio.to_thread.run_sync(self._login_key)
        await client.accounts.change_password(first, second)
        await client.accounts.log_in(self.email, second)
        if self.number % 2:
            await client.accounts.ask_reset(self.email)
            third = await trio.to_thread.run_sync(self._login_key)
            await client.accounts.reset(self.email, await self._code(), third)
            await client.accounts.log_in(self.email, third)

    async def _mistakes(self, client: RelayClient, account_id: bytes) -> None:
        """What people type in the wrong place; the relay refuses, and keeps none of it."""
        wrong = self.rng.randbytes(32)
        self.search.plant(wrong, "a wrong login key")
        slip = self._text("slip", " ").encode()
        for attempt in (
            partial(client.accounts.log_in, self.email, wrong),
            partial(client.accounts.verify, account_id, "WRNG-CODE"),
        ):
            with pytest.raises(RelayRefusal):
                await attempt()
        async with self.relay.http() as http:
            spelt = "".join(f"%{byte:02X}" for byte in slip)
            body = msgspec.json.encode({"email": slip.decode(), "password": slip.decode(), "login_key": slip.decode()})
            for answer in (
                await http.get(f"/api/v1/folders/{spelt}?name={spelt}", headers={"user-agent": slip.hex()}),
                await http.get(f"/{spelt}", headers={"authorization": f"Bearer {slip.hex()}", "referer": slip.hex()}),
                await http.post("/api/v1/sessions", content=body, headers={"content-type": "application/json"}),
                await http.get(f"/api/v1/presigned?link={spelt}"),
            ):
                assert 400 <= answer.status_code < 500

    # ── the folder ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _folder(self, client: RelayClient) -> None:
        label, name = self._text("label", " "), self._text("name of a person", " ")
        keys = self.device.keys
        secret = self.rng.randbytes(32)
        team = create_folder(keys, label, Algorithm.BLAKE3, self.rng.randbytes(16), name=name)
        link, key = make_epoch(keys, team, KeyRing(team.folder), secret)
        team = team.extend([link])
        for made in (secret, key.chunk_id_key, key.chunk_key, key.ref_id_key, key.body_key, key.ladder_key):
            self.search.plant(made, "an epoch key")
        await client.mailbox.create_folder(team.folder)
        names, chunks = [], []
        for _ in range(FILES):
            names.append(self._text("name of a file"))
            root, stored = await self._file(client, key)
            names.append(root)
            chunks += stored
        await self._entries(client, team, key, names, chunks[0])
        grant = make_grant(keys, team, key, keys.card, self.rng.randbytes(32))
        await client.mailbox.put_grants(team.folder, [grant.encode()])
        assert await client.mailbox.grants(team.folder) == [grant.encode()]
        await self._links(client, team, chunks[0])

    async def _file(self, client: RelayClient, key: EpochKey) -> tuple[bytes, list[bytes]]:
        """One file as its node stores it: a chunk, its manifest and their reference. Its root and chunk ids."""
        plain = self._text("content").encode() + b"text " * self.rng.randrange(40)
        name = ChunkName(ChunkKind.CONTENT, digest(Algorithm.BLAKE3, plain))
        manifest = msgspec.msgpack.encode([1, len(plain), name.hash])
        root = content_root(manifest)
        for hashed in (name.hash, root):
            self.search.plant(hashed, "the hash of a content")
        ids = []
        for sealing, content in ((name, plain), (ChunkName(ChunkKind.MANIFEST, root), manifest)):
            ids.append(chunk_id(key, sealing))
            await client.blocks.put(key.folder, ids[-1], bytes(seal_chunk(key, sealing, content)))
        await client.blocks.put_ref(key.folder, ref_id(key, root), ids)
        await client.blocks.get(key.folder, ids[0])
        return root, ids

    async def _entries(
        self, client: RelayClient, team: Membership, key: EpochKey, names: list[str | bytes], kept: bytes
    ) -> None:
        """Records, links and a snapshot."""
        keys = self.device.keys
        chain, last = ChainKey(keys.card.signing_key, self.rng.randbytes(8)), None
        part = msgspec.msgpack.encode(names)
        snapshot = Snapshot(1, self.rng.randbytes(32), ((snapshot_hash(part), len(part)),), ())
        self.search.plant(snapshot.root, "the root of all records")
        bodies = [(EntryKind.RECORDS, msgspec.msgpack.encode(names[at : at + 10])) for at in range(0, len(names), 10)]
        bodies += [(EntryKind.LINKS, link) for link in team.encoded_links()]
        for kind, plain in [*bodies, (EntryKind.SNAPSHOT, snapshot.encode())]:
            slot = next_slot(team.folder, chain, last, kind, key.id)
            entry = slot.sign(keys, seal_body(key, slot.context, plain, self.rng.randbytes(SALT_SIZE)))
            last = entry.header
            if kind is EntryKind.SNAPSHOT:
                reference = ref_id(key, snapshot.root)
                await client.blocks.put_ref(team.folder, reference, [kept])
                await client.mailbox.post_snapshot(team.folder, entry.encoded, 1, reference)
            else:
                await client.mailbox.append([entry.encoded])

    async def _links(self, client: RelayClient, team: Membership, chunk: bytes) -> None:
        """A link that works without a key is a secret as well."""
        wish = LinkWish("get", team.folder, chunk)
        link = await client._caller.fetch(Request("POST", "/api/v1/presigned"), PresignedLink, wish)
        self.search.plant(link.url.partition("link=")[2], "a presigned link")
        async with self.relay.http() as http:
            assert (await http.get(link.url)).status_code == 200


@pytest.mark.e2e
@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.large)])
async def test_no_secret_is_on_the_disk_or_in_the_log(tmp_path: Path, count: int) -> None:
    """Each person has more than a hundred secrets, and makes more than a hundred requests."""
    search, rng = Search(), random.Random(1)
    relay = RelayProcess(tmp_path / "data", PATIENT)
    found: list[str] = []

    def look() -> None:
        mails = {path for path in files_below(relay.data) if path.parent.name == "outbox"}
        found.extend(search.report([path for path in files_below(relay.data) if path not in mails], also={ADDRESS}))
        found.extend(search.report(sorted(mails), also={CODE, ADDRESS}))
        found.extend(search.report([relay.log]))

    try:
        await restart(relay)
        people = [Person(relay, number, random.Random(rng.random()), search) for number in range(count)]
        await all_at_once([person.live for person in people], 4)
        kinds = Counter(search.secrets.values())
        assert sum(kinds.values()) - kinds[ADDRESS] - kinds[PART] >= 100 * count
        assert (relay.data / "relay.db-wal").stat().st_size > 0
        await trio.to_thread.run_sync(look)  # as it runs, and as it is found after a crash
        await trio.to_thread.run_sync(relay.kill)
        await restart(relay)
        assert await trio.to_thread.run_sync(relay.stop) == 0
        await trio.to_thread.run_sync(look)
    finally:
        await trio.to_thread.run_sync(relay.kill)
    assert found == []
    # The same search finds what is known to be there: addresses in the database, codes in the mail, an account's chain.
    database = (relay.data / "relay.db").read_bytes()
    mails = b"".join(path.read_bytes() for path in files_below(relay.data / "outbox"))
    assert {person.email.encode() for person in people} <= search.found_in(database)
    assert {code.encode() for person in people for code in person.codes} <= search.found_in(mails)
    assert relay.log.read_text().count('"request"') > 100 * count


@pytest.mark.parametrize("secret", [b"precious secret", "grün “und”\n50%+".encode(), bytes(range(0, 256, 8))])
def test_the_search_finds_every_spelling(secret: bytes) -> None:
    search = Search()
    search.plant(secret, "it")
    for spelt in sorted(spellings(secret)):
        assert search.found_in(b"before" + spelt + b"after") == {secret}
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            assert search.found_in(encode(b"x" * before + secret + b"more")) == {secret}
    assert search.found_in(b"".join(bytes([byte]) for byte in secret[1:])) == set()
