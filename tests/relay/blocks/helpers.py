"""Accounts and folders to put chunks into, and what must always hold of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from sqlalchemy import Connection, insert, select

from p2psync.model.ids import FolderId, format_folder_id
from relay.accounts.ledger import Ledger, Usage
from relay.accounts.tables import accounts
from relay.blocks.refs import stored_bytes, unpack
from relay.blocks.tables import chunks, object_key, refs
from relay.mailbox import folders
from relay.mailbox.folders import Rights
from tests.relay.stack import Client, MemoryStore, Stack

ALICE, BOB, EVE = b"alice" + bytes(11), b"bob" + bytes(13), b"eve" + bytes(13)
FOLDER = FolderId(b"folder" + bytes(10))
TEXT = format_folder_id(FOLDER)
ME = {"folder": TEXT}
FREE = 10**9


class NoLimits:
    """Anyone may own any number of folders."""

    def check_folder(self, _c: Connection, _account_id: bytes, _owned: int) -> None:
        pass


def set_up(c: Connection, owner: bytes = ALICE, folder_id: bytes = FOLDER) -> None:
    """An account, and a folder of it."""
    if c.execute(select(accounts.c.plan).where(accounts.c.account_id == owner)).one_or_none() is None:
        row = {"email": owner.hex(), "verifier": b"", "plan": "", "created": 0, "suspended": False}
        c.execute(insert(accounts).values(account_id=owner, **row))
    folders.create(c, NoLimits(), folder_id, owner, 0)


def let_in(c: Connection, account_id: bytes, rights: Rights) -> None:
    """Give another account rights in the folder."""
    folders.set_access(c, folders.require(c, FOLDER, ALICE, Rights.MANAGE, lock=True), account_id, rights, 0)


def alice(stack: Stack) -> Client:
    """A device of the folder's owner; the folder exists."""
    stack.services.database.write_now(set_up)
    return stack.client(ALICE)


def chunk(number: int, size: int = 3000) -> tuple[str, bytes]:
    """The path of a chunk, and its bytes."""
    return path(number), hashlib.sha256(b"%d" % number).digest() * (size // 32) + bytes(size % 32)


def name(number: int) -> bytes:
    """The id of a chunk."""
    return hashlib.sha256(b"name %d" % number).digest()


def path(number: int) -> str:
    """Where that chunk is."""
    return f"/api/v1/chunks/{name(number).hex()}"


async def upload(client: Client, *numbers: int, size: int = 3000) -> None:
    """Store chunks."""
    for number in numbers:
        where, data = chunk(number, size)
        assert (await client.put(where, data, query=ME)).status == 200


def usage(stack: Stack, account_id: bytes = ALICE) -> Usage:
    """What the ledger says."""
    return stack.services.database.read_now(lambda c: stack.services.accounts.ledger.usage(c, account_id))


def memory(stack: Stack) -> MemoryStore:
    """The block store of a stack."""
    store = stack.services.ports.store
    assert isinstance(store, MemoryStore)
    return store


def check_books(c: Connection, ledger: Ledger, owner: bytes, folder_ids: Sequence[bytes]) -> None:
    """Chunks know their references, and the ledger what is stored."""
    counts: Counter[tuple[bytes, bytes]] = Counter()
    for row in c.execute(select(refs)):
        named = unpack(row.chunk_ids)
        assert row.chunk_count == len(named) == len(set(named))
        counts.update((row.folder_id, chunk_id) for chunk_id in named)
    for row in c.execute(select(chunks)):
        assert row.refs == counts.pop((row.folder_id, row.chunk_id), 0)
        assert (row.unreferenced is None) == (row.refs > 0)
    assert not counts, "references name chunks that do not exist"
    assert ledger.usage(c, owner).used == sum(stored_bytes(c, folder_id) for folder_id in folder_ids)


def check_objects(c: Connection, store: MemoryStore) -> None:
    """What chunks name is in the store, and sound."""
    for row in c.execute(select(chunks).where(chunks.c.upload_id.is_not(None))):
        data = store.objects[object_key(row.folder_id, row.chunk_id, row.upload_id)]
        assert (len(data), hashlib.sha256(data).digest()) == (row.size, row.digest)
