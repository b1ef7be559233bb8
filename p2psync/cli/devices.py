"""`device`: this device's ID, and the devices it trusts."""

from __future__ import annotations

from typing import Annotated

import typer

from p2psync.cli import completion
from p2psync.cli.output import ago, print_json, print_table, say, short
from p2psync.cli.session import AsJson, perform

app = typer.Typer(help="This device's ID, and the devices it trusts.", no_args_is_help=True)

Device = Annotated[
    str,
    typer.Argument(metavar="DEVICE", help="Name, ID or beginning of an ID.", autocompletion=completion.devices),
]


@app.command("id", epilog="Example: ssh desk p2psync device id")
def id_(context: typer.Context, json: AsJson = False) -> None:
    """Print this device's ID, which other devices need to add it."""
    identity = perform(context, lambda node: node.identity())
    if json:
        print_json(identity)
    else:
        say(identity.id)


@app.command("list")
def list_(context: typer.Context, json: AsJson = False) -> None:
    """List the devices this one trusts."""
    devices = perform(context, lambda node: node.device_list())
    if json:
        print_json(devices)
        return
    rows = (
        (d.name or "-", d.id, d.address or "-" if d.connected else f"offline, seen {ago(d.last_seen)}") for d in devices
    )
    print_table(("NAME", "ID", "CONNECTION"), rows, "No devices yet. Add one with: p2psync pair")


@app.command(
    "add",
    epilog="Each side adds the other:\n\n  desk$   p2psync device add LAPTOP-ID --name laptop\n\n"
    "  laptop$ p2psync device add DESK-ID --name desk --address desk.lan:22067\n\n"
    "`p2psync pair` does both at once with a short code.",
)
def add(
    context: typer.Context,
    device: Annotated[
        str, typer.Argument(metavar="ID", help="The other device's full ID (`p2psync device id` there).")
    ],
    name: Annotated[str | None, typer.Option("--name", help="What to call it here.")] = None,
    address: Annotated[
        list[str] | None, typer.Option("--address", metavar="HOST:PORT", help="Where to find it; may be repeated.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Trust another device, known by its full ID."""
    added = perform(context, lambda node: node.device_add(device, name, address or []))
    if json:
        print_json(added)
    else:
        say(f"Added {_called(added.name, added.id)}. Add this device over there too, unless that is done already.")


@app.command("remove")
def remove(context: typer.Context, device: Device, json: AsJson = False) -> None:
    """Stop trusting a device and end its connection. Folders it is a member of need `folder unshare` as well."""
    perform(context, lambda node: node.device_remove(device))
    if json:
        print_json({"removed": device})
    else:
        say(f"Removed {device}.")


def _called(name: str, device_id: str) -> str:
    return f"{name} ({short(device_id)})" if name else short(device_id)
