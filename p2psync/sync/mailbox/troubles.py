"""What a person is told about a mailbox: one problem of the folder for each kind of trouble, while it lasts."""

from __future__ import annotations

from p2psync.sync.context import FolderContext

FORK, ROLLBACK, WITHHOLDS, STALE = "relay-fork", "relay-rollback", "relay-withholds", "relay-stale"
QUOTA, UNREACHABLE, REFUSED, DAMAGED = "relay-quota", "relay-unreachable", "relay-refused", "relay-damaged"
CODES = (FORK, ROLLBACK, WITHHOLDS, STALE, QUOTA, UNREACHABLE, REFUSED, DAMAGED)

_LAN = "devices that meet go on exchanging everything"


def begin_again(label: str) -> str:
    """What a person does who has decided to trust a relay anew."""
    return (
        f"ask whoever runs it; if it was put back from a backup: p2psync folder mailbox {label} never, then turn it "
        f"on again; {_LAN}"
    )


class Troubles:
    """The problems that one mailbox gives its folder."""

    def __init__(self, context: FolderContext, relay: str) -> None:
        """`relay` is what people call it."""
        self._context = context
        self._relay = relay

    def clear(self, *codes: str) -> None:
        """These are over."""
        for code in codes:
            self._context.clear_problem(code)

    def fork(self, device: str) -> None:
        """`device` has signed two histories."""
        self._context.raise_problem(
            FORK,
            f"{device} has signed two different histories in the mailbox at {self._relay}; nothing more is taken from "
            "it there",
            f"see whether its keys are used in two places, or an old copy of it was put back; if it was lost: "
            f"p2psync folder unshare {self._context.label} {device}",
        )

    def rollback(self, count: int) -> None:
        """`count` chains are shorter at the relay than they were."""
        self._context.raise_problem(
            ROLLBACK,
            f"the relay {self._relay} has gone back to an older state: entries of {count} devices that it had shown or "
            "acknowledged are not there any more",
            begin_again(self._context.label),
        )

    def withholds(self, text: str) -> None:
        """Entries exist that the relay does not show."""
        self._context.raise_problem(
            WITHHOLDS,
            f"the relay {self._relay} keeps back what members have left there: {text}",
            begin_again(self._context.label),
        )

    def stale(self, days: int) -> None:
        """Nobody else has confirmed the mailbox's state for so long."""
        self._context.raise_problem(
            STALE,
            f"for {days} days no other device has confirmed what the relay {self._relay} shows",
            "nothing, if the other devices were off; otherwise see whether they reach the relay",
        )

    def quota(self, used: int, limit: int, asked: int) -> None:
        """There is no room."""
        self._context.raise_problem(
            QUOTA,
            f"the account that pays for this folder is full: {size(used)} of {size(limit)} are taken, {size(asked)} "
            "more are asked for",
            f"choose a bigger plan (p2psync account plans) or delete files; {_LAN}",
        )

    def unreachable(self, text: str) -> None:
        """The relay does not answer."""
        self._context.raise_problem(
            UNREACHABLE, f"the relay {self._relay} does not answer: {text}", f"nothing, it is tried again; {_LAN}"
        )

    def refused(self, text: str) -> None:
        """The relay does not let this device in."""
        self._context.raise_problem(
            REFUSED,
            f"the relay {self._relay} refuses this device: {text}",
            f"see: p2psync account status; {_LAN}",
        )

    def damaged(self, text: str) -> None:
        """What the relay gives is not what was left there."""
        self._context.raise_problem(
            DAMAGED,
            f"what the relay {self._relay} gives is not what was left there: {text}",
            f"nothing wrong was taken in; tell whoever runs the relay; {_LAN}",
        )


def size(count: int) -> str:
    """Bytes as people read them."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if unit != "B" else f"{count} B"
