"""The messages a relay mails, in plain text."""

from __future__ import annotations

from relay.accounts.secrets import show_code
from relay.ports import Mail

_IGNORE = "If you did not ask for this, somebody typed your address by mistake; you need not do anything.\n"


def verification(to: str, code: str, minutes: int) -> Mail:
    """Proof that the address belongs to who signs up."""
    return Mail(
        to,
        "Your code for p2psync",
        f"Your code is {show_code(code)}\n\n"
        f"Type it on the device on which you signed up:\n\n    p2psync account verify {show_code(code)}\n\n"
        f"It works once, for {minutes} minutes, and on that device only.\n\n{_IGNORE}",
    )


def already_registered(to: str) -> Mail:
    """The answer to a sign-up with an address that has an account; the relay's own answer does not tell."""
    return Mail(
        to,
        "You have a p2psync account already",
        "Somebody, perhaps you, tried to sign up with this address. It has an account at this relay already.\n\n"
        "To use it on another device, pair that device with one that is in the account (`p2psync pair`), or use the "
        "recovery key. If you have forgotten the password:\n\n    p2psync account reset\n\n" + _IGNORE,
    )


def reset(to: str, code: str, minutes: int) -> Mail:
    """Lets somebody who reads this mailbox set a new password."""
    return Mail(
        to,
        "A new password for p2psync",
        f"Your code is {show_code(code)}\n\n"
        f"Type it on the device on which you asked for it:\n\n    p2psync account reset --code {show_code(code)}\n\n"
        f"It works once, for {minutes} minutes, and on that device only. A new password opens none of your files: a "
        f"device that is not in the account must still be paired with one that is, or use the recovery key.\n\n"
        + _IGNORE,
    )


def password_changed(to: str) -> Mail:
    """Tells the owner of what they may not have done."""
    return Mail(
        to,
        "Your p2psync password was changed",
        "The password of your account was changed, and every device was logged out of the relay; devices that are in "
        "the account log in again by themselves.\n\n"
        "If this was not you, set a new one (`p2psync account reset`) and change the password of your mailbox.\n",
    )


def deleted(to: str) -> Mail:
    """The last message of an account."""
    return Mail(
        to,
        "Your p2psync account was deleted",
        "Your account at this relay and all it stored here have been deleted. The files on your devices are "
        "untouched, and the devices still sync with each other directly.\n",
    )
