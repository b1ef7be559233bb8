"""The room over HTTP: every route, and who gets how far on it."""

from __future__ import annotations

import pytest
import trio
from sqlalchemy import insert

from p2psync.membership.grants import Grant
from p2psync.model.ids import format_device_id, format_folder_id
from p2psync.protocol import relay_api as api
from p2psync.protocol.mailbox import ChainKey, EntryKind, Header, next_slot
from relay.accounts.tables import accounts
from relay.api import mailbox, notifications
from relay.api.auth import Auth
from relay.api.route import encode_id
from tests.relay.mailbox.helpers import account, folder_id
from tests.relay.stack import Answer, Client, Stack

F = folder_id(1)
FOLDER = f"/api/v1/folders/{format_folder_id(F)}"
OWNER, MEMBER, VIEWER, STRANGER = range(4)


class Device:
    """A client that writes."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.last: Header | None = None

    def entry(self, text: bytes = b"text", kind: int = EntryKind.RECORDS) -> bytes:
        key = ChainKey(self.client.keys.card.signing_key, b"c" * 8)
        entry = next_slot(F, key, self.last, kind, b"k" * 16).sign(self.client.keys, text)
        self.last = entry.header
        return entry.encoded

    async def append(self, *entries: bytes) -> Answer:
        return await self.client.post("/api/v1/objects", api.NewEntries(list(entries)), msgpack=True)

    async def objects(self, after: int = 0) -> api.ObjectPage:
        query = {"local_object_id": after, "device_id": format_device_id(self.client.device_id)}
        answer = await self.client.get("/api/v1/objects", query=query, msgpack=True)
        assert answer.status == 200, answer.body
        return answer.decode(api.ObjectPage)


def grant(giver: Client, taker: Client, key_id: bytes = b"k" * 16) -> bytes:
    return Grant(1, F, key_id, taker.device_id, giver.keys.card.signing_key, b"s" * 80, b"x" * 64).encode()


@pytest.fixture
async def devices(stack: Stack) -> list[Device]:
    """Devices of four accounts: the owner's, one that may append, one that may read, and a stranger's."""

    def make(c: object) -> None:
        for number in range(4):
            row = {"email": f"{number}@test", "verifier": b"", "plan": "", "created": 0, "suspended": False}
            c.execute(insert(accounts).values(account_id=account(number), **row))  # type: ignore[attr-defined]

    stack.services.database.write_now(make)
    made = [Device(stack.client(account(number))) for number in range(4)]
    owner = made[OWNER].client
    assert (await owner.put(FOLDER)).status == 204
    for number, rights in ((MEMBER, "append"), (VIEWER, "read")):
        path = f"{FOLDER}/access/{encode_id(account(number))}"
        assert (await owner.put(path, api.NewRights(rights))).status == 204  # type: ignore[arg-type]
    return made


async def test_entries_go_from_one_account_to_the_others(devices: list[Device]) -> None:
    owner, member, viewer, stranger = devices
    first = [owner.entry(b"a"), owner.entry(b"b")]
    placed = (await owner.append(*first)).decode(api.Places).places
    assert [place.seq for place in placed] == [1, 2]
    assert (await owner.append(*first)).decode(api.Places).places == placed
    assert (await member.append(third := member.entry(b"c"))).status == 200
    page = await viewer.objects()
    assert [entry.entry for entry in page.objects] == [*first, third]
    assert not page.more
    assert (await viewer.objects(page.local_object_id)).objects == []
    assert (await viewer.objects(placed[0].object_id)).objects == page.objects[1:]
    assert (await stranger.objects()).objects == []
    found = (await viewer.client.get(f"{FOLDER}/objects", query={"after": 1, "limit": 1})).decode(api.FolderPage)
    assert [entry.entry for entry in found.objects] == first[1:]
    assert found.last_seq == 3
    one = (await viewer.client.get(f"{FOLDER}/objects/3")).decode(api.StoredObject)
    assert one.entry == third
    heads = (await viewer.client.get(f"{FOLDER}/heads")).decode(api.HeadList)
    assert owner.last is not None
    assert owner.last.encoded in heads.headers


async def test_a_fork_of_ones_own_chain_is_refused_with_its_head(devices: list[Device]) -> None:
    owner = devices[OWNER]
    twin = Device(owner.client)
    await owner.append(owner.entry(b"a"))
    answer = await twin.append(twin.entry(b"other"))
    assert (answer.status, answer.problem) == (409, "conflict")
    assert answer.json()["author_seq"] == 1
    assert (await owner.append(owner.entry(b"s", EntryKind.SNAPSHOT))).problem == "bad-request"


async def test_what_a_device_reads_it_reads_for_itself(devices: list[Device]) -> None:
    owner, member, *_ = devices
    query = {"device_id": format_device_id(member.client.device_id)}
    assert (await owner.client.get("/api/v1/objects", query=query)).problem == "forbidden"
    assert (await owner.client.get("/api/v1/objects", query={"device_id": "x"})).problem == "bad-request"
    query = {"device_id": format_device_id(owner.client.device_id), "local_object_id": "99999"}
    assert (await owner.client.get("/api/v1/objects", query=query)).problem == "conflict"
    for seq in ("9", "x", "-1", "1" * 30):
        assert (
            await owner.client.get(f"{FOLDER}/objects/{seq}" if seq.isascii() else FOLDER + "/objects/0")
        ).status == 404


async def test_snapshots_and_grants(devices: list[Device]) -> None:
    owner, member, viewer, _ = devices
    await owner.append(owner.entry(b"a"))
    snapshot = api.NewSnapshot(owner.entry(b"s", EntryKind.SNAPSHOT), 1, b"r" * 32)
    assert (await viewer.client.get(f"{FOLDER}/snapshot")).status == 404
    assert (await owner.client.post(f"{FOLDER}/snapshot", snapshot)).decode(api.Place).seq == 2
    found = (await viewer.client.get(f"{FOLDER}/snapshot")).decode(api.StoredSnapshot)
    assert (found.object.entry, found.covers, found.ref_id) == (snapshot.entry, 1, b"r" * 32)
    given = [grant(owner.client, viewer.client, bytes([n]) * 16) for n in range(20)]
    for encoded in given:
        assert (await owner.client.post(f"{FOLDER}/grants", api.NewGrants([encoded] * 2))).status == 204
    assert (await member.client.post(f"{FOLDER}/grants", api.NewGrants([given[0]]))).problem == "forbidden"
    by_member = grant(member.client, viewer.client, b"m" * 16)
    assert (await member.client.post(f"{FOLDER}/grants", api.NewGrants([by_member]))).status == 204
    kept = (await viewer.client.get(f"{FOLDER}/grants")).decode(api.GrantList).grants
    assert kept == [by_member, *reversed(given[4:])]
    assert (await owner.client.get(f"{FOLDER}/grants")).decode(api.GrantList).grants == []
    ledger = owner.client.stack.services.accounts.ledger
    database = owner.client.stack.services.database
    assert database.read_now(lambda c: ledger.usage(c, account(OWNER))).used > 0
    assert (await owner.client.delete(FOLDER)).status == 204
    assert database.read_now(lambda c: ledger.usage(c, account(OWNER))).used == 0
    assert (await viewer.client.get(FOLDER)).status == 404


async def test_who_is_let_in_and_shut_out(devices: list[Device]) -> None:
    owner, member, viewer, stranger = devices
    listed = (await owner.client.get(f"{FOLDER}/access")).decode(api.AccessList).accounts
    assert [entry.rights for entry in listed] == ["manage", "append", "read"]
    for refused in (member, viewer):
        assert (await refused.client.get(f"{FOLDER}/access")).problem == "forbidden"
        path = f"{FOLDER}/access/{encode_id(account(STRANGER))}"
        assert (await refused.client.put(path, api.NewRights("read"))).problem == "forbidden"
        assert (await refused.client.delete(f"{FOLDER}/access/{encode_id(account(MEMBER))}")).status in (403, 204)
    assert (await stranger.client.put(FOLDER)).problem == "conflict"
    own = f"{FOLDER}/access/{encode_id(account(OWNER))}"
    assert (await owner.client.put(own, api.NewRights("read"))).problem == "forbidden"
    assert (await owner.client.delete(own)).problem == "forbidden"
    assert (await viewer.client.delete(f"{FOLDER}/access/{encode_id(account(VIEWER))}")).status == 204
    assert (await viewer.client.get(FOLDER)).status == 404
    folders = (await owner.client.get("/api/v1/folders")).decode(api.FolderList).folders
    assert [(entry.folder_id, entry.owned, entry.rights) for entry in folders] == [(F, True, "manage")]


SAFE = {"GET": None}
PATHS: list[tuple[str, str, object]] = [
    ("GET", FOLDER, None),
    ("DELETE", FOLDER, None),
    ("GET", f"{FOLDER}/access", None),
    ("PUT", f"{FOLDER}/access/{encode_id(account(7))}", api.NewRights("read")),
    ("DELETE", f"{FOLDER}/access/{encode_id(account(7))}", None),
    ("POST", "/api/v1/objects", "append"),
    ("GET", f"{FOLDER}/objects", None),
    ("GET", f"{FOLDER}/objects/1", None),
    ("GET", f"{FOLDER}/heads", None),
    ("POST", f"{FOLDER}/snapshot", "snapshot"),
    ("GET", f"{FOLDER}/snapshot", None),
    ("POST", f"{FOLDER}/grants", "grant"),
    ("GET", f"{FOLDER}/grants", None),
]


async def call(device: Device, method: str, path: str, body: object) -> Answer:
    match body:
        case "append":
            body = api.NewEntries([device.entry()])
        case "snapshot":
            body = api.NewSnapshot(device.entry(kind=EntryKind.SNAPSHOT), 0, bytes(32))
        case "grant":
            body = api.NewGrants([grant(device.client, device.client)])
    return await device.client.request(method, path, body)


def test_the_table_of_paths_is_complete() -> None:
    """Who adds a route says here who may use it."""
    named = {
        ("GET", "/api/v1/folders"),
        ("GET", "/api/v1/objects"),
        ("PUT", "/api/v1/folders/{folder_id}"),
        ("PUT", "/api/v1/folders/{folder_id}/access/{account_id}"),
        ("DELETE", "/api/v1/folders/{folder_id}/access/{account_id}"),
        ("GET", "/api/v1/folders/{folder_id}/objects/{seq}"),
    }
    tried = {(method, path.replace(format_folder_id(F), "{folder_id}")) for method, path, _ in PATHS}
    routes = [*mailbox.ROUTES, *notifications.ROUTES]
    assert {(route.method, route.path) for route in mailbox.ROUTES} - named <= tried
    assert all(route.auth is Auth.SESSION for route in routes)


@pytest.mark.parametrize(("method", "path", "body"), PATHS, ids=lambda value: str(value)[:40])
async def test_strangers_and_those_without_a_session_get_nothing(
    devices: list[Device], stack: Stack, method: str, path: str, body: object
) -> None:
    await devices[OWNER].append(devices[OWNER].entry(b"first"))
    assert (await call(devices[STRANGER], method, path, body)).status == 404
    removed = Device(devices[OWNER].client)
    removed.client.token = None
    assert (await call(removed, method, path, body)).status == 401
    thief = Device(Client(stack, stack.keys(), devices[MEMBER].client.token, account(MEMBER)))
    assert (await call(thief, method, path, body)).status == 401


@pytest.mark.parametrize(("method", "path", "body"), PATHS, ids=lambda value: str(value)[:40])
async def test_a_reader_only_reads(devices: list[Device], method: str, path: str, body: object) -> None:
    await devices[OWNER].append(devices[OWNER].entry(b"first"))
    answer = await call(devices[VIEWER], method, path, body)
    expected = 403 if method != "GET" or path.endswith("/access") else 404 if path.endswith("snapshot") else 200
    assert answer.status == expected


@pytest.mark.parametrize(("method", "path", "body"), PATHS, ids=lambda value: str(value)[:40])
async def test_an_appender_does_not_manage(devices: list[Device], method: str, path: str, body: object) -> None:
    await devices[OWNER].append(devices[OWNER].entry(b"first"))
    answer = await call(devices[MEMBER], method, path, body)
    managing = "/access" in path or method == "DELETE"
    assert answer.status == 403 if managing else answer.status in (200, 204, 404)


# ── news ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_server_sent_events(devices: list[Device]) -> None:
    owner, _, viewer, stranger = devices
    async with (
        viewer.client.stream("/api/v1/notifications") as events,
        stranger.client.stream("/api/v1/notifications") as nothing,
    ):
        assert events.headers["content-type"].startswith("text/event-stream")
        ready = await events.event()
        assert ready["event"] == "ready"
        assert (await nothing.event())["event"] == "ready"
        await owner.append(owner.entry(b"a"))
        event = await events.event()
        assert event["event"] == "objects"
        assert int(event["id"]) > int(ready["id"])
    await owner.append(owner.entry(b"b"))
    async with viewer.client.stream("/api/v1/notifications", headers={"last-event-id": event["id"]}) as events:
        missed = await events.event()
        assert missed["event"] == "objects"
        assert '"seq":2' in missed["data"]
    assert owner.client.stack.services.mailbox.subscriptions.count() == 0
    answer = await viewer.client.get("/api/v1/notifications", headers={"last-event-id": "x"})
    assert answer.problem == "bad-request"


async def test_a_stream_ends_with_its_session(devices: list[Device], stack: Stack) -> None:
    _, member, viewer, _ = devices
    async with (
        viewer.client.stream("/api/v1/notifications") as events,
        member.client.stream("/api/v1/notifications") as others,
    ):
        await events.event()
        await others.event()
        stack.sessions._tokens = {
            token: owner for token, owner in stack.sessions._tokens.items() if owner[0] != account(VIEWER)
        }
        stack.services.mailbox.account_committed(account(VIEWER))
        with pytest.raises(trio.EndOfChannel), trio.fail_after(5):
            await events.event()
        await member.append(member.entry(b"a"))
        assert (await others.event())["event"] == "objects"


async def test_a_websocket(devices: list[Device]) -> None:
    owner, _, viewer, _ = devices
    async with viewer.client.websocket("/api/v1/notifications/socket") as socket:
        assert '"events":[]' in str(await socket.receive())
        await socket.send("whatever")
        await owner.append(owner.entry(b"a"))
        assert '"kind":"objects"' in str(await socket.receive())


async def test_long_polling(devices: list[Device], autojump_clock: object) -> None:
    owner, _, viewer, _ = devices
    path = "/api/v1/notifications/poll"
    begun = (await viewer.client.get(path)).decode(api.Batch)
    assert begun.events == []
    assert (await viewer.client.get(path, query={"after": begun.cursor, "wait": 20})).decode(api.Batch) == begun
    await owner.append(owner.entry(b"a"))
    found = (await viewer.client.get(path, query={"after": begun.cursor})).decode(api.Batch)
    assert [(event.kind, event.seq) for event in found.events] == [(api.EventKind.OBJECTS, 1)]
    reset = (await viewer.client.get(path, query={"after": 10**9})).decode(api.Batch)
    assert reset.reset
    assert reset.cursor == found.cursor
