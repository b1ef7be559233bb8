"""Ignore patterns agree with git, on any bytes a name can have."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.model.ignore import MAX_BYTES, MAX_PATTERNS, IgnoreMatcher
from p2psync.model.paths import ancestors


@pytest.mark.parametrize(
    "path",
    [
        ".DS_Store", "a/.DS_Store", "Thumbs.db", "d/desktop.ini", ".a.txt.swp", "notes~", ".#lock", "#auto#", "~$x",
        ".~lock.x.odt#", ".nfs00000001deadbeef", ".fuse_hidden0001", "x.part", "x.crdownload", "d/~WRD0001.tmp",
    ],
)  # fmt: skip
def test_litter_is_ignored_and_can_be_taken_back(path: str) -> None:
    assert IgnoreMatcher().ignored(path.encode(), False)
    assert not IgnoreMatcher(b"!*").ignored(path.encode(), False)


@pytest.mark.parametrize(
    "path",
    ["a.tmp", "a.swf", ".a.swf", "x.bak", "d/lost+found", ".config", "part", "#1.txt", ".nfs", "C#"],
)
def test_what_may_be_somebody_s_file_is_not(path: str) -> None:
    assert not IgnoreMatcher().ignored(path.encode(), False)


def test_directories() -> None:
    matcher = IgnoreMatcher(b"build/\n/top\na/*/c\n!keep\nkeep/no\n")
    assert matcher.ignored(b"build", True)
    assert not matcher.ignored(b"build", False)
    assert matcher.prune(b"x/build")
    assert matcher.ignored(b"x/build/keep", False), "nothing below an ignored directory can be taken back"
    assert matcher.ignored(b"top", False)
    assert not matcher.ignored(b"x/top", False)
    assert matcher.ignored(b"a/b/c/d", False)
    assert not matcher.ignored(b"a/c", False)
    assert matcher.ignored(b"keep/no", False)
    assert matcher.ignored(b"$RECYCLE.BIN/x", False)
    assert matcher.ignored(b".Trash-1000/files/x", False)


def test_names_are_compared_in_one_form_and_need_not_be_utf8() -> None:
    matcher = IgnoreMatcher("caf\u00e9\n".encode() + b"\xff*\n")
    assert matcher.ignored("cafe\u0301".encode(), False)
    assert matcher.ignored(b"d/\xffx", False)
    assert not matcher.ignored(b"d/\xfex", False)


def test_bad_lines_are_named_and_the_others_hold() -> None:
    matcher = IgnoreMatcher(b"\xef\xbb\xbfa\r\n# [\n!\n[z-a]\n\n" + b"*a" * 40 + b"\nb")
    assert [e.line for e in matcher.errors] == [3, 4, 6]
    assert all(e.problem for e in matcher.errors)
    assert matcher.ignored(b"a", False)
    assert matcher.ignored(b"b", False)


def test_size_and_number_are_bounded() -> None:
    assert IgnoreMatcher(b"x" * (MAX_BYTES + 1)).errors
    matcher = IgnoreMatcher(b"\n".join(b"n%d" % i for i in range(MAX_PATTERNS + 3)))
    assert len(matcher.errors) == 3


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_an_ignore_file(text: bytes) -> None:
    matcher = IgnoreMatcher(text)
    for path in (b"a", b"a/b", b"\xff/*"):
        matcher.ignored(path, False)


@pytest.mark.parametrize(
    "line",
    [
        b"*a*a*ac",
        b"**/*a*[ab]*a/**/*?*a*ac",
        b"*a*a*a/*a*a*ac",
        b"**/a*/**/a*/**/*a*b",
        b"**/a/a/**/*a/**/ac",
        b"***/**/**/**c*/",
    ],
)
def test_a_pattern_of_many_stars_is_not_slow(line: bytes) -> None:
    matcher = IgnoreMatcher(line)
    assert not matcher.errors
    for path in (b"a" * 254 + b"d", b"/".join([b"a" * 254] * 15) + b"/d", b"/".join([b"a" * 30] * 120) + b"/d"):
        began = time.process_time()
        assert not matcher.ignored(path, False)
        assert time.process_time() - began < 0.1


def test_a_set_matches_no_slash() -> None:
    matcher = IgnoreMatcher(b"p/x[!b]c\np/x[+-0]d\n")
    assert not matcher.ignored(b"p/x/c", False)
    assert not matcher.ignored(b"p/x/d", False)
    assert matcher.ignored(b"p/x.c", False)
    assert matcher.ignored(b"p/x.d", False)


def test_a_scan_is_not_dominated_by_it() -> None:
    matcher = IgnoreMatcher(b"node_modules/\n*.pyc\n__pycache__/\n/dist\n*.log\n!keep.log\n")
    paths = [b"dir%03d/sub%02d/some-file-name-%d.txt" % (i % 100, i % 17, i) for i in range(20_000)]
    begin = time.perf_counter()
    assert not any(matcher.ignored(p, False) for p in paths)
    assert time.perf_counter() - begin < 1.0


piece = st.sampled_from(["a", "b", "*", "?", "a*", "*b", "[ab]", "**", "*a*", "*?*b", "a[!b]*", "*[!a]b*", "[]a]*[b]*"])
pattern = st.builds(
    lambda bang, lead, parts, tail: bang + lead + "/".join(parts) + tail,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/"]),
    st.lists(piece, min_size=1, max_size=5),
    st.sampled_from(["", "/"]),
)
FILES = [f"{x}{y}" for x in ("", "a/", "b/", "ab/", "a/b/", "b/a/b/") for y in ("f", "af", "fb", "c")]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", root], check=True)
    for file in FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@given(st.lists(pattern, max_size=4))
@settings(max_examples=60, deadline=None)
def test_git_agrees(repository: Path, patterns: list[str]) -> None:
    text = "\n".join(patterns) + "\n"
    (repository / ".gitignore").write_text(text)
    run = subprocess.run(
        ["git", "-C", repository, "check-ignore", "--no-index", "--stdin"],
        input="\n".join(FILES),
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(repository), "GIT_CONFIG_NOSYSTEM": "1"},
        check=False,
    )
    matcher = IgnoreMatcher(text.encode())
    mine = {f for f in FILES if matcher.ignored(f.encode(), False)}
    assert mine == set(run.stdout.split()), patterns
    for file in FILES:
        assert matcher.ignored(file.encode(), False) >= any(matcher.prune(a) for a in ancestors(file.encode()))
