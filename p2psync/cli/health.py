"""`config`, `check`, `doctor`: settings, stored data, surroundings."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2psync.cli import completion
from p2psync.cli.output import complain, count, percent, plain, print_json, print_table, say
from p2psync.cli.output import size as human_size
from p2psync.cli.session import AsJson, perform, settings

if TYPE_CHECKING:
    from p2psync.node.operations import Operations
    from p2psync.node.views import CheckReport, Diagnosis, Event

config_app = typer.Typer(help="Read and change settings (HOME/config.toml).", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="section.name", autocompletion=completion.setting_names)]


@config_app.command("get", epilog="Example: p2psync config get network.max_send_rate")
def get(
    context: typer.Context,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="section.name", autocompletion=completion.setting_names)
    ] = None,
    json: AsJson = False,
) -> None:
    """Print one setting's value, or all settings with what they mean."""
    found = perform(context, lambda node: node.config_get(key))
    if json:
        print_json({setting.key: setting.value for setting in found})
    elif key is not None:
        say(plain(_shown(found[0].value)))
    else:
        rows = ((s.key, _shown(s.value), s.unit or "", s.about) for s in found)
        print_table(("KEY", "VALUE", "UNIT", "MEANING"), rows, "No settings.")


@config_app.command("set", epilog="Example: p2psync config set network.max_send_rate 5MiB")
def set_(
    context: typer.Context,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="As in the file; sizes may be written 10MiB.")],
    json: AsJson = False,
) -> None:
    """Change a setting; a value that is not allowed is refused and nothing changes."""
    changed = perform(context, lambda node: node.config_set(key, value))
    if json:
        print_json({changed.key: changed.value})
        return
    restart = " It counts from the next start of the node." if changed.needs_restart else ""
    say(f"{changed.key} = {plain(_shown(changed.value))}.{restart}")


def check(
    context: typer.Context,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what can be, from other devices where needed.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Check the index only, and read no files.")] = False,
    accept_local: Annotated[
        bool,
        typer.Option(
            "--accept-local", help="With --repair: publish what is on this disk where no device has what was lost."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Verify index, signatures, files and kept versions of every folder. Exit code 1 when it finds damage."""

    async def work(node: Operations) -> CheckReport:
        async with node.events() as events, trio.open_nursery() as nursery:
            if sys.stderr.isatty():
                nursery.start_soon(_show_progress, events)
            report = await node.check(repair, quick, accept_local)
            nursery.cancel_scope.cancel()
        return report

    import trio

    report = perform(context, work)
    if json:
        print_json(report)
    else:
        for finding in report.findings:
            where = finding.folder if finding.path is None else f"{finding.folder}: {finding.path}"
            say(plain(f"{'repaired' if finding.repaired else 'DAMAGE'}: {where}: {finding.text}"))
            if not finding.repaired:
                say(f"    → {plain(finding.remedy)}")
    if not report.ok:
        open_ = sum(not finding.repaired for finding in report.findings)
        complain(
            f"error: check found {count(open_, 'fault')} not repaired" + ("" if repair else "; see check --repair")
        )
        raise typer.Exit(1)
    if not json:
        files, size = sum(f.files for f in report.folders), sum(f.bytes for f in report.folders)
        read = "No files were read." if quick else f"{count(files, 'file')}, {human_size(size)} read."
        say(f"Everything is as it should be. {read}")


async def _show_progress(events: AsyncIterator[Event]) -> None:
    """One line on stderr that is written over."""
    async for event in events:
        if event.kind == "check.progress":
            done, total = int(event.data["bytes"] or 0), int(event.data["total_bytes"] or 0)
            sys.stderr.write(f"\r\x1b[K{human_size(done)} of {human_size(total)}, {percent(min(done, total), total)}")
            sys.stderr.flush()


def doctor(context: typer.Context, json: AsJson = False) -> None:
    """Test what this device needs (disk, watches, network, discovery, clock) and say what to do about what fails."""
    import trio

    from p2psync.cli.surroundings import examine
    from p2psync.node.control_client import connect

    home = settings(context).home

    async def examine_all() -> list[Diagnosis]:
        node: Operations | None = await connect(home.path)
        local = await trio.to_thread.run_sync(examine, home, node is not None)
        return local + (await node.doctor() if node is not None else [])

    found = trio.run(examine_all)
    if json:
        print_json(found)
    else:
        for line in found:
            say(plain(f"{'ok  ' if line.ok else 'FAIL'}  {line.check}: {line.text}"))
            if not line.ok and line.remedy:
                say(f"          → {plain(line.remedy)}")
    if failed := [line.check for line in found if not line.ok]:
        complain(f"error: {len(failed)} of {len(found)} checks failed: {', '.join(failed)}")
        raise typer.Exit(1)


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case list():
            return ", ".join(value)
        case _:
            return str(value)
