"""The files of an account: private, whole, and refused when they cannot be trusted."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import msgspec
import pytest

from p2psync import Node
from p2psync.errors import IntegrityError, StateError
from p2psync.node.account_store import AccountFiles, StoredAccount
from p2psync.node.node import init
from p2psync.protocol.relay_api import Session

ACCOUNT = StoredAccount(
    relays=("https://relay.example:443/",),
    email="me@example.org",
    account_id=b"a" * 16,
    state="active",
    confirmed=2,
    session=Session(b"a" * 16, "access", 1, "refresh", 2),
)
LINKS = [b"one", b"two"]


@pytest.fixture
def files(tmp_path: Path) -> AccountFiles:
    return AccountFiles(tmp_path)


def test_what_is_saved_is_loaded(files: AccountFiles, tmp_path: Path) -> None:
    assert files.load() is None
    files.save(ACCOUNT, LINKS)
    assert files.load() == (ACCOUNT, LINKS)
    changed = msgspec.structs.replace(ACCOUNT, state="logged-out", session=None)
    files.save(changed, None)
    assert files.load() == (changed, LINKS)
    private = [tmp_path / "account.json", tmp_path / "account" / "chain"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600, 0o600]
    assert stat.S_IMODE((tmp_path / "account").stat().st_mode) == 0o700
    files.save(None)
    assert files.load() is None
    assert not any(path.exists() for path in private)


def test_the_chain_is_never_behind_what_the_relay_confirmed(
    files: AccountFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.save(ACCOUNT, LINKS)
    import p2psync.node.account_store as module

    written: list[str] = []
    write = module.write_private
    monkeypatch.setattr(module, "write_private", lambda path, data: (written.append(path.name), write(path, data)))
    files.save(msgspec.structs.replace(ACCOUNT, confirmed=3), [*LINKS, b"three"])
    assert written == ["chain", "account.json"]


@pytest.mark.parametrize("name", ["account.json", "account/chain"])
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 5000, b"\xc1", b"null"])
def test_damage_is_said(files: AccountFiles, tmp_path: Path, name: str, content: bytes) -> None:
    files.save(ACCOUNT, LINKS)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match="account login"):
        files.load()


def test_others_must_not_read_it(files: AccountFiles, tmp_path: Path) -> None:
    files.save(ACCOUNT, LINKS)
    (tmp_path / "account.json").chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        files.load()


def test_a_later_version_is_left_alone(files: AccountFiles, tmp_path: Path) -> None:
    (tmp_path / "account.json").touch(0o600)
    (tmp_path / "account.json").write_text('{"version": 2, "new": true}')
    with pytest.raises(StateError, match="format 2"):
        files.load()


async def test_a_node_reads_them_on_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long chain takes a while, in which nothing else may have to wait."""
    init(tmp_path, "desk")
    AccountFiles(tmp_path).save(msgspec.structs.replace(ACCOUNT, state="logged-out", session=None), [])
    readers: list[threading.Thread] = []
    load = AccountFiles.load

    def watched(files: AccountFiles) -> tuple[StoredAccount, list[bytes]] | None:
        readers.append(threading.current_thread())
        return load(files)

    monkeypatch.setattr(AccountFiles, "load", watched)
    async with Node(tmp_path, listen=["127.0.0.1:0"], discovery=False, control=False) as node:
        now = await node.operations.status()
    assert now.account is not None
    assert now.account.email == ACCOUNT.email
    assert len(readers) == 1
    assert threading.main_thread() not in readers
