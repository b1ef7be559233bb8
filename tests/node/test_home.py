"""The home: one node at a time, private files, and a state that is never half-written or silently dropped."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import IntegrityError, StateError
from p2psync.node.files import MAX_PRIVATE_BYTES, read_private, replace_file, write_private
from p2psync.node.home import DeviceEntry, FolderEntry, Home, HomeState, _escape, _unescape, _with_paths, resolve_home

STATE = HomeState(
    devices=(DeviceEntry(id="ABC", name="büro", addresses=("h:1",), added_at=7, last_addresses=("192.0.2.1:5",)),),
    folders=(FolderEntry(id="xyz", label="photos", path="/srv/50% off/\udcff", paused=True),),
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "new" / "home")
    home.create()
    return home


def test_resolve_order(tmp_path: Path) -> None:
    assert resolve_home("/a", {"P2PSYNC_HOME": "/b"}).path == Path("/a")
    assert resolve_home(None, {"P2PSYNC_HOME": "~/b"}).path == Path.home() / "b"
    assert resolve_home(None, {}).path.name == "p2psync"
    assert resolve_home("relative", {}).path == Path.cwd() / "relative"


def test_create_is_private_and_repeatable(home: Home) -> None:
    for path in (home.path, home.keys, home.folders):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    home.create()
    assert home.index("xyz") == home.path / "folders" / "xyz" / "index"


def test_create_refuses_the_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(StateError, match="not empty and no p2psync home"):
        Home(tmp_path).create()
    with pytest.raises(StateError, match="cannot make"):
        Home(tmp_path / "thesis.doc" / "home").create()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_state_round_trip_and_backup(home: Home) -> None:
    assert not home.initialised
    with pytest.raises(StateError, match="p2psync init"):
        home.load_state()
    home.save_state(HomeState())
    home.save_state(STATE)
    assert home.initialised
    assert home.load_state() == STATE
    assert b"/srv/50%25 off/%FF" in home.state_file.read_bytes()
    assert stat.S_IMODE(home.state_file.stat().st_mode) == 0o600
    os.replace(home.state_backup, home.state_file)
    assert home.load_state() == HomeState()


def test_paths_stay_readable_in_the_file(home: Home) -> None:
    home.save_state(msgspec.structs.replace(STATE, folders=(FolderEntry(id="x", label="l", path="/home/jörg/a b"),)))
    assert "/home/jörg/a b" in home.state_file.read_text()


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw))
def test_every_path_survives(raw: bytes) -> None:
    path = os.fsdecode(raw)
    state = HomeState(folders=(FolderEntry(id="x", label="l", path=path),))
    stored = msgspec.json.encode(_with_paths(state, _escape))
    assert _with_paths(msgspec.json.decode(stored, type=HomeState), _unescape) == state


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"devices":[]}',
        b'{"version":1,"devices":[{}]}',
        b'{"version":1,"devices":7}',
        b'{"version":1,"surprise":1}',
        b'{"version":1,"devices":[{"id":"a","colour":"red"}]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_damaged_state_is_named_with_a_way_back(home: Home, raw: bytes) -> None:
    home.state_file.write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"state\.json is damaged .*put it back from a backup"):
        home.load_state()
    home.state_backup.write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"state\.json\.bak is the state before"):
        home.load_state()


def test_a_newer_state_is_refused_clearly(home: Home) -> None:
    home.state_file.write_bytes(b'{"version":2,"devices":{"new":"shape"}}')
    with pytest.raises(StateError, match="has format 2, this p2psync knows 1"):
        home.load_state()


def test_second_lock_names_the_holder(home: Home) -> None:
    with home.lock(), pytest.raises(StateError, match=rf"another node \(pid {os.getpid()}\) runs on this home"):
        home.lock()
    home.lock().release()


def test_lock_is_seen_by_other_processes_and_ends_with_its_holder(home: Home) -> None:
    code = f"""
import sys
from pathlib import Path
from p2psync.node.home import Home
lock = Home(Path({str(home.path)!r})).lock()
print("locked", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        with pytest.raises(StateError, match=rf"pid {child.pid}\)"):
            home.lock()
        child.kill()
    home.lock().release()


def test_lock_without_a_home(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"is .* a p2psync home"):
        Home(tmp_path / "none").lock()


def test_private_files(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    with pytest.raises(FileNotFoundError):
        read_private(path)
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private(path) == b"secret"
    write_private(path, b"other")
    assert read_private(path) == b"other"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_private_files_that_others_can_reach_are_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity"
    write_private(path, b"secret")
    path.chmod(mode)
    with pytest.raises(StateError, match=rf"mode {mode:04o}.*chmod 600 {path}"):
        read_private(path)


def test_private_files_must_be_plain_small_files(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    write_private(tmp_path / "real", b"x" * (MAX_PRIVATE_BYTES + 1))
    with pytest.raises(IntegrityError, match="far too large"):
        read_private(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    with pytest.raises(IntegrityError, match="cannot open"):
        read_private(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(IntegrityError, match="not a regular file"):
        read_private(tmp_path / "pipe")


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
