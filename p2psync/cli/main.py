"""The command line: global options, the list of commands, and one way for an error to end a command."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import p2psync
from p2psync.cli import account, devices, folders, health, pairing, running, status, versions
from p2psync.cli.output import complain, say
from p2psync.cli.session import Settings
from p2psync.errors import P2PSyncError, cause

app = typer.Typer(
    name="p2psync",
    help="Keep folders identical on your devices, directly and end-to-end encrypted.",
    epilog="First steps, on both devices:\n\n  p2psync init --name desk;  p2psync run\n\n"
    "then in another terminal, on one and on the other:\n\n  p2psync pair;  p2psync pair CODE\n\n"
    "then share:\n\n  p2psync folder add ~/Photos;  p2psync folder share Photos --with laptop\n\n"
    "  p2psync folder accept Photos ~/Photos        (on the laptop)",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"p2psync {p2psync.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", metavar="DIR", help="Where this device's keys, settings and index are. Else $P2PSYNC_HOME."
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log everything; show where errors come from.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    context.obj = Settings(home, verbose)


app.command(epilog="Example: p2psync init --name desk")(running.init)
app.command(epilog="Example: p2psync run --listen :22067 --listen [::1]:4000")(running.run)
app.add_typer(devices.app, name="device")
app.command(epilog="desk$   p2psync pair\n\nlaptop$ p2psync pair 7-crossover-clockwork")(pairing.pair)
app.add_typer(folders.app, name="folder")
app.add_typer(account.app, name="account")
app.command(epilog="Example: p2psync status --json | jq '.folders[].state'")(status.status)
app.command(epilog="Example: p2psync wait --timeout 60 && echo identical")(status.wait)
app.command(epilog="Example: p2psync log ~/Photos/cat.jpg")(versions.log)
app.command(epilog="Example: p2psync restore ~/Photos/cat.jpg --at 3d --to /tmp/cat.jpg")(versions.restore)
app.command()(versions.conflicts)
app.add_typer(health.config_app, name="config")
app.command()(health.check)
app.command()(health.doctor)
app.command()(running.demo)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failed with one line on stderr, 2 wrong usage, 130 interrupted by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    try:
        app(words, prog_name="p2psync")
    except Exception as error:  # noqa: BLE001 -- the border of the program: a person gets a sentence, not a traceback
        sys.exit(_fail(error, "--verbose" in words or "-v" in words))
    except BaseExceptionGroup as group:
        # Only Ctrl-C and its like make a group that is no ExceptionGroup.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        sys.exit(130)
    sys.exit(0)


def _fail(error: Exception, verbose: bool) -> int:
    error = cause(error)
    if verbose:
        traceback.print_exception(error)
    match error:
        case P2PSyncError():
            complain(f"error: {' '.join(str(error).split())}")
            return error.exit_code
        case BrokenPipeError():
            # Whoever read our output has left; Python would complain again when it flushes.
            with contextlib.suppress(OSError):
                sys.stdout.close()
            return 1
        case OSError():
            what = "" if error.filename is None else f"{_name(error.filename)}: "
            complain(f"error: {what}{error.strerror or error}")
            return 1
        case _:
            hint = "" if verbose else "; `p2psync --verbose …` shows where"
            complain(f"error: internal error, please report it: {type(error).__name__}: {error}{hint}")
            return 1


def _name(filename: str | bytes | int) -> str:
    return filename.decode(errors="backslashreplace") if isinstance(filename, bytes) else str(filename)
