"""`folder`: share directories, invite devices, accept what others share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from p2psync.cli import completion
from p2psync.cli.output import plain, print_json, print_table, say, short
from p2psync.cli.session import AsJson, perform, resolved

app = typer.Typer(help="Share directories, invite devices, accept what others share.", no_args_is_help=True)

Folder = Annotated[
    str,
    typer.Argument(metavar="FOLDER", help="Label, ID or beginning of an ID.", autocompletion=completion.folders),
]
With = Annotated[
    str,
    typer.Option("--with", metavar="DEVICE", help="Name, ID or beginning of an ID.", autocompletion=completion.devices),
]


class Role(StrEnum):
    """What a member may do; see `p2psync.node.views.Role`."""

    owner = "owner"
    editor = "editor"
    viewer = "viewer"
    vault = "vault"


class Policy(StrEnum):
    """When a folder's mailbox is used; see `p2psync.node.views.MailboxPolicy`."""

    always = "always"
    offline = "offline"
    never = "never"


class Algorithm(StrEnum):
    """How content is hashed."""

    blake3 = "blake3"
    sha256 = "sha256"


@app.command("add", epilog="Example: p2psync folder add ~/Photos --label photos")
def add(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="An existing directory.")],
    label: Annotated[
        str | None, typer.Option("--label", help="Short name; the directory's name when left out.")
    ] = None,
    algorithm: Annotated[
        Algorithm,
        typer.Option("--hash", help="Content hash: blake3 is 3 times as fast; sha256 where rules ask for it."),
    ] = Algorithm.blake3,
    json: AsJson = False,
) -> None:
    """Make a directory a shared folder and print its ID."""
    folder = perform(context, lambda node: node.folder_add(resolved(path), label, algorithm.value))
    if json:
        print_json(folder)
    else:
        say(folder.id)


@app.command(
    "share",
    epilog="desk$   p2psync folder share photos --with laptop --role viewer\n\n"
    "laptop$ p2psync folder offers\n\nlaptop$ p2psync folder accept photos ~/Photos",
)
def share(
    context: typer.Context,
    folder: Folder,
    with_: With,
    role: Annotated[
        Role,
        typer.Option(
            "--role", help="owner: everything; editor: changes files; viewer: reads only; vault: stores unread."
        ),
    ] = Role.editor,
    json: AsJson = False,
) -> None:
    """Invite a device to a folder, or change its role."""
    member = perform(context, lambda node: node.folder_share(folder, with_, role.value))
    if json:
        print_json(member)
        return
    name = plain(member.name or short(member.id))
    say(f"{name} is now {member.role} of {folder}.")
    if member.pending:
        say(f"Next, on {name}:  p2psync folder accept {folder} PATH     (once both nodes are connected)")


@app.command("unshare")
def unshare(context: typer.Context, folder: Folder, with_: With, json: AsJson = False) -> None:
    """Remove a device from a folder: it gets nothing more and its later changes are refused.

    What it has already received stays on its disk.
    """
    perform(context, lambda node: node.folder_unshare(folder, with_))
    if json:
        print_json({"folder": folder, "removed": with_})
    else:
        say(f"Removed {with_} from {folder}. What it already has stays on its disk.")


@app.command("members")
def members(context: typer.Context, folder: Folder, json: AsJson = False) -> None:
    """List who takes part in a folder."""
    found = perform(context, lambda node: node.folder_members(folder))
    if json:
        print_json(found)
        return
    rows = (
        (m.name or "-", m.role, m.id, "this device" if m.here else "not accepted yet" if m.pending else "")
        for m in found
    )
    print_table(("NAME", "ROLE", "ID", ""), rows, "No members.")


@app.command("offers")
def offers(context: typer.Context, json: AsJson = False) -> None:
    """List folders that wait to be accepted: shared by other devices, or found at the account's relay."""
    found = perform(context, lambda node: node.folder_offers())
    if json:
        print_json(found)
        return
    rows = ((o.label, o.id, o.device_name or short(o.device_id), o.role) for o in found)
    print_table(("LABEL", "ID", "FROM", "ROLE"), rows, "Nothing is offered. The other side runs: p2psync folder share")


@app.command("accept", epilog="Example: p2psync folder accept photos ~/Photos")
def accept(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Label or ID from `p2psync folder offers`.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where to keep it; made when it does not exist.")],
    json: AsJson = False,
) -> None:
    """Take part in a folder that is offered."""
    accepted = perform(context, lambda node: node.folder_accept(folder, resolved(path)))
    if json:
        print_json(accepted)
    else:
        say(f"Accepted {plain(accepted.label)} at {plain(accepted.path)}. Watch it arrive: p2psync status --watch")


@app.command("list")
def list_(context: typer.Context, json: AsJson = False) -> None:
    """List the folders of this device."""
    found = perform(context, lambda node: node.folder_list())
    if json:
        print_json(found)
        return
    rows = ((f.label, f.id, f.role, f.state, f.path) for f in found)
    print_table(
        ("LABEL", "ID", "ROLE", "STATE", "PATH"), rows, "No folders yet. Share one with: p2psync folder add PATH"
    )


@app.command("remove")
def remove(context: typer.Context, folder: Folder, json: AsJson = False) -> None:
    """Stop synchronising a folder on this device. Its files stay where they are."""
    removed = perform(context, lambda node: node.folder_remove(folder))
    if json:
        print_json(removed)
    else:
        say(f"Removed {plain(removed.label)}; its files stay in {plain(removed.path)}.")


@app.command("mailbox", epilog="Example: p2psync folder mailbox photos offline")
def mailbox(
    context: typer.Context,
    folder: Folder,
    policy: Annotated[
        Policy | None,
        typer.Argument(
            metavar="[always|offline|never]",
            help="Leave changes at the account's relay at once, only while somebody is away, or not at all.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Show or set when a folder's changes wait, sealed, at the account's relay for devices that are away."""
    found = perform(context, lambda node: node.folder_mailbox(folder, policy.value if policy is not None else None))
    if json:
        print_json(found)
        return
    say(f"{plain(found.label)}: {found.policy}.")
    if found.relay:
        waiting = f", {found.waiting} waiting" if found.waiting else ""
        say(f"At {plain(found.relay)}: {found.activity}{waiting}.")
    if found.keyless:
        names = ", ".join(map(plain, found.keyless))
        say(f"Nothing there is readable yet for {names}. A device that is new here has to connect once, for its key.")


@app.command("pause")
def pause(context: typer.Context, folder: Folder, json: AsJson = False) -> None:
    """Stop scanning and exchanging a folder until `folder resume`; survives a restart."""
    perform(context, lambda node: node.folder_pause(folder))
    _done(json, folder, "paused")


@app.command("resume")
def resume(
    context: typer.Context,
    folder: Folder,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm", help="Yes, let through the mass changes that are held; replaced files go to history."
        ),
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt", help="Yes, this moved or restored directory is the folder; its files are compared anew."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Go on with a paused or held folder. `p2psync status` says why one is held."""
    perform(context, lambda node: node.folder_resume(folder, confirm, adopt))
    _done(json, folder, "resumed")


@app.command("scan")
def scan(context: typer.Context, folder: Folder, json: AsJson = False) -> None:
    """Look for changes now, instead of trusting the watcher; returns when done."""
    perform(context, lambda node: node.folder_scan(folder), needs_node=True)
    _done(json, folder, "scanned")


def _done(json: bool, folder: str, what: str) -> None:
    if json:
        print_json({"folder": folder, what: True})
    else:
        say(f"{folder}: {what}.")
