"""What is secret is nowhere: not in the database's files, not in the log."""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.errors import StateError
from p2psync.testing.world import SimRng
from relay.api.routes import all_routes
from relay.data import DataDirectory
from relay.db.database import database_from_url
from relay.db.metadata import metadata
from tests.relay.stack import Inline, Stack, make_stack

from .helpers import Person, b64, code_in, mails

OLD, NEW = b"planted login key number one, ok", b"planted login key number two, ok"
RELAY_SECRET = b"planted secret of the relay, yes"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Over a database in a file."""
    all_routes()  # importing the handlers imports every table
    database = database_from_url(f"sqlite:///{tmp_path / 'relay.db'}", Inline(), SimRng("database"))
    metadata.create_all(database.engine)
    yield make_stack(database, secret=RELAY_SECRET)
    database.close()


def spellings(secret: bytes) -> set[bytes]:
    return {
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
        base64.b32encode(secret).rstrip(b"="),
    }


async def test_secrets_are_neither_stored_nor_logged(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ann = Person(stack, "ann@example.org", OLD)
    secrets, codes, files = {OLD, NEW, RELAY_SECRET}, set(), b""

    def look() -> None:
        nonlocal files
        files += b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))

    await ann.sign_up()
    look()
    codes.add(code_in(await mails(stack), ann.email))
    await ann.verify(max(codes))
    tokens = (await ann.log_in()).json()
    renewed = await ann.first.post("/api/v1/sessions/refresh", {"refresh_token": tokens["refresh_token"]})
    ann.first.token = renewed.json()["access_token"]
    look()
    await ann.first.post("/api/v1/password-resets", {"email": ann.email})
    look()
    codes.add(code_in(await mails(stack), ann.email))
    body = {"email": ann.email, "login_key": b64(NEW)}
    assert (await ann.first.post("/api/v1/sessions", body)).status == 401
    body["code"] = code_in(await mails(stack), ann.email)
    assert (await ann.first.post("/api/v1/password-resets/confirm", body)).status == 204
    look()
    for answer in (tokens, renewed.json()):
        for name in ("access_token", "refresh_token"):
            token = base64.urlsafe_b64decode(answer[name] + "==")
            secrets.add(token[16:])
    captured = capsys.readouterr()
    log = (captured.out + captured.err).encode()
    assert b"request" in log
    assert b"ann@example.org" in files, "the search itself works"
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling not in files
            assert spelling not in log
    for code in codes:
        for spelling in (code.encode(), code.replace("-", "").encode()):
            assert spelling not in files
            assert spelling not in log
    assert b"ann@example.org" not in log


def test_the_relays_own_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path)
    assert data.secret(RELAY_SECRET) == RELAY_SECRET
    assert data.secret(b"another one, which is not needed") == RELAY_SECRET
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    with pytest.raises(StateError, match="damaged"):
        data.secret(RELAY_SECRET)
