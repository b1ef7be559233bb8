"""`account`: this device's account at a relay: signing up, coming in, devices, plans, and leaving."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2psync.cli.output import ago, complain, count, plain, print_json, print_table, say, size
from p2psync.cli.session import AsJson, perform

if TYPE_CHECKING:
    from p2psync.node.views import AccountUsage, AccountView

app = typer.Typer(
    help="This device's account at a relay, for devices that are not online together.",
    no_args_is_help=True,
    epilog="First:\n\n  p2psync account signup --relay URL --email me@example.org;  p2psync account verify CODE\n\n"
    "then on a second device, next to the first or with the recovery key:\n\n"
    "  desk$   p2psync pair --account\n\n  laptop$ p2psync pair CODE --account\n\n"
    "  laptop$ p2psync account login --relay URL --email me@example.org --recovery-file FILE",
)

MAX_PASSWORD_FILE = 4096

Relay = Annotated[
    list[str] | None,
    typer.Option("--relay", metavar="URL", help="As the relay prints it; repeat it for more addresses of one relay."),
]
Email = Annotated[str | None, typer.Option("--email", metavar="ADDRESS", help="Whose account it is.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option("--password-file", metavar="FILE", help="Holds the password in one line. Else it is asked for."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


# ── beginning ───────────────────────────────────────────────────────────────────────────────────────────────────────
@app.command(epilog="Example: p2psync account signup --relay https://relay.example/ --email me@example.org")
def signup(  # noqa: PLR0917
    context: typer.Context,
    relay: Relay = None,
    email: Email = None,
    password_file: PasswordFile = None,
    recovery_file: Annotated[
        Path | None,
        typer.Option("--recovery-file", metavar="FILE", help="Write the recovery key there (a new file, 0600)."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Begin an account with this device. The relay mails a code for `account verify`.

    Prints the recovery key, once: it is the way back when every device is lost, and kept nowhere.
    """
    _free(recovery_file)
    address, url = _whose(context, email, relay)
    key = _login_key(url, address, password_file, confirm=True)
    made = perform(context, lambda node: node.account_sign_up(relay or [], address, key))
    if recovery_file is not None:
        _write_recovery(recovery_file, made.recovery_key)
    if json:
        shown = {"account_id": made.account_id, "email": made.email, "relay": made.relay}
        print_json(shown if recovery_file is not None else {**shown, "recovery_key": made.recovery_key})
        return
    say(f"A code is on its way to {plain(made.email)}.  Next:  p2psync account verify CODE")
    _show_recovery(made.recovery_key, recovery_file)


@app.command(epilog="Example: p2psync account verify ABCD-EFGH")
def verify(
    context: typer.Context,
    code: Annotated[str, typer.Argument(metavar="CODE", help="From the relay's mail.")],
    json: AsJson = False,
) -> None:
    """Type the mailed code: the account exists from then on."""
    view = perform(context, lambda node: node.account_verify(code))
    if json:
        print_json(view)
        return
    say(f"The account of {plain(view.email)} is in use, with this device.")
    say("Another device:  p2psync pair --account  here, and  p2psync pair CODE --account  there")


@app.command(epilog="Example: p2psync account login --email me@example.org --relay URL --recovery-file key.txt")
def login(  # noqa: PLR0917
    context: typer.Context,
    relay: Relay = None,
    email: Email = None,
    password_file: PasswordFile = None,
    recovery_file: Annotated[
        Path | None,
        typer.Option("--recovery-file", metavar="FILE", help="Holds the recovery key: this device joins the account."),
    ] = None,
    recovery: Annotated[bool, typer.Option("--recovery", help="The same; the recovery key is asked for.")] = False,
    json: AsJson = False,
) -> None:
    """Log in with the password: again on a device of the account, or with the recovery key on a new one."""
    address, url = _whose(context, email, relay)
    secret = ""
    if recovery_file is not None:
        secret = _one_line(recovery_file)
    elif recovery:
        secret = _ask("Recovery key")
    key = _login_key(url, address, password_file)
    view = perform(context, lambda node: node.account_log_in(address, key, relay or [], secret))
    if json:
        print_json(view)
    else:
        say(f"Logged in as {plain(view.email)}; the account has {count(view.devices, 'device')}.")
        if secret:
            say("Its folders are offered to this device in a moment: p2psync folder offers")
        _print_problems(view)


# ── how it stands ───────────────────────────────────────────────────────────────────────────────────────────────────
@app.command()
def status(context: typer.Context, json: AsJson = False) -> None:
    """Show the account, what it uses, and every problem with what to do about it."""
    view = perform(context, lambda node: node.account_status())
    if json:
        print_json(view)
        return
    say(f"{plain(view.email)}  account {view.account_id}  {view.state}, {count(view.devices, 'device')}")
    for url in view.relays:
        say(f"  at {plain(url)}")
    if view.usage is not None:
        _print_usage(view.usage)
    _print_problems(view)


@app.command()
def devices(context: typer.Context, json: AsJson = False) -> None:
    """List the devices of the account, as its signed chain says."""
    found = perform(context, lambda node: node.account_devices())
    if json:
        print_json(found)
        return
    rows = (
        (
            d.name + (" (this device)" if d.here else ""),
            d.id,
            "-" if d.kind == "recovery" else "logged out" if d.logged_out else f"seen {ago(d.seen)}",
        )
        for d in found
    )
    print_table(("NAME", "ID", "AT THE RELAY"), rows, "No devices.")


@app.command("remove-device", epilog="Example: p2psync account remove-device laptop")
def remove_device(
    context: typer.Context,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Name, ID or beginning of an ID.")],
    json: AsJson = False,
) -> None:
    """Put a lost or stolen device out of the account. It keeps the files it has."""
    perform(context, lambda node: node.account_remove_device(device))
    if json:
        print_json({"removed": device})
    else:
        say(f"{plain(device)} is out of the account.")
        say(f"Folders it is a member of:  p2psync folder unshare FOLDER --with {plain(device)}")


@app.command()
def recovery(
    context: typer.Context,
    recovery_file: Annotated[
        Path | None,
        typer.Option("--recovery-file", metavar="FILE", help="Write the new key there (a new file, 0600)."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Make a new recovery key; those before are void from then on."""
    _free(recovery_file)
    made = perform(context, lambda node: node.account_recovery())
    if recovery_file is not None:
        _write_recovery(recovery_file, made.recovery_key)
    if json:
        print_json({"file": str(recovery_file)} if recovery_file is not None else made)
        return
    _show_recovery(made.recovery_key, recovery_file)


# ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@app.command()
def plans(context: typer.Context, relay: Relay = None, json: AsJson = False) -> None:
    """List what the relay offers; without --relay that of the account."""
    found = perform(context, lambda node: node.account_plans(relay or []))
    if json:
        print_json(found)
        return
    rows = (
        (p.name or "(none)", size(p.bytes), _number(p.devices), _number(p.folders), p.price or "free") for p in found
    )
    print_table(("PLAN", "STORAGE", "DEVICES", "FOLDERS", "PRICE"), rows, "No plans.")


@app.command(epilog="Example: p2psync account subscribe home")
def subscribe(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="One of `account plans`.")] = "",
    none: Annotated[bool, typer.Option("--none", help="Back to the free allowance.")] = False,
    json: AsJson = False,
) -> None:
    """Subscribe to a plan."""
    if bool(plan) == none:
        raise typer.BadParameter("give a PLAN, or --none")
    change = perform(context, lambda node: node.account_subscribe(plan))
    if json:
        print_json(change)
    elif change.active:
        say(f"The plan {plain(change.plan)} is in force." if change.plan else "The free allowance is in force.")
    else:
        say(f"The plan {plain(change.plan)} begins with its payment, reference {plain(change.reference)}.")
        if change.checkout:
            say(f"Pay at:  {plain(change.checkout)}")


# ── passwords, and the end ──────────────────────────────────────────────────────────────────────────────────────────
@app.command(epilog="Example: p2psync account reset --email me@example.org;  p2psync account reset --code ABCD-EFGH")
def reset(  # noqa: PLR0917
    context: typer.Context,
    relay: Relay = None,
    email: Email = None,
    code: Annotated[str | None, typer.Option("--code", metavar="CODE", help="From the mail.")] = None,
    password_file: PasswordFile = None,
    json: AsJson = False,
) -> None:
    """Set a new password: first without a code, which is mailed then, afterwards with it on the same device."""
    address, url = _whose(context, email, relay)
    if code is None:
        perform(context, lambda node: node.account_ask_reset(address, relay or []))
        if json:
            print_json({"mailed": address})
        else:
            say(f"If {plain(address)} has an account, a code is on its way.  Next:  p2psync account reset --code CODE")
        return
    key = _login_key(url, address, password_file, confirm=True)
    perform(context, lambda node: node.account_reset(address, code, key, relay or []))
    if json:
        print_json({"reset": address})
    else:
        say("The new password is set.  Next, on a device that is logged out:  p2psync account login")


@app.command(epilog="Example: p2psync account password")
def password(
    context: typer.Context,
    password_file: PasswordFile = None,
    new_password_file: Annotated[
        Path | None,
        typer.Option(
            "--new-password-file", metavar="FILE", help="Holds the new one in one line. Else it is asked for."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Change the password by the old one. Devices that are logged in stay so."""
    address, url = _whose(context, None, None)
    old = _login_key(url, address, password_file, what="Old password")
    new = _login_key(url, address, new_password_file, what="New password", confirm=True)
    perform(context, lambda node: node.account_change_password(old, new))
    if json:
        print_json({"changed": address})
    else:
        say("The new password is set.")


@app.command()
def logout(
    context: typer.Context,
    forget: Annotated[
        bool, typer.Option("--forget", help="Keep nothing of the account here; a new start needs the recovery key.")
    ] = False,
    json: AsJson = False,
) -> None:
    """End this device's session; the next one needs the password."""
    perform(context, lambda node: node.account_log_out(forget))
    if json:
        print_json({"logged_out": True, "forgotten": forget})
    else:
        say("Nothing of the account is kept here." if forget else "Logged out.  Again:  p2psync account login")


@app.command()
def delete(context: typer.Context, password_file: PasswordFile = None, yes: Yes = False, json: AsJson = False) -> None:
    """Delete the account and all it stored at the relay. Folders on the devices stay as they are."""
    address, url = _whose(context, None, None)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("say --yes where nobody can be asked")
        typer.confirm(f"Delete the account of {plain(address)} and all it stored at the relay?", abort=True, err=True)
    key = _login_key(url, address, password_file)
    perform(context, lambda node: node.account_delete(key))
    if json:
        print_json({"deleted": address})
    else:
        say("The account is deleted.")


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _whose(context: typer.Context, email: str | None, relays: list[str] | None) -> tuple[str, str]:
    """The account meant: its e-mail address, and the relay by its first URL, as given or else as this device's is."""
    from p2psync.errors import StateError

    if not email or not relays:
        try:
            known = perform(context, lambda node: node.account_status())
            email, relays = email or known.email, relays or known.relays
        except StateError:
            if not email:
                raise typer.BadParameter("whose account? give --email ADDRESS") from None
            if not relays:
                raise typer.BadParameter("which relay? give --relay URL") from None
    return email, relays[0]


def _login_key(relay: str, email: str, file: Path | None, *, what: str = "Password", confirm: bool = False) -> bytes:
    """What the password proves to that relay; the password itself stays in this process."""
    from p2psync.crypto.password import login_key
    from p2psync.errors import InputError
    from p2psync.protocol.relay_address import parse_relay_address

    identity = parse_relay_address(relay).identity
    password = _one_line(file) if file is not None else _ask(what)
    if confirm and file is None and _ask("The same again") != password:
        raise InputError("the two passwords differ; nothing was done")
    return login_key(password, email, identity)


def _ask(what: str) -> str:
    """From the terminal, without echo. BadParameter where there is none."""
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"no terminal to ask for the {what.lower()}; give a file, see --help")
    import getpass

    return getpass.getpass(f"{what}: ")


def _one_line(file: Path) -> str:
    with file.open("rb") as opened:
        data = opened.read(MAX_PASSWORD_FILE + 1)
    if len(data) > MAX_PASSWORD_FILE:
        raise typer.BadParameter(f"{file} is longer than {MAX_PASSWORD_FILE} bytes")
    return data.decode(errors="replace").removesuffix("\n").removesuffix("\r")


def _free(file: Path | None) -> None:
    """Before anything is done: the key must have somewhere to go."""
    if file is not None and (file.exists() or not file.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{file} exists already or cannot be made; name a new file for the recovery key")


def _write_recovery(file: Path, key: str) -> None:
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as opened:
            opened.write(f"{key}\n")
            opened.flush()
            os.fsync(opened.fileno())
    except OSError:
        # It exists nowhere else.
        complain(f"the recovery key could not be written; it is: {key}")
        raise


def _show_recovery(key: str, file: Path | None) -> None:
    if file is not None:
        say(f"The recovery key is in {file}. Print it and put it away: with the password it opens the account.")
        return
    say("Recovery key, shown this once. Write it down and put it away; with the password it opens the account:")
    say()
    say(f"    {key}")
    say()


def _print_usage(usage: AccountUsage) -> None:
    say(
        f"  plan {plain(usage.plan) or '(none)'}: {size(usage.used)} of {size(usage.limit)} used, "
        f"{usage.devices} of {_number(usage.max_devices)} devices, "
        f"{usage.folders} of {_number(usage.max_folders)} folders"
    )
    if usage.pending_plan:
        where = f" at {plain(usage.checkout)}" if usage.checkout else ""
        say(f"  the plan {plain(usage.pending_plan)} waits for its payment{where}")


def _print_problems(view: AccountView) -> None:
    for problem in view.problems:
        say(f"! {plain(problem.text)}")
        say(f"    → {plain(problem.remedy)}")


def _number(limit: int) -> str:
    return f"{limit:,}"
