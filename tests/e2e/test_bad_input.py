"""What goes wrong by a person's hand: one clear line on stderr, exit code 1 (2 for usage), and nothing is lost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.model.ids import DeviceId, format_device_id
from p2psync.testing.processes import Device, introduce
from tests.e2e.conftest import devices_in

pytestmark = pytest.mark.e2e


def refused(device: Device, *arguments: str | os.PathLike[str], code: int = 1) -> str:
    """Run a command that must fail with this exit code and one line of complaint; returns that line."""
    result = device.run(*arguments, expect=code)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "internal error" not in lines[0]
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for the module."""
    return tmp_path_factory.mktemp("bad-input")


@pytest.fixture(scope="module")
def desk(base: Path) -> Iterator[Device]:
    """A running device that owns the folder "docs" and knows the (offline) device "laptop"."""
    with devices_in(base) as make:
        device = make("desk")
        (base / "docs").mkdir()
        (base / "docs" / "precious").write_text("never lost")
        device.run("folder", "add", base / "docs", "--label", "docs")
        device.run("device", "add", LAPTOP, "--name", "laptop")
        yield device


@pytest.fixture(scope="module")
def template(base: Path) -> Iterator[Device]:
    """A stopped device with one scanned folder "notes"; tests damage copies of its home."""
    with devices_in(base) as make:
        device = make("template")
        (base / "notes").mkdir()
        for number in range(50):
            (base / "notes" / f"note-{number}").write_text(f"note {number}")
        device.run("folder", "add", base / "notes", "--label", "notes")
        device.run("folder", "scan", "notes")
        device.stop()
        yield device


@pytest.fixture
def stopped(template: Device, base: Path, tmp_path: Path) -> Iterator[Device]:
    """A copy of `template` to damage."""
    device = Device(tmp_path, "copy")
    shutil.copytree(template.home, device.home)
    yield device
    device.kill()
    assert len(list((base / "notes").glob("note-*"))) == 50, "a user's files are never touched"


LAPTOP = format_device_id(DeviceId(bytes(range(32))))
STRANGER = format_device_id(DeviceId(bytes(range(32, 64))))


# ── IDs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_malformed_device_id(desk: Device) -> None:
    mistyped = ("B" if STRANGER[0] != "B" else "C") + STRANGER[1:]
    assert "mistyped in group 1" in refused(desk, "device", "add", mistyped)
    refused(desk, "device", "add", STRANGER[:20])
    refused(desk, "device", "add", "\n\x1b[31m")
    assert STRANGER not in desk.run("device", "list").stdout


def test_the_own_device_id(desk: Device) -> None:
    assert "own" in refused(desk, "device", "add", desk.id)


def test_an_unknown_device(desk: Device) -> None:
    assert "device list" in refused(desk, "device", "remove", "nobody")
    assert "nobody" in refused(desk, "folder", "share", "docs", "--with", "nobody")
    assert "this device" in refused(desk, "folder", "share", "docs", "--with", desk.id)
    assert "no member" in refused(desk, "folder", "unshare", "docs", "--with", "laptop")


def test_a_bad_address(desk: Device) -> None:
    for address in ("nowhere", "host:99999", "host:", ":22067"):
        refused(desk, "device", "add", STRANGER, "--address", address)
    assert STRANGER not in desk.run("device", "list").stdout


def test_usage_errors_end_with_2(desk: Device) -> None:
    for arguments in (
        ("no-such-command",),
        ("folder", "add"),
        ("folder", "share", "docs"),
        ("folder", "share", "docs", "--with", "laptop", "--role", "emperor"),
        ("wait", "--timeout", "soon"),
        ("pair", "--address", "127.0.0.1:1"),
        ("restore", "x", "--version", "1", "--at", "2h"),
        ("restore", "x", "--at", "yesterday-ish"),
    ):
        result = desk.run(*arguments, expect=2)
        assert result.stdout == ""
        assert result.stderr


# ── pairing codes ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_malformed_pairing_code(desk: Device) -> None:
    for code in ("hello", "7", "7-nosuchword-alsonot", "x-cross-cover", "7-cross"):
        refused(desk, "pair", code, "--address", "127.0.0.1:1")


def test_a_code_that_nobody_shows(desk: Device) -> None:
    assert "7" in refused(desk, "pair", "7-cross-cover", "--address", desk.address)
    assert "7" in refused(desk, "pair", "7-cross-cover", "--address", "127.0.0.1:1")


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_setting_that_is_unknown_or_not_allowed(desk: Device) -> None:
    before = (desk.home / "config.toml").read_bytes()
    assert "log.level" in refused(desk, "config", "set", "log.leven", "debug")
    assert "log.level" in refused(desk, "config", "get", "log.levle")
    assert '"debug"' in refused(desk, "config", "set", "log.level", "loud")
    assert (desk.home / "config.toml").read_bytes() == before


def test_a_corrupt_configuration_names_the_line_and_what_is_allowed(stopped: Device) -> None:
    good = (stopped.home / "config.toml").read_text()
    for bad, expected in (
        ('[log]\nlevel = "loud"\n', ("line 2", '"debug"')),
        ("[log]\nlevle = 3\n", ("line 2", "level")),
        ("[lgo]\n", ("line 1", "log")),
        ("[log\n", ("line 1", "TOML")),
        ("[log]\nlevel =\n", ("line 2", "TOML")),
    ):
        (stopped.home / "config.toml").write_text(bad)
        line = refused(stopped, "run")
        assert "config.toml" in line
        assert all(part in line for part in expected), line
    assert "config.toml" in refused(stopped, "folder", "list")
    (stopped.home / "config.toml").write_text(good)
    assert "notes" in stopped.run("folder", "list").stdout


def test_a_bad_listen_address(stopped: Device) -> None:
    refused(stopped, "run", "--listen", "nonsense", "--no-discovery")
    refused(stopped, "run", "--listen", "192.0.2.1:1", "--no-discovery")


# ── homes ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_init_twice(desk: Device) -> None:
    assert "already" in refused(desk, "init")
    assert desk.json("device", "id")["id"] == desk.id


def test_no_device_yet(tmp_path: Path) -> None:
    nobody = Device(tmp_path, "nobody")
    for command in (("device", "id"), ("run",), ("status",), ("wait",), ("folder", "list"), ("pair",)):
        assert "p2psync init" in refused(nobody, *command)
    assert not nobody.home.exists()


def test_a_home_that_is_something_else(tmp_path: Path) -> None:
    other = Device(tmp_path, "other")
    other.home.mkdir()
    (other.home / "thesis.txt").write_text("mine")
    refused(other, "init")
    other.home = other.home / "thesis.txt"
    refused(other, "init")
    assert os.listdir(tmp_path / "other.home") == ["thesis.txt"]


def test_a_second_node_on_the_same_home(desk: Device) -> None:
    assert "another node" in refused(desk, "run", "--listen", "127.0.0.1:0")
    assert desk.status()["node"] is not None


def test_a_port_in_use(stopped: Device) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert where in refused(stopped, "run", "--listen", where, "--no-discovery")


def test_commands_that_need_a_running_node(stopped: Device) -> None:
    for command in (("wait", "--timeout", "1"), ("pair",), ("folder", "scan", "notes")):
        assert "p2psync run" in refused(stopped, *command)


def test_keys_that_others_can_read(stopped: Device) -> None:
    for key in (stopped.home / "keys").iterdir():
        assert key.stat().st_mode & 0o077 == 0
        key.chmod(0o644)
        assert "chmod" in refused(stopped, "run", "--no-discovery")
        key.chmod(0o600)


def test_keys_that_are_damaged_or_missing(stopped: Device) -> None:
    for key in (stopped.home / "keys").iterdir():
        whole = key.read_bytes()
        key.write_bytes(whole[: len(whole) // 2])
        refused(stopped, "run", "--no-discovery")
        key.unlink()
        refused(stopped, "run", "--no-discovery")
        assert not key.exists(), "a device never quietly becomes another one"


def test_a_corrupt_state(stopped: Device) -> None:
    whole = (stopped.home / "state.json").read_bytes()
    for bad, command in (
        (b"", ("run", "--no-discovery")),
        (whole[:-20], ("device", "add", STRANGER)),
        (b'{"version":1,"devices":7}', ("folder", "list")),
    ):
        (stopped.home / "state.json").write_bytes(bad)
        assert "state.json" in refused(stopped, *command)
        assert (stopped.home / "state.json").read_bytes() == bad, "nothing is written over it"
    assert (stopped.home / "state.json.bak").exists()


def test_a_truncated_index(stopped: Device) -> None:
    (data,) = (stopped.home / "folders").glob("*/index/data.mdb")
    whole = data.read_bytes()
    os.truncate(data, len(whole) // 2)
    line = refused(stopped, "run", "--no-discovery")
    assert "index" in line
    assert "damaged" in line
    found = stopped.run("check", expect=1).stdout
    assert "damaged" in found
    assert "check --repair" in found
    assert data.read_bytes() == whole[: len(whole) // 2], "nothing is written over it"

    # What the message says to do works: the index is made anew from what stands beside the files.
    data.parent.rename(stopped.home / "damaged-index")
    stopped.start()
    stopped.run("folder", "scan", "notes")
    folder = stopped.folder("notes")
    assert (folder["state"], folder["files"], folder["role"], folder["problems"]) == ("idle", 50, "owner", [])


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_folder_that_is_no_directory(desk: Device, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    assert "mount" in refused(desk, "folder", "add", tmp_path / "missing")
    assert "mount" in refused(desk, "folder", "add", "/mnt/no-such-disk/photos")
    assert "not a directory" in refused(desk, "folder", "add", tmp_path / "file")
    assert "not a directory" in refused(desk, "folder", "add", tmp_path / "file" / "below")
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_folders_do_not_nest(desk: Device, base: Path) -> None:
    (base / "docs" / "inner").mkdir(exist_ok=True)
    assert "docs" in refused(desk, "folder", "add", base / "docs" / "inner")
    assert "docs" in refused(desk, "folder", "add", base / "docs", "--label", "again")
    (base / "above" / "below").mkdir(parents=True)
    desk.run("folder", "add", base / "above" / "below")
    assert "below" in refused(desk, "folder", "add", base / "above")
    desk.run("folder", "remove", "below")
    (base / "alias").symlink_to(base / "docs")
    refused(desk, "folder", "add", base / "alias", "--label", "alias")
    refused(desk, "folder", "add", base / "alias" / "inner")
    assert [f["label"] for f in desk.json("folder", "list")] == ["docs"]


def test_folders_of_two_devices_of_one_machine_do_not_nest(stopped: Device, base: Path, desk: Device) -> None:
    (base / "docs" / "deeper").mkdir(exist_ok=True)
    assert "docs" in refused(stopped, "folder", "add", base / "docs" / "deeper")
    assert "docs" in refused(stopped, "folder", "add", base / "docs", "--label", "other")
    assert "contain" in refused(stopped, "folder", "add", base, "--label", "all")


def test_a_folder_never_holds_the_home(desk: Device, tmp_path: Path) -> None:
    assert "home" in refused(desk, "folder", "add", desk.home)
    assert "home" in refused(desk, "folder", "add", desk.home / "folders")
    (tmp_path / "alias").symlink_to(desk.home)
    assert "home" in refused(desk, "folder", "add", tmp_path / "alias")
    other = Device(tmp_path, "inside")
    other.run("init")
    assert "home" in refused(other, "folder", "add", tmp_path)


def test_bad_labels_and_folder_names(desk: Device, tmp_path: Path) -> None:
    assert "--label" in refused(desk, "folder", "add", tmp_path, "--label", "docs")
    assert "--label" in refused(desk, "folder", "add", tmp_path, "--label", "")
    refused(desk, "folder", "add", tmp_path, "--label", "x" * 300)
    refused(desk, "folder", "add", tmp_path, "--label", "two\nlines")
    for command in ("pause", "resume", "scan", "remove", "members"):
        assert "folder list" in refused(desk, "folder", command, "no-such-folder")
    refused(desk, "folder", "accept", "never-offered", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / ".p2psync").exists()


def test_sharing_needs_a_right_and_a_meaning(desk: Device) -> None:
    assert "vault" in refused(desk, "folder", "share", "docs", "--with", "laptop", "--role", "vault")
    assert "relay" in refused(desk, "folder", "share", "docs", "--with", "someone@example.org")


def test_who_is_no_owner_cannot_share_with_owners(base: Path, tmp_path: Path, desk: Device) -> None:
    with devices_in(tmp_path) as make:
        viewer = make("viewer")
        introduce(desk, viewer)
        desk.connected(viewer)
        desk.run("folder", "share", "docs", "--with", viewer.id, "--role", "viewer")
        viewer.until_offered("docs")
        (tmp_path / "taken").write_text("a file")
        assert "not a directory" in refused(viewer, "folder", "accept", "docs", tmp_path / "taken")
        viewer.run("folder", "accept", "docs", tmp_path / "docs")
        refused(viewer, "folder", "share", "docs", "--with", STRANGER)
        refused(viewer, "folder", "unshare", "docs", "--with", desk.id)
        assert STRANGER not in viewer.run("folder", "members", "docs").stdout
        desk.run("device", "remove", viewer.id)


# ── versions ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_restoring_what_is_not_there(desk: Device, base: Path, tmp_path: Path) -> None:
    refused(desk, "restore", base / "docs" / "precious")
    refused(desk, "restore", base / "docs" / "precious", "--version", "nonsense")
    refused(desk, "restore", base / "docs" / "never-was")
    assert "no shared folder" in refused(desk, "restore", tmp_path / "elsewhere")
    assert "no shared folder" in refused(desk, "log", tmp_path / "elsewhere")
    assert (base / "docs" / "precious").read_text() == "never lost"


def test_output_to_a_closed_pipe_is_no_traceback(desk: Device) -> None:
    result = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *map(str, desk.command("status", "--json"))],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "Traceback" not in result.stderr
