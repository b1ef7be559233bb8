"""The operator's commands, as they are typed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import insert, select
from typer.testing import CliRunner, Result

from p2psync.errors import P2PSyncError
from p2psync.testing.world import SimRng
from relay.accounts.ledger import account_usage
from relay.accounts.tables import accounts, outbox
from relay.api.routes import all_routes
from relay.cli import app
from relay.db.database import Database, database_from_url
from relay.db.migrate import upgrade
from relay.rendezvous.tables import forwarded
from relay.rendezvous.usage import DAY_S
from tests.relay.stack import Inline

ANN = b"a" * 16
Run = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def database(data: Path) -> Any:
    all_routes()
    database = database_from_url(f"sqlite:///{data}/relay.db", Inline(), SimRng("database"))
    upgrade(database.engine)
    row = {"account_id": ANN, "email": "ann@example.org", "verifier": b"v", "plan": "", "created": 0}
    database.write_now(lambda c: c.execute(insert(accounts).values(**row, suspended=False)))
    yield database
    database.close()


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Any:
    config = tmp_path / "relay.toml"
    config.write_text('[[plans]]\nname = "big"\nbytes = "2TB"\nprice = "5 a month"\n')
    before = structlog.get_config()

    def run(*arguments: str, data: Path = data) -> Result:
        places = ["--config", str(config)]
        if arguments != ("plans", "list", "--json"):
            places += ["--data", str(data)]
        return CliRunner().invoke(app, ["admin", *arguments, *places])

    yield run
    structlog.configure(**before)


def plan_of(database: Database) -> Any:
    return database.read_now(lambda c: c.execute(select(accounts.c.plan, accounts.c.suspended)).one())


def test_people_and_plans(run: Run, database: Database) -> None:
    (row,) = json.loads(run("users", "list", "--json").stdout)
    assert (row["email"], row["plan"], row["used"]) == ("ann@example.org", "free", 0)
    assert "ann@example.org" in run("users", "list").stdout
    assert [plan["name"] for plan in json.loads(run("plans", "list", "--json").stdout)] == ["free", "big"]
    assert run("plans", "set", "Ann@example.org", "big").exit_code == 0
    assert run("users", "suspend", "ann@example.org").exit_code == 0
    assert tuple(plan_of(database)) == ("big", True)
    assert run("plans", "set", "ann@example.org", "free").exit_code == 0
    assert run("users", "resume", "ann@example.org").exit_code == 0
    assert tuple(plan_of(database)) == ("", False)
    assert run("users", "invite", "bob@example.org", "--plan", "big").exit_code == 0
    for wrong in (("plans", "set", "ann@example.org", "huge"), ("users", "suspend", "nobody@example.org")):
        assert isinstance(run(*wrong).exception, P2PSyncError)


def test_an_account_is_deleted_and_its_owner_told(run: Run, database: Database) -> None:
    database.write_now(lambda c: c.execute(insert(account_usage).values(account_id=ANN, used=0, reserved=0)))
    assert run("users", "delete", "ann@example.org").exit_code == 1  # nobody said yes
    assert len(json.loads(run("users", "list", "--json").stdout)) == 1
    assert run("users", "delete", "ann@example.org", "--yes").exit_code == 0
    assert json.loads(run("users", "list", "--json").stdout) == []
    assert len(database.read_now(lambda c: c.execute(select(outbox)).all())) == 1
    assert json.loads(run("check", "--json").stdout)["clean"] is True


def test_usage_garbage_and_checks(run: Run, database: Database) -> None:
    moved = {"account_id": ANN, "day": int(time.time()) // DAY_S - 1, "bytes": 5}
    database.write_now(lambda c: c.execute(insert(forwarded).values(moved | {"day": moved["day"] - 30, "bytes": 90})))
    database.write_now(lambda c: c.execute(insert(forwarded).values(moved)))
    figures = json.loads(run("usage", "--json").stdout)
    assert (figures["accounts"], figures["forwarded_bytes"]) == (1, 5)
    assert "forwarded_bytes: 5\n" in run("usage").stdout
    assert json.loads(run("users", "list", "--json").stdout)[0]["forwarded"] == 5
    assert json.loads(run("collect", "--json").stdout)["swept"] == 0
    assert json.loads(run("check", "--json").stdout)["clean"] is True
    database.write_now(lambda c: c.execute(insert(account_usage).values(account_id=ANN, used=7, reserved=0)))
    found = run("check", "--json")
    assert (found.exit_code, json.loads(found.stdout)["clean"]) == (1, False)
    run("check", "--repair")
    assert json.loads(run("check", "--json").stdout)["clean"] is True


def test_export_and_import(run: Run, database: Database, tmp_path: Path) -> None:
    archive, fresh = tmp_path / "relay.tar", tmp_path / "fresh"
    assert run("export", str(archive)).exit_code == 0
    assert archive.stat().st_mode & 0o077 == 0
    assert isinstance(run("export", str(archive)).exception, FileExistsError)
    fresh.mkdir()
    assert run("import", str(archive), data=fresh).exit_code == 0
    (row,) = json.loads(run("users", "list", "--json", data=fresh).stdout)
    assert row["email"] == "ann@example.org"
    assert (fresh / "secret").read_bytes() == (tmp_path / "data" / "secret").read_bytes()
    assert isinstance(run("import", str(archive), data=fresh).exception, P2PSyncError)


def test_without_a_relay_there_is_nothing_to_look_after(run: Run, data: Path, tmp_path: Path) -> None:
    for place in (data, tmp_path / "nowhere"):
        failed = run("usage", data=place)
        assert isinstance(failed.exception, P2PSyncError)
        assert failed.stdout == ""
