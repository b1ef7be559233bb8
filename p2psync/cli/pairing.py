"""`pair`: two devices learn to trust each other by a short code that one shows and the other types."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from p2psync.cli.output import console, duration, plain, print_json, say, short
from p2psync.cli.session import AsJson, perform

if TYPE_CHECKING:
    from p2psync.node.operations import Operations
    from p2psync.node.views import PairingOffer, Peer


def pair(
    context: typer.Context,
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="The code the other device shows.")] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="Where the other device is, if it is not found by itself."),
    ] = None,
    account: Annotated[
        bool,
        typer.Option("--account", help="On both sides: the one that types the code joins the other's account."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Pair two devices: run this on one without a code, type the code it shows on the other.

    Devices of one account trust each other with everything in it: say --account only for a device of your own.

    Both nodes must run. A code allows one attempt: a wrong guess ends it, so that nobody can try codes.
    With --json the side that shows the code prints {"code", "expires_s"} at once, then waits.
    """
    if code is None and address is not None:
        raise typer.BadParameter("--address goes with the side that types the code")

    async def work(node: Operations) -> Peer:
        return await _show(node, json, account) if code is None else await node.pair_join(code, address, account)

    peer = perform(context, work, needs_node=True)
    if json and code is not None:
        print_json(peer)
    elif not json:
        say(f"Paired with {plain(peer.name)} ({short(peer.id)}).")
        if peer.account:
            say("Both are in one account now:  p2psync account devices")
        say(f"Next, share a folder with it:  p2psync folder share FOLDER --with {short(peer.id)}")


async def _show(node: Operations, json: bool, account: bool) -> Peer:
    import trio

    offer = await node.pair_open(account)
    life = duration(offer.expires_s)
    if json:
        print_json(offer)
    else:
        _print_code(offer.code)
        say(f"On the other device, within {life}:  p2psync pair {offer.code}{' --account' if account else ''}")
    async with trio.open_nursery() as nursery:
        if sys.stderr.isatty():
            nursery.start_soon(_count_down, offer)
        peer = await node.pair_wait(offer.code)
        nursery.cancel_scope.cancel()
    return peer


def _print_code(code: str) -> None:
    if not sys.stdout.isatty():
        say(f"code: {code}")
        return
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.text import Text

    console().print(Padding(Panel.fit(Text(code, style="bold"), title="Pairing code", padding=(1, 6)), (1, 2)))


async def _count_down(offer: PairingOffer) -> None:
    import trio

    end = trio.current_time() + offer.expires_s
    with console(stderr=True).status("") as line:
        while (left := end - trio.current_time()) > 0:
            line.update(f"waiting for the other device; {duration(left)} left (Ctrl-C withdraws the code)")
            await trio.sleep(1)
        line.update("the code has expired")
        await trio.sleep_forever()
