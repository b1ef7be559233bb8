"""What `status` shows of the account and of mailboxes."""

from __future__ import annotations

import msgspec
import pytest

from p2psync.cli.output import console
from p2psync.cli.status import render
from p2psync.node import views
from tests.cli.fake import FOLDER, ME

USAGE = views.AccountUsage("", 3 << 20, 1 << 20, 1 << 30, 2, 20, 1, 20)
ACCOUNT = views.AccountView("id", "ann@example.org", ["https://relay:1/"], "active", 2, USAGE, [], "relay:1", 185.0)
MAILBOX = views.MailboxView("photos", "always", "relay:1", "posting", 3, 0, 0, None, [], 2048, 12.0)


def shown(account: views.AccountView | None, mailbox: views.MailboxView | None) -> str:
    status = views.Status(ME, [msgspec.structs.replace(FOLDER, mailbox=mailbox)], [], None, account)
    with (out := console()).capture() as text:
        out.print(render(status))
    return text.get()


def test_the_account_and_how_old_its_figures_are() -> None:
    text = shown(ACCOUNT, MAILBOX)
    used = "3.0 MiB and 1.0 MiB promised of 1.0 GiB used, no plan, 3 min 5 s ago"
    assert f"Account ann@example.org at relay:1: active; {used}\n" in text
    assert "mailbox always, posting, 3 paths (2.0 KiB) to be left there, read 12 s ago" in text


@pytest.mark.parametrize("mailbox", [None, views.MailboxView("photos", "never")])
def test_what_is_not_used_is_not_mentioned(mailbox: views.MailboxView | None) -> None:
    text = shown(None, mailbox)
    assert "Account" not in text
    assert "mailbox" not in text


def test_an_account_that_cannot_be_asked_says_why() -> None:
    problem = views.Problem("relay-unreachable", "the relay does not answer", "try again later")
    account = msgspec.structs.replace(ACCOUNT, usage=None, usage_age_s=None, problems=[problem])
    text = shown(account, msgspec.structs.replace(MAILBOX, activity="unreachable", waiting=0, read_age_s=None))
    assert "at relay:1: active\n" in text
    assert "! account: the relay does not answer\n    → try again later" in text
    assert "mailbox always, unreachable, not read since the start" in text
