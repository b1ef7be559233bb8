"""`p2psync-relay admin …`: people, plans, usage, garbage, checks and backups, on the relay's data, running or not."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from p2psync.errors import P2PSyncError, StateError
from relay.config import Allowance, Config, load_config
from relay.data import DataDirectory
from relay.options import DEFAULT_DATA, ConfigOption, DataOption, JsonOption

# Everything else is loaded by the command that needs it: the database alone takes half a second.
if TYPE_CHECKING:
    from relay.admin.backup import Moved
    from relay.admin.usage import Totals
    from relay.services import Services

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Look after what a relay has stored; it may be running meanwhile.")
users = typer.Typer(no_args_is_help=True, help="People with an account.")
plans = typer.Typer(no_args_is_help=True, help="What accounts may use.")
app.add_typer(users, name="users")
app.add_typer(plans, name="plans")

Email = Annotated[str, typer.Argument(metavar="EMAIL")]


class Damaged(P2PSyncError):  # noqa: N818  (what was found, not what went wrong)
    """A check found something wrong; what, has been said."""


# ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@users.command("list")
def list_users(data: DataOption = DEFAULT_DATA, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Every account with its plan, what it stores, and what was forwarded for it in the last 30 days."""
    from relay.accounts.administration import list_accounts
    from relay.admin.usage import RECENT_S
    from relay.rendezvous.usage import by_account

    async def work(services: Services) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        since = services.now() - RECENT_S
        forwarded = await services.database.read(lambda c: by_account(c, since))
        after = b""
        while page := await services.database.read(
            functools.partial(list_accounts, ledger=services.accounts.ledger, after=after)
        ):
            rows += [
                {
                    "email": row.email,
                    "account": row.account_id.hex(),
                    "plan": row.plan or "free",
                    "used": row.usage.used,
                    "reserved": row.usage.reserved,
                    "forwarded": forwarded.get(row.account_id, 0),
                    "suspended": row.suspended,
                    "created": _time(row.created),
                }
                for row in page
            ]
            after = page[-1].account_id
        return rows

    _show_list(_run(config, data, work), json=json)


@users.command("invite")
def invite_user(
    email: Email,
    plan: Annotated[str, typer.Option("--plan", help="The plan the account begins on.")] = "",
    data: DataOption = DEFAULT_DATA,
    config: ConfigOption = None,
) -> None:
    """Let an address sign up although sign-up is closed."""
    from relay.accounts.administration import invite

    _run(config, data, lambda services: services.database.write(lambda c: invite(c, email, plan)))


@users.command("suspend")
def suspend_user(email: Email, data: DataOption = DEFAULT_DATA, config: ConfigOption = None) -> None:
    """End every session of an account and let it open no other; what it stored stays."""
    from relay.accounts.administration import find_account, suspend

    _run(config, data, lambda services: services.database.write(lambda c: suspend(c, find_account(c, email))))


@users.command("resume")
def resume_user(email: Email, data: DataOption = DEFAULT_DATA, config: ConfigOption = None) -> None:
    """Undo `suspend`."""
    from relay.accounts.administration import find_account, resume

    _run(config, data, lambda services: services.database.write(lambda c: resume(c, find_account(c, email))))


@users.command("delete")
def delete_user(
    email: Email,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: DataOption = DEFAULT_DATA,
    config: ConfigOption = None,
) -> None:
    """Delete an account and all it stored; its owner is told by mail."""
    from relay.accounts.administration import find_account

    async def work(services: Services) -> None:
        account_id = await services.database.read(lambda c: find_account(c, email))
        await services.accounts.signups.remove(account_id, services.now())

    if not yes:
        typer.confirm(f"Delete the account {email} and all it stored here?", abort=True, err=True)
    _run(config, data, work)


# ── plans and usage ─────────────────────────────────────────────────────────────────────────────────────────────────
@plans.command("list")
def list_plans(config: ConfigOption = None, json: JsonOption = False) -> None:
    """The plans of the configuration, and the free allowance."""
    given = _configuration(config)
    rows = [{"name": "free", **_allowance(given.free), "price": ""}]
    rows += [{"name": plan.name, **_allowance(plan), "price": plan.price} for plan in given.plans]
    _show_list(rows, json=json)


@plans.command("set")
def set_user_plan(
    email: Email,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help='A name of `plans list`; "free" takes a plan away.')],
    data: DataOption = DEFAULT_DATA,
    config: ConfigOption = None,
) -> None:
    """Put an account on a plan, without billing."""
    from relay.accounts.plans import FREE

    name = FREE if plan == "free" else plan
    _run(config, data, lambda services: services.accounts.grant(email, name, services.now()))


@app.command()
def usage(data: DataOption = DEFAULT_DATA, config: ConfigOption = None, json: JsonOption = False) -> None:
    """What is stored in all, and how many bytes were forwarded in the last 30 days."""
    from relay.admin.usage import totals

    async def work(services: Services) -> Totals:
        now = services.now()
        return await services.database.read(lambda c: totals(c, now))

    _show_record(_values(_run(config, data, work)), json=json)


# ── garbage, checks ─────────────────────────────────────────────────────────────────────────────────────────────────
@app.command()
def collect(
    force: Annotated[
        bool, typer.Option("--force", help="Delete even so many unknown objects that the database may be an old one.")
    ] = False,
    data: DataOption = DEFAULT_DATA,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Remove chunks and objects that nothing refers to and whose waiting time is over."""
    from relay.blocks.maintenance import Maintenance

    async def work(services: Services) -> dict[str, Any]:
        upkeep = Maintenance(services.blocks)
        done = await upkeep.collect()
        listed = await upkeep.list_store(force=force)
        done.objects += listed.objects
        done.refused += listed.refused
        return _values(done)

    _show_record(_run(config, data, work), json=json)


@app.command()
def check(
    repair: Annotated[
        bool, typer.Option("--repair", help="Correct figures, and ask devices for lost chunks again.")
    ] = False,
    data: DataOption = DEFAULT_DATA,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Whether everything that was acknowledged is there and all figures are right; exit code 1 when not."""
    from relay.admin.check import check_database
    from relay.blocks.check import check as check_blocks

    async def work(services: Services) -> dict[str, Any]:
        found = await services.database.read(check_database)
        blocks = await check_blocks(services.blocks, repair=repair)
        return {
            "clean": not found.wrong and blocks.is_clean,
            "revision": found.revision,
            "database": found.wrong,
            **_values(blocks),
        }

    report = _run(config, data, work)
    _show_record(report, json=json)
    if not report["clean"]:
        raise Damaged("the check found something wrong" + (", and repaired what it could" if repair else ""))


# ── backups ─────────────────────────────────────────────────────────────────────────────────────────────────────────
ArchiveArgument = Annotated[Path, typer.Argument(metavar="FILE", help='The archive; "-" is standard output or input.')]


@app.command("export")
def export_all(file: ArchiveArgument, data: DataOption = DEFAULT_DATA, config: ConfigOption = None) -> None:
    """Write everything into one archive, of one moment, while the relay goes on."""
    from relay.admin import backup

    async def work(services: Services) -> Moved:
        store, own = services.ports.store, DataDirectory(data.absolute()).own_files()
        with _open_new(file) as out:
            write = functools.partial(backup.export, store=store, files=own, file=out, now=services.now())
            return await services.ports.offload.run(lambda: services.database.read_now(write))

    _tell(_run(config, data, work))


@app.command("import")
def import_all(file: ArchiveArgument, data: DataOption = DEFAULT_DATA, config: ConfigOption = None) -> None:
    """Read an archive into an empty relay, which must not run."""
    from relay.admin import backup
    from relay.db.migrate import upgrade

    directory = DataDirectory(data.absolute())
    directory.create()

    async def work(services: Services) -> Moved:
        with directory.locked(), _open_old(file) as source:
            read = functools.partial(backup.restore, store=services.ports.store, keep=directory.keep_file, file=source)
            # Not repeated when it collides: a stream is read once.
            moved = await services.ports.offload.run(lambda: services.database.write_now(read))
            await services.ports.offload.run(lambda: upgrade(services.database.engine))
            return moved

    _tell(_run(config, data, work, empty=True))


def _tell(moved: Moved) -> None:
    sys.stderr.write(f"{moved.rows} rows, {moved.chunks} chunks of {moved.size} bytes\n")
    if moved.missing:
        raise Damaged(f"{moved.missing} chunks are missing; `admin check --repair` has devices send them again")


@contextlib.contextmanager
def _open_new(file: Path) -> Iterator[IO[bytes]]:
    """A new file that is there only if all went well."""
    if str(file) == "-":
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
            yield out
        return
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
        try:
            yield out
            out.flush()
            os.fsync(out.fileno())
        except BaseException:
            file.unlink()
            raise


def _open_old(file: Path) -> IO[bytes]:
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb") if str(file) == "-" else file.open("rb")


# ── running and showing ─────────────────────────────────────────────────────────────────────────────────────────────
def _run(config: Path | None, data: Path, work: Callable[[Services], Awaitable[T]], *, empty: bool = False) -> T:
    """Do `work` on the services over the relay's data; `empty`: there need not be any data yet."""
    import trio

    from relay.compose import composed
    from relay.db.migrate import revision, scripts
    from relay.errors import ApiError
    from relay.logs import configure_logging

    given = _configuration(config)
    configure_logging("warning")
    directory = DataDirectory(data.absolute())
    if not directory.path.is_dir():
        raise StateError(f"{directory.path}: there is no relay; name its directory by --data")

    async def main() -> T:
        with composed(given, directory) as services:
            found, newest = await services.database.read(revision), scripts().get_current_head()
            if not empty and found != newest:
                raise StateError(f"the database has schema {found or 'none'}, not {newest}: start the relay once")
            return await work(services)

    try:
        return trio.run(main)
    except ApiError as error:
        raise StateError(str(error)) from error


def _configuration(path: Path | None) -> Config:
    return load_config(path) if path else Config()


def _allowance(allowance: Allowance) -> dict[str, Any]:
    return {"bytes": int(allowance.bytes), "devices": allowance.devices, "folders": allowance.folders}


def _values(record: Any) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(record)
    return made


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _show_list(rows: list[dict[str, Any]], *, json: bool) -> None:
    """As a JSON list, or as aligned columns."""
    if json:
        _show_json(rows)
    elif rows:
        lines = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            sys.stdout.write(f"{'  '.join(cells).rstrip()}\n")


def _show_record(record: dict[str, Any], *, json: bool) -> None:
    """As a JSON object, or as one line for each field."""
    if json:
        _show_json(record)
    else:
        for name, value in record.items():
            sys.stdout.write(f"{name}: {value}\n")


def _show_json(document: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
