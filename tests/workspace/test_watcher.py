"""The watcher hints in time, and says when it cannot."""

from __future__ import annotations

import errno
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.observers.inotify import InotifyWatchGroup
from watchdog.observers.inotify_c import InotifyFD

from p2psync.ports import Hint, Rename
from p2psync.workspace.posix import PosixRoot
from p2psync.workspace.watcher import WatchdogWatch, WatchdogWatcher
from tests.workspace.support import make_folder

LIMIT = 10.0


class Hints:
    """What has been hinted so far; waits for what is still to come."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Hint] = queue.Queue()
        self.seen: list[Hint] = []
        self.put = self._queue.put

    def until(self, path: bytes | None, *, settled: bool | None = None) -> list[Hint]:
        """All hints up to the first one of `path`."""
        deadline = time.monotonic() + LIMIT
        while True:
            hint = self._queue.get(timeout=deadline - time.monotonic())
            self.seen.append(hint)
            if hint.path == path and settled in {None, hint.settled}:
                return self.seen


@pytest.fixture
def hints() -> Hints:
    return Hints()


@pytest.fixture
def watched(tmp_path: Path, hints: Hints) -> Iterator[Path]:
    folder = tmp_path / "folder"
    make_folder(folder)
    (folder / "d").mkdir()
    watch = WatchdogWatcher().watch(os.fsencode(folder), hints.put)
    assert watch.live
    yield folder
    watch.close()


def fence(folder: Path, hints: Hints) -> list[Hint]:
    """Everything hinted before now."""
    (folder / "fence").touch()
    return [h for h in hints.until(b"fence", settled=True) if h.path != b"fence"]


def test_writing_is_unsettled_until_the_file_is_closed(watched: Path, hints: Hints) -> None:
    with open(watched / "a", "w") as file:
        file.write("x")
        file.flush()
        seen = hints.until(b"a")
        assert not any(h.settled for h in seen)
    hints.until(b"a", settled=True)


@pytest.mark.parametrize("style", ["rename-over", "backup-and-write", "delete-and-rename", "exchange-swapfile"])
def test_the_ways_editors_save_end_in_a_settled_hint(watched: Path, hints: Hints, style: str) -> None:
    target = watched / "d" / "doc"
    target.write_text("old")
    fence(watched, hints)
    hints.seen.clear()
    match style:
        case "rename-over":
            (watched / "d" / ".doc.tmp").write_text("new")
            (watched / "d" / ".doc.tmp").rename(target)
        case "backup-and-write":
            target.rename(watched / "d" / "doc~")
            target.write_text("new")
        case "delete-and-rename":
            (watched / "d" / "doc.new").write_text("new")
            target.unlink()
            (watched / "d" / "doc.new").rename(target)
        case _:
            (watched / "d" / ".doc.swp").write_text("swap")
            target.write_text("new")
            (watched / "d" / ".doc.swp").unlink()
    hints.until(b"d/doc", settled=True)
    assert target.read_text() == "new"


def test_reading_and_our_own_directory_wake_nobody(watched: Path, hints: Hints) -> None:
    (watched / "a").write_text("x")
    fence(watched, hints)
    hints.seen.clear()
    (watched / "a").read_text()
    (watched / ".p2psync" / "tmp" / "x.part").write_text("x")
    (watched / ".p2psync" / "history" / "stamp").mkdir()
    os.utime(watched / "fence")
    (watched / "fence").unlink()
    assert {h.path for h in hints.until(b"fence", settled=True)} == {b"fence"}


def test_directories_that_arrive_with_content_are_hinted_and_watched(
    watched: Path, hints: Hints, tmp_path: Path
) -> None:
    (tmp_path / "outside" / "sub").mkdir(parents=True)
    (tmp_path / "outside" / "sub" / "file").write_text("x")
    (tmp_path / "outside").rename(watched / "in")
    hints.until(b"in", settled=True)
    (watched / "in" / "sub" / "later").write_text("x")
    hints.until(b"in/sub/later", settled=True)
    (watched / "in").rename(watched / "moved")
    hints.until(b"moved", settled=True)
    (watched / "moved" / "sub" / "again").write_text("x")
    hints.until(b"moved/sub/again", settled=True)
    (watched / "moved").rename(tmp_path / "out")
    hints.until(b"moved", settled=True)


@pytest.mark.parametrize("other", ["directory", "file", "file first"])
def test_what_changes_places_is_hinted_where_it_is(watched: Path, hints: Hints, other: str) -> None:
    """A directory and another one, or a file: afterwards each is watched by the name it has now, and can go."""
    inner = watched / "d" / "inner"
    inner.mkdir()
    if other == "directory":
        (watched / "e" / "inner").mkdir(parents=True)
    else:
        (watched / "e").write_text("a file")
    fence(watched, hints)
    names = (b"e", b"d") if other == "file first" else (b"d", b"e")
    root = PosixRoot(os.fsencode(watched))
    root.rename(*names, Rename.EXCHANGE)
    root.close()
    hints.until(None)
    for directory in ("d", "e"):
        if (watched / directory).is_dir():
            (watched / directory / "inner" / "new").write_text("x")
            hints.until(f"{directory}/inner/new".encode(), settled=True)
            shutil.rmtree(watched / directory)
    (watched / "still").mkdir()
    hints.until(b"still")
    (watched / "still" / "here").write_text("x")
    hints.until(b"still/here", settled=True)


def test_a_reader_that_fails_says_so(watched: Path, hints: Hints, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("gone")

    monkeypatch.setattr(InotifyWatchGroup, "on_event", fail)
    (watched / "a").mkdir()
    hints.until(None)


def test_a_file_moved_in_from_outside_is_settled_at_once(watched: Path, hints: Hints, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    (tmp_path / "x").rename(watched / "x")
    assert all(h.settled for h in hints.until(b"x"))
    (watched / "x").rename(tmp_path / "x")
    assert all(h.settled for h in hints.until(b"x") if h.path == b"x")


def test_a_change_of_mode_is_settled(watched: Path, hints: Hints) -> None:
    (watched / "x").touch()
    fence(watched, hints)
    (watched / "x").chmod(0o755)
    assert hints.until(b"x")[-1].settled


def test_a_file_takes_the_name_of_a_directory_that_left(watched: Path, hints: Hints, tmp_path: Path) -> None:
    """The directory is watched by its old name still, as nobody knows that it will not come back."""
    (watched / "d").rename(tmp_path / "out")
    (tmp_path / "x").write_text("x")
    (tmp_path / "x").rename(watched / "d")
    hints.until(b"d", settled=True)
    (watched / "d").unlink()
    (tmp_path / "out").rename(watched / "d")
    hints.until(b"d", settled=True)
    fence(watched, hints)
    (watched / "d" / "inner").touch()
    hints.until(b"d/inner", settled=True)


def test_names_are_bytes(watched: Path, hints: Hints) -> None:
    name = b"\xff\xfe" + b"n" * 253
    with open(os.path.join(os.fsencode(watched), name), "wb"):
        pass
    hints.until(name, settled=True)


def test_nested_directories_made_at_once_raise_no_warning(watched: Path, hints: Hints) -> None:
    for n in range(50):
        os.makedirs(watched / f"m{n}" / "a" / "b" / "c")
    (watched / "m49" / "a" / "b" / "c" / "x").write_text("x")
    hints.until(b"m49")
    assert not [h for h in fence(watched, hints) if h.path is None]


def test_a_queue_that_overflows_is_lost_events(watched: Path, hints: Hints, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader sleeps while more happens than the kernel remembers."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    asleep, wake = threading.Event(), threading.Event()
    handle = InotifyFD.handle_event

    def slow(self: InotifyFD, event: object) -> None:
        asleep.set()
        wake.wait(LIMIT)
        handle(self, event)

    monkeypatch.setattr(InotifyFD, "handle_event", slow)
    (watched / "first").touch()
    assert asleep.wait(LIMIT)
    paths = [os.fsencode(watched / "d" / str(n)) for n in range(2)]
    for n in range(limit + 2000):
        os.close(os.open(paths[n % 2], os.O_CREAT | os.O_WRONLY))
    wake.set()
    hints.until(None)


def test_a_limit_is_shown_and_never_raised(tmp_path: Path, hints: Hints, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "f")
    (tmp_path / "f" / "d").mkdir()
    add = InotifyFD.add_callback

    def limited(self: InotifyFD, path: bytes, *args: object) -> int:
        if path.endswith(b"/d"):
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        return add(self, path, *args)

    monkeypatch.setattr(InotifyFD, "add_callback", limited)
    watch = WatchdogWatcher().watch(os.fsencode(tmp_path / "f"), hints.put)
    assert not watch.live
    assert "max_user_watches" in watch.problem
    hints.until(None)
    watch.close()


def test_a_root_that_goes_away(tmp_path: Path, hints: Hints) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    watch = WatchdogWatcher().watch(os.fsencode(folder), hints.put)
    folder.rmdir()
    hints.until(None)
    assert not watch.live
    started = time.monotonic()
    watch.close()
    watch.close()
    assert time.monotonic() - started < LIMIT


def test_roots_that_cannot_be_watched(tmp_path: Path, hints: Hints) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        WatchdogWatcher().watch(os.fsencode(tmp_path / "none"), hints.put)
    with pytest.raises(NotADirectoryError):
        WatchdogWatcher().watch(os.fsencode(tmp_path / "file"), hints.put)


def test_nothing_is_hinted_after_closing(watched: Path) -> None:
    heard: list[Hint] = []
    watch = WatchdogWatch(os.fsencode(watched), heard.append)
    watch.start()
    watch.close()
    (watched / "x").touch()
    assert heard == []
    assert not watch.live
