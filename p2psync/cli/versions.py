"""`log`, `restore`, `conflicts`: earlier versions of a file, and the versions that lost a conflict."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated

import typer

from p2psync.cli.output import moment, plain, print_json, print_table, say, short, size
from p2psync.cli.session import AsJson, absolute, perform

PathOnDisk = Annotated[str, typer.Argument(metavar="PATH", help="A file inside a shared folder; it may be deleted.")]

_AGE = re.compile(r"(\d{1,6})\s*(s|min|h|d|w)")
_UNIT_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def log(context: typer.Context, path: PathOnDisk, json: AsJson = False) -> None:
    """List the versions of a file that can still be had, newest first."""
    versions = perform(context, lambda node: node.log(absolute(path)))
    if json:
        print_json(versions)
        return
    rows = (
        (
            v.version,
            "deleted" if v.deleted else v.kind,
            "-" if v.deleted else size(v.size),
            moment(v.modified),
            v.author or short(v.author_id),
            moment(v.replaced_at),
        )
        for v in versions
    )
    print_table(("VERSION", "KIND", "SIZE", "MODIFIED", "BY", "REPLACED"), rows, "No version of this file is kept.")


def restore(  # noqa: PLR0917 -- a command's options
    context: typer.Context,
    path: PathOnDisk,
    version: Annotated[str | None, typer.Option("--version", metavar="V", help="A version from `p2psync log`.")] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="As it was then: 2026-01-31 08:15 (local time), or an age: 2h, 3d."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="PATH", help="Put it here, where nothing may exist, instead of in place."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Put back an earlier version of a file; the last one that was replaced when none is named.

    What is there now goes to history first, so that a restore can be undone by another.
    """
    if version is not None and at is not None:
        raise typer.BadParameter("give --version or --at, not both")
    then = None if at is None else parse_time(at, time.time())
    target = None if to is None else absolute(to)
    restored = perform(context, lambda node: node.restore(absolute(path), version, then, target))
    if json:
        print_json(restored)
    else:
        say(f"Restored version {restored.version} ({size(restored.size)}) to {plain(restored.path)}.")


def conflicts(context: typer.Context, json: AsJson = False) -> None:
    """List conflict copies: versions that were saved at the same time as another on a different device.

    Look at both files, keep what you want under the original name, and delete the copy.
    """
    found = perform(context, lambda node: node.conflicts())
    if json:
        print_json(found)
        return
    rows = ((c.path, c.original, c.author or short(c.author_id), moment(c.modified), size(c.size)) for c in found)
    print_table(("COPY", "ORIGINAL", "BY", "MODIFIED", "SIZE"), rows, "No conflicts.")


def parse_time(text: str, now: float) -> float:
    """Seconds since the Unix epoch from an ISO date and time (local unless it says otherwise) or an age before `now`.

    Raises:
        typer.BadParameter: it is neither.
    """
    if age := _AGE.fullmatch(text.strip()):
        return now - int(age[1]) * _UNIT_S[age[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no time; write 2026-01-31 08:15, or an age such as 90min, 2h, 3d"
        ) from None
