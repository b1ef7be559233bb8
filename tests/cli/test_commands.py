"""Every command's contract: exit code, what is on stdout, what on stderr, and what the device is asked to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import p2psync
from p2psync.node import views
from p2psync.node.control_file import ControlFile
from tests.cli.conftest import Run
from tests.cli.fake import FOLDER, LAPTOP, ME, FakeOperations

JSON_COMMANDS = [
    ("device id", "id"),
    ("device list", 0),
    (f"device add {LAPTOP.id}", "id"),
    ("device remove laptop", "removed"),
    ("folder add .", "path"),
    ("folder share photos --with laptop", "role"),
    ("folder unshare photos --with laptop", "removed"),
    ("folder members photos", 0),
    ("folder offers", 0),
    ("folder accept photos x", "path"),
    ("folder list", 0),
    ("folder remove photos", "path"),
    ("folder pause photos", "paused"),
    ("folder mailbox photos", "policy"),
    ("folder mailbox photos always", "relay"),
    ("folder resume photos", "resumed"),
    ("status", "folders"),
    ("wait --timeout 1", "identical"),
    ("log x", 0),
    ("restore x", "version"),
    ("conflicts", None),
    ("config get", "network.discovery"),
    ("config set network.listen :0", "network.listen"),
    ("check", "ok"),
    ("pair", "code"),
    ("pair 7-crossover-clockwork", "name"),
]


@pytest.mark.parametrize(("command", "part"), JSON_COMMANDS)
def test_json_is_one_document_and_nothing_else(
    run: Run, node: FakeOperations, command: str, part: str | int | None
) -> None:
    result = run(*command.split(), "--json")
    assert (result.code, result.err) == (0, "")
    document = json.loads(result.out)
    assert part is None or document[part] is not None


@pytest.mark.parametrize("command", [command for command, _ in JSON_COMMANDS])
def test_text_is_printed_without_control_characters(run: Run, node: FakeOperations, command: str) -> None:
    result = run(*command.split())
    assert (result.code, result.err) == (0, "")
    assert result.out.strip()
    assert "\x1b" not in result.out


def test_status_json_has_the_keys_of_the_contract(run: Run, node: FakeOperations) -> None:
    status = json.loads(run("status", "--json").out)
    assert status["device"].keys() >= {"id", "name"}
    keys = {"id", "label", "path", "state", "files", "bytes", "need_files", "need_bytes", "conflicts"}
    assert status["folders"][0].keys() >= keys
    assert status["devices"][0].keys() >= {"id", "name", "connected", "address", "via"}


def test_status_shows_problems_with_remedies_and_never_markup(run: Run, node: FakeOperations) -> None:
    out = run("status").out
    assert "! photos: A.txt: [bold]A.txt[/bold] and a.txt\\x1b[31m clash" in out
    assert "→ rename one" in out
    assert "75 % at 500 B/s, 2 s left" in out
    assert "1 conflict copy (" in out


@pytest.mark.parametrize("command", ["device id", "status", "folder list", "log x", "config get", "check"])
def test_without_a_node_the_home_itself_answers(run: Run, fake: FakeOperations, command: str) -> None:
    assert run(*command.split(), "--json").code == 0


def test_a_killed_nodes_control_file_is_no_obstacle(run: Run, fake: FakeOperations, home: Path) -> None:
    ControlFile("http://127.0.0.1:1", "old", 1).write(home / "control.json")
    assert run("device", "id").out == f"{ME.id}\n"


@pytest.mark.parametrize("command", ["wait", "pair", "pair 1-a-b", "folder scan photos"])
def test_what_needs_a_node_says_so(run: Run, fake: FakeOperations, command: str) -> None:
    result = run(*command.split())
    assert result.code == 1
    assert result.out == ""
    assert result.err == "error: no node runs on this home; start it with: p2psync run\n"


@pytest.mark.parametrize("command", ["device id", "status --json", "wait", "run", "folder add ."])
def test_a_home_without_device_points_to_init(run: Run, home: Path, command: str) -> None:
    (home / "state.json").unlink()
    result = run(*command.split())
    assert (result.code, result.out) == (1, "")
    assert result.err == f"error: there is no device in {home} yet; run: p2psync init\n"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("device add a?b", "a device ID cannot contain '?'"),
        ("device remove nobody", "no device is called 'nobody'; see `p2psync device list`"),
        ("folder pause nothing", "no folder is called 'nothing'; see `p2psync folder list`"),
        ("pair used", "this code was used already; start again with `p2psync pair`"),
        ("config get nope.nope", "there is no setting nope.nope; see `p2psync config get`"),
    ],
)
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_errors_are_one_line_on_stderr(
    run: Run, node: FakeOperations, command: str, text: str, flag: list[str]
) -> None:
    result = run(*command.split(), *flag)
    assert (result.code, result.out, result.err) == (1, "", f"error: {text}\n")


def test_a_fault_of_ours_is_one_line_too(run: Run, node: FakeOperations, fake: FakeOperations) -> None:
    result = run("folder", "scan", "photos")
    assert result.code == 1
    assert result.err == "error: internal error in folder_scan: RuntimeError; see the node's log\n"


@pytest.mark.parametrize(
    "command",
    [
        "nope",
        "device",
        "device nope",
        "device add",
        "folder share photos",
        "folder share photos --with laptop --role king",
        "folder add . --hash md5",
        "status --watch",
        "wait --timeout -1",
        "wait --timeout soon",
        "wait --timeout nan",
        "wait --timeout inf",
        "pair --address a:1",
        "restore x --at yesterday",
        "restore x --at 2h --version v1",
        "run --listen",
        "--nope",
    ],
)
def test_wrong_usage_ends_in_2(run: Run, node: FakeOperations, command: str) -> None:
    assert run(*command.split()).code == 2
    assert node.calls == []


def test_arguments_arrive_as_typed(
    run: Run, node: FakeOperations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.fsencode(tmp_path)
    run("device", "add", "ID", "--name", "n", "--address", "a:1", "--address", "b:2")
    run("folder", "add", "sub", "--label", "l", "--hash", "sha256")
    run("folder", "share", "abcdef", "--with", "laptopx", "--role", "viewer")
    run("folder", "resume", "photos", "--confirm", "--adopt")
    run("pair", "1-a-b", "--address", "c:3")
    run("log", "sub/../x")
    run("restore", "x", "--at", "1970-01-01T00:01:00Z", "--to", "/y")
    run("wait", "--timeout", "2.5")
    assert node.calls == [
        ("device_add", "ID", "n", ["a:1", "b:2"]),
        ("folder_add", here + b"/sub", "l", "sha256"),
        ("folder_share", FOLDER.id, LAPTOP.id, "viewer"),
        ("folder_resume", FOLDER.id, True, True),
        ("pair_join", "1-a-b", "c:3", False),
        ("log", here + b"/x"),
        ("restore", here + b"/x", None, 60.0, b"/y"),
        ("wait", 2.5),
    ]


def test_names_that_are_not_utf8_survive(run: Run, node: FakeOperations, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe"
    document = json.loads(run("folder", "add", os.fsdecode(raw), "--json").out)
    assert document["path"].endswith("\\xff\\xfe")
    assert node.calls[0][1] == raw
    assert "\\xff\\xfe" in run("restore", os.fsdecode(raw)).out
    assert "path_b64" not in json.loads(run("folder", "add", "/plain", "--json").out)


def test_paths_lose_symlinks_on_the_way_but_not_at_the_end(run: Run, node: FakeOperations, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "last").symlink_to("/elsewhere")
    run("log", str(tmp_path / "link" / "last"))
    assert node.calls == [("log", os.fsencode(tmp_path) + b"/real/last")]


def test_wait_tells_what_is_missing(run: Run, node: FakeOperations) -> None:
    node.identical = False
    result = run("wait", "--timeout", "90")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: not identical after 1 min 30 s: photos: laptop lacks 2 files (1.0 kB)\n"


def test_check_tells_damage_by_exit_code(run: Run, node: FakeOperations) -> None:
    node.findings.append(views.Finding("photos", "chunk 3 is rotten", "run check --repair", "a\nb"))
    result = run("check")
    assert result.code == 1
    assert "DAMAGE: photos: a\\x0ab: chunk 3 is rotten" in result.out
    assert result.err.startswith("error: check found 1 fault not repaired")
    result = run("check", "--json")
    assert (result.code, json.loads(result.out)["ok"]) == (1, False)


def test_check_passes_on_what_it_may_do(run: Run, node: FakeOperations) -> None:
    result = run("check", "--quick")
    assert (result.code, result.out) == (0, "Everything is as it should be. No files were read.\n")
    run("check", "--repair", "--accept-local")
    assert node.calls == [("check", False, True, False), ("check", True, False, True)]


def test_pair_shows_the_code_then_the_other_side(run: Run, node: FakeOperations) -> None:
    lines = run("pair").out.splitlines()
    assert lines[0] == "code: 7-crossover-clockwork"
    assert "p2psync pair 7-crossover-clockwork" in lines[1]
    assert "Paired with laptop (LAPTOPX)." in lines


def test_share_says_what_comes_next(run: Run, node: FakeOperations) -> None:
    assert "p2psync folder accept photos PATH" in run("folder", "share", "photos", "--with", "laptop").out


def test_doctor_tests_the_machine_and_asks_the_node(run: Run, node: FakeOperations, home: Path) -> None:
    before = sorted(home.iterdir())
    found = json.loads(run("doctor", "--json").out)
    assert {line["check"] for line in found} >= {"python", "home", "disk", "clock", "watches", "multicast", "discovery"}
    assert all(line["ok"] for line in found if line["check"] in {"python", "home", "disk", "discovery"})
    assert sorted(home.iterdir()) == before


def test_doctor_works_before_init_and_fails_with_a_remedy(run: Run, home: Path) -> None:
    (home / "state.json").unlink()
    result = run("doctor")
    assert result.code == 1
    assert "FAIL  home: there is no device" in result.out
    assert "→ run: p2psync init" in result.out
    assert "checks failed: " in result.err


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"p2psync {p2psync.__version__}\n"
    for command in (
        "",
        "device",
        "device add",
        "folder",
        "folder share",
        "pair",
        "wait",
        "restore",
        "config set",
        "run",
    ):
        result = run(*command.split(), "--help")
        assert (result.code, result.err) == (0, "")
        assert "Usage: p2psync" in result.out


def test_completion_offers_folders_and_devices(home: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    from p2psync.node.home import DeviceEntry, FolderEntry, Home, HomeState

    folder = FolderEntry(id=FOLDER.id, label="photos", path="/data/photos")
    Home(home).save_state(HomeState(devices=(DeviceEntry(id=LAPTOP.id, name="laptop"),), folders=(folder,)))
    monkeypatch.setenv("P2PSYNC_HOME", str(home))
    for words, offered in (
        ("p2psync folder share ph", "photos"),
        ("p2psync folder share photos --with l", "laptop"),
        ("p2psync device remove ", "laptop"),
        ("p2psync config get network.d", "network.discovery"),
    ):
        monkeypatch.setenv("_P2PSYNC_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        assert run().out.split() == [offered]
