"""`init` and `run`: make this device, and be its node."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from p2psync.cli.output import plain, print_json, say
from p2psync.cli.session import AsJson, settings

HIDDEN = "P2PSYNC_PASSPHRASE"
COLLECT = (50_000, 10, 20)
"""A page of records is thousands of objects: at Python's 700 the collector ran for 8 % of the CPU of a first sync."""


def init(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", help="What others see; this machine's name when left out.")
    ] = None,
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help=f"Ask for a passphrase that seals the keys; every start then needs it (${HIDDEN})."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Make this device: create its keys and settings, and print its device ID."""
    from p2psync.node import init as create

    secret = None
    if passphrase:
        secret = os.environ.get(HIDDEN) or typer.prompt(
            "Passphrase", hide_input=True, confirmation_prompt=True, err=True
        )
    identity = create(settings(context).home.path, name, secret)
    if json:
        print_json(identity)
    else:
        say(identity.id)


def demo(
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Work in this directory and leave it for a look.")
    ] = None,
) -> None:
    """Show it all on this machine: two devices, thousands of files, edits, a conflict, a crash; checked by hashes."""
    from p2psync.cli.demo import main

    raise typer.Exit(main(keep))


def run(
    context: typer.Context,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Where to accept connections; may be repeated. Port 0: any."
        ),
    ] = None,
    no_discovery: Annotated[
        bool, typer.Option("--no-discovery", help="Neither announce nor look for devices on the local network.")
    ] = False,
) -> None:
    """Run the node in the foreground until SIGTERM or Ctrl-C.

    Prints one line starting "ready" on stdout once it accepts connections; everything else goes to stderr.
    """
    import trio

    from p2psync.errors import StateError
    from p2psync.node.config import load_config
    from p2psync.node.logs import configure_logging, get_logger
    from p2psync.system import calm_collector

    options = settings(context)
    home = options.home
    if not home.initialised:
        raise StateError(f"there is no device in {home.path} yet; run: p2psync init")
    log = load_config(home.config_file).log
    configure_logging(log.level, log.format, verbose=options.verbose)

    def on_ready(short_id: str, addresses: list[str]) -> None:
        gc.freeze()  # what was made since stays, too; a collection now would hold up who connects to us
        say(f"ready {short_id} listening on {plain(' '.join(addresses))}")

    async def serve() -> None:
        from p2psync.node import run as run_node

        calm_collector(*COLLECT)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:

                async def stop_on_signal() -> None:
                    await anext(signals)
                    get_logger(__name__).info("stopping", hint="the same signal once more ends it at once")
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(stop_on_signal)
                await run_node(
                    home.path, listen=listen or None, discovery=False if no_discovery else None, on_ready=on_ready
                )
                nursery.cancel_scope.cancel()

    trio.run(serve)
