"""Account commands: secrets come from files or a terminal, never from the command line, and are shown once."""

from __future__ import annotations

import getpass
import json
import stat
import sys
from pathlib import Path

import pytest

from p2psync.crypto.password import login_key
from tests.cli.conftest import Run
from tests.cli.fake import FakeOperations
from tests.cli.fake_account import ACCOUNT, RECOVERY_KEY

PASSWORD, EMAIL, URL = "correct horse battery", "me@example.org", "https://relay.example/"
RELAY = "relay.example"
KEY = login_key(PASSWORD, EMAIL, RELAY)


@pytest.fixture
def secret(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    return str(file)


@pytest.fixture
def words(secret: str) -> dict[str, list[str]]:
    """What to type after `account`, and the part of its JSON that must be there."""
    return {
        "email": ["signup", "--relay", URL, "--email", EMAIL, "--password-file", secret],
        "state": ["verify", "ABCD-EFGH"],
        "account_id": ["login", "--password-file", secret],
        "problems": ["status"],
        "0": ["devices"],
        "removed": ["remove-device", "laptop"],
        "logged_out": ["logout", "--forget"],
        "mailed": ["reset", "--email", EMAIL],
        "reset": ["reset", "--code", "ABCD", "--password-file", secret],
        "changed": ["password", "--password-file", secret, "--new-password-file", secret],
        "deleted": ["delete", "--yes", "--password-file", secret],
        "1": ["plans"],
        "active": ["subscribe", "--none"],
        "plan": ["subscribe", "home"],
        "recovery_key": ["recovery"],
    }


def test_json_is_one_document_and_text_has_no_control_characters(
    run: Run, node: FakeOperations, words: dict[str, list[str]]
) -> None:
    for part, command in words.items():
        result = run("account", *command, "--json")
        assert (result.code, result.err) == (0, ""), command
        document = json.loads(result.out)
        assert document[int(part) if part.isdigit() else part] is not None
        shown = run("account", *command)
        assert (shown.code, shown.err) == (0, ""), command
        assert shown.out.strip()
        assert "\x1b" not in shown.out
        assert PASSWORD not in result.out + shown.out


def test_the_password_stays_in_the_command(run: Run, node: FakeOperations, words: dict[str, list[str]]) -> None:
    run("account", *words["email"])
    run("account", *words["account_id"])
    run("account", *words["changed"])
    run("account", *words["deleted"])
    assert node.calls == [
        ("account_sign_up", [URL], EMAIL, KEY),
        ("account_log_in", EMAIL, KEY, [], ""),
        ("account_change_password", KEY, KEY),
        ("account_delete", KEY),
    ]


def test_a_recovery_key_goes_to_a_new_private_file(
    run: Run, node: FakeOperations, words: dict[str, list[str]], tmp_path: Path
) -> None:
    file = tmp_path / "recovery"
    result = run("account", *words["email"], "--recovery-file", str(file))
    assert (result.code, RECOVERY_KEY in result.out) == (0, False)
    assert file.read_text() == RECOVERY_KEY + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    calls = list(node.calls)
    assert run("account", *words["email"], "--recovery-file", str(file)).code == 2
    assert run("account", "recovery", "--recovery-file", str(tmp_path / "no" / "where")).code == 2
    assert node.calls == calls
    assert RECOVERY_KEY in run("account", *words["email"]).out

    assert "folder offers" in run("account", *words["account_id"], "--recovery-file", str(file)).out
    assert node.calls[-1] == ("account_log_in", EMAIL, KEY, [], RECOVERY_KEY)


def test_the_terminal_is_asked_twice_at_sign_up(
    run: Run, node: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [PASSWORD, PASSWORD, PASSWORD, "something else"]
    monkeypatch.setattr(getpass, "getpass", lambda prompt: answers.pop(0))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    words = ["account", "signup", "--relay", URL, "--email", EMAIL]
    assert run(*words).code == 0
    assert node.calls == [("account_sign_up", [URL], EMAIL, KEY)]
    refused = run(*words)
    assert (refused.code, "differ" in refused.err) == (1, True)
    assert len(node.calls) == 1


def test_a_new_password_is_asked_for_twice_and_the_old_one_once(
    run: Run, node: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return PASSWORD if prompt.startswith("Old") else "another " + PASSWORD

    monkeypatch.setattr(getpass, "getpass", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert run("account", "password").code == 0
    assert asked == ["Old password: ", "New password: ", "The same again: "]
    assert node.calls == [("account_change_password", KEY, login_key("another " + PASSWORD, EMAIL, RELAY))]


def test_what_is_missing_is_said(run: Run, node: FakeOperations, secret: str, tmp_path: Path) -> None:
    assert run("account", "signup", "--relay", URL, "--email", EMAIL).code == 2
    assert run("account", "delete", "--password-file", secret).code == 2
    assert run("account", "subscribe").code == 2
    short = tmp_path / "short"
    short.write_text("short\n")
    result = run("account", "login", "--password-file", str(short))
    assert (result.code, "at least 10 characters" in result.err) == (1, True)
    node.in_account = False
    result = run("account", "login", "--password-file", secret)
    assert (result.code, "--email" in result.err) == (2, True)


def test_all_of_it_works_without_a_node(run: Run, fake: FakeOperations, words: dict[str, list[str]]) -> None:
    assert run("account", *words["email"]).code == 0
    assert ACCOUNT.email in run("account", "status").out
