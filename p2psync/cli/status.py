"""`status` and `wait`: what is going on, what is not identical yet, and what to do about each problem."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from p2psync.cli.output import ago, complain, console, count, duration, percent, plain, print_json, say, short, size
from p2psync.cli.session import AsJson, perform

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from p2psync.node.operations import Operations
    from p2psync.node.views import AccountView, DeviceView, FolderView, MailboxView, Problem, Status, WaitResult

REFRESH_S = 0.5
MAX_PROBLEMS = 10
"""Problems of one folder shown to a person; --json has them all."""

_STYLES = {"idle": "green", "scanning": "cyan", "syncing": "cyan", "paused": "yellow", "error": "bold red"}


def status(
    context: typer.Context,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, live, until Ctrl-C.")] = False,
) -> None:
    """Show folders, devices, progress, and every problem with what to do about it."""
    if watch:
        if json or not sys.stdout.isatty():
            raise typer.BadParameter("--watch needs a terminal; programs read `status --json`")
        perform(context, follow, needs_node=True)
        return
    now = perform(context, lambda node: node.status())
    if json:
        print_json(now)
    else:
        console().print(render(now))


def wait(
    context: typer.Context,
    timeout: Annotated[float, typer.Option("--timeout", min=0, metavar="S", help="Seconds to wait at most.")] = 300,
    json: AsJson = False,
) -> None:
    """Rescan, then wait until every folder is identical on every connected member.

    Identical means proved: both sides hold the same Merkle root. Exit code 1 on timeout, saying what is missing.
    """
    if not math.isfinite(timeout):
        raise typer.BadParameter("--timeout is a number of seconds")

    async def work(node: Operations) -> WaitResult:
        import trio

        async with trio.open_nursery() as nursery:
            if sys.stderr.isatty():
                nursery.start_soon(follow, node, True)
            result = await node.wait(timeout)
            nursery.cancel_scope.cancel()
        return result

    result = perform(context, work, needs_node=True)
    if json:
        print_json(result)
    if not result.identical:
        complain(f"error: not identical after {duration(timeout)}: " + ("; ".join(result.missing) or "no reason given"))
        raise typer.Exit(1)
    if not json:
        say("Identical.")


async def follow(node: Operations, stderr: bool = False) -> None:
    """Show the status live until cancelled."""
    import trio
    from rich.live import Live

    with Live(console=console(stderr), auto_refresh=False, transient=stderr) as live:
        while True:
            live.update(render(await node.status()), refresh=True)
            await trio.sleep(REFRESH_S)


def render(now: Status) -> Group:
    """All of a status for a terminal."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble((plain(now.device.name), "bold"), f"  {now.device.short}")
    if now.node is None:
        head.append("  no node is running; start it with: p2psync run", style="yellow")
    else:
        listening = ", ".join(now.node.listen) or "nothing"
        head.append(
            f"  up {duration(now.node.uptime_s)}, listening on {listening}, discovery: {plain(now.node.discovery)}"
            f"  ↓ {size(now.node.rates.incoming)}/s ↑ {size(now.node.rates.outgoing)}/s"
        )
    folders = _folders(now) if now.folders else Text("No folders yet. Share one with: p2psync folder add PATH")
    devices = _devices(now.devices) if now.devices else Text("No devices yet. Add one with: p2psync pair")
    problems = [line for folder in now.folders for line in _problems(folder)]
    account = [] if now.account is None else [*_account(now.account), Text()]
    return Group(head, Text(), *account, folders, *problems, Text(), devices)


def _account(account: AccountView) -> list[Text]:
    from rich.text import Text

    parts: list[str] = [account.state]
    if (usage := account.usage) is not None:
        promised = f" and {size(usage.reserved)} promised" if usage.reserved else ""
        used = f"{size(usage.used)}{promised} of {size(usage.limit)} used, {plain(usage.plan) or 'no'} plan"
        asked = "" if account.usage_age_s is None else f", {_age(account.usage_age_s)}"
        parts.append(used + asked)
    lines = [Text(f"Account {plain(account.email)} at {plain(account.relay)}: {'; '.join(parts)}")]
    return lines + [line for problem in account.problems for line in _shown("account", problem)]


def _age(seconds: float) -> str:
    return f"{duration(seconds)} ago"


def _folders(now: Status) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    names = {device.id: device.name or short(device.id) for device in now.devices}
    table = Table("FOLDER", "STATE", "FILES", "SIZE", "NEEDED", "", "", box=None, pad_edge=False, header_style="bold")
    for folder in now.folders:
        bar: ProgressBar | Text = Text()
        if folder.progress is not None and folder.progress.total_bytes:
            bar = ProgressBar(folder.progress.total_bytes, folder.progress.done_bytes, width=20)
        table.add_row(
            Text(plain(folder.label)),
            Text(folder.state, style=_STYLES.get(folder.state, "")),
            f"{folder.files:,}",
            size(folder.bytes),
            _needed(folder),
            bar,
            Text(_words(folder, names)),
        )
    return table


def _needed(folder: FolderView) -> str:
    parts = []
    if folder.need_files:
        parts.append(f"{count(folder.need_files, 'file')}, {size(folder.need_bytes)}")
    if folder.need_deletes:
        parts.append(count(folder.need_deletes, "delete"))
    return ", ".join(parts) or "-"


def _words(folder: FolderView, names: dict[str, str]) -> str:
    parts = []
    if (progress := folder.progress) is not None:
        eta = "" if progress.eta_s is None else f", {duration(progress.eta_s)} left"
        parts.append(f"{percent(progress.done_bytes, progress.total_bytes)} at {size(progress.rate)}/s{eta}")
    if folder.equal_with:
        others = ", ".join(plain(names.get(id_, short(id_))) for id_ in folder.equal_with)
        parts.append(f"equal to {others} at root {folder.root}")
    if folder.conflicts:
        parts.append(f"{count(folder.conflicts, 'conflict copy', 'conflict copies')} (p2psync conflicts)")
    if folder.mailbox is not None and folder.mailbox.policy != "never":
        parts.append(_mailbox(folder.mailbox))
    if folder.watch != "live":
        parts.append(f"watcher {folder.watch}: changes are found by scans")
    if folder.role in ("viewer", "vault"):
        parts.append(f"you are {folder.role}")
    return "; ".join(parts)


def _mailbox(mailbox: MailboxView) -> str:
    parts = [f"mailbox {mailbox.policy}"]
    if mailbox.activity not in ("", "idle"):
        parts.append(mailbox.activity)
    if mailbox.waiting:
        parts.append(f"{count(mailbox.waiting, 'path')} ({size(mailbox.waiting_bytes)}) to be left there")
    if mailbox.read_age_s is not None:
        parts.append(f"read {_age(mailbox.read_age_s)}")
    elif mailbox.activity:
        parts.append("not read since the start")
    return ", ".join(parts)


def _problems(folder: FolderView) -> list[Text]:
    from rich.text import Text

    lines = []
    for problem in folder.problems[:MAX_PROBLEMS]:
        lines += _shown(folder.label, problem)
    if (more := len(folder.problems) - MAX_PROBLEMS) > 0:
        lines.append(Text(f"! {plain(folder.label)}: and {more} more; see `p2psync status --json`", style="red"))
    return lines


def _shown(whose: str, problem: Problem) -> list[Text]:
    from rich.text import Text

    return [
        Text(f"! {plain(whose)}: {_what(problem)}", style="red"),
        Text(f"    → {plain(problem.remedy)}"),
    ]


def _what(problem: Problem) -> str:
    return plain(problem.text if problem.path is None else f"{problem.path}: {problem.text}")


def _devices(devices: list[DeviceView]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "DEVICE", "ID", "CONNECTION", "RECEIVING", "SENDING", "", box=None, pad_edge=False, header_style="bold"
    )
    for device in devices:
        connection = Text(f"offline, seen {ago(device.last_seen)}", style="yellow")
        if device.connected:
            connection = Text(f"{plain(device.address or '?')} ({device.via or 'direct'})", style="green")
        skew = device.skew_s
        note = (
            f"its clock is {duration(abs(skew))} {'ahead' if skew > 0 else 'behind'}" if skew and abs(skew) > 60 else ""
        )
        table.add_row(
            Text(plain(device.name or "-")),
            short(device.id),
            connection,
            f"{size(device.rates.incoming)}/s",
            f"{size(device.rates.outgoing)}/s",
            note if device.paired else "waits for approval: p2psync device add",
        )
    return table
