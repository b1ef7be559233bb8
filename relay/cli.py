"""The relay's command line: serve, show the configuration, and look after what is stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer

import p2psync
from p2psync.errors import P2PSyncError, cause
from relay.admin import commands
from relay.config import Config, load_config, render_config
from relay.options import DEFAULT_DATA, ConfigOption, DataOption

app = typer.Typer(
    name="p2psync-relay",
    help="Helps p2psync devices that cannot reach each other directly, and cannot read what it carries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(commands.app, name="admin")


def _version(*, value: bool) -> None:
    if value:
        sys.stdout.write(f"p2psync-relay {p2psync.__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    *, _version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False
) -> None:
    pass


@app.command()
def serve(
    data: DataOption = DEFAULT_DATA,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Instead of the configured server.listen."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run the relay until SIGTERM or SIGINT; SIGHUP loads the certificate anew."""
    from relay.serve import serve as run

    run(_configuration(config, listen), data)


@app.command("config")
def show_config(config: ConfigOption = None) -> None:
    """Show the configuration in force, every setting with its meaning; secrets are masked."""
    sys.stdout.write(render_config(_configuration(config)))


def _configuration(path: Path | None, listen: str | None = None) -> Config:
    config = load_config(path) if path else Config()
    if listen is None:
        return config
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, listen=listen))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0, 2 for wrong usage, 1 for everything else that failed."""
    try:
        app(args=arguments)
    except Exception as error:
        reason = cause(error)
        match reason:
            case P2PSyncError():
                sys.stderr.write(f"error: {reason}\n")
                sys.exit(reason.exit_code)
            case OSError():
                name = f"{reason.filename}: " if reason.filename else ""
                sys.exit(f"error: {name}{reason.strerror or reason}")
        raise
    sys.exit(0)


if __name__ == "__main__":
    main()
