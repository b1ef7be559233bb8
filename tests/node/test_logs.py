"""Logs: secrets never appear, foreign text cannot fake lines, and filtered messages are cheap."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from p2psync.node.logs import MAX_VALUE_CHARS, configure_logging, get_logger, printable, redact

SECRET = "hunter2-4711"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = handlers, level


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    get_logger("p2psync.test").info("something happened", path=b"caf\xc3\xa9/\xff", count=3)
    out, err = capsys.readouterr()
    assert out == ""
    line = json.loads(err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "something happened",
        "level": "info",
        "logger": "p2psync.test",
        "path": "café/\\xff",
        "count": 3,
    }


def test_auto_is_json_when_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    get_logger("x").warning("w")
    assert json.loads(capsys.readouterr().err)["event"] == "w"


def test_human_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure_logging()
    get_logger("x").info("hello", peer="ABCDEFG")
    text = capsys.readouterr().err
    assert "hello" in text
    assert "\x1b[" in text
    assert text.count("\n") == 1


def test_level_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    get_logger("a").info("no")
    configure_logging("warning", "json", verbose=True)
    get_logger("b").debug("yes")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["yes"]


@pytest.mark.parametrize("form", ["json", "human"])
def test_secrets_are_never_printed(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", form)
    structlog.contextvars.bind_contextvars(bearer_token=SECRET)
    get_logger("x").bind(password=SECRET).info(
        "e",
        key=SECRET,
        folderKey=SECRET,
        PASSPHRASE=SECRET,
        pairing_code=SECRET,
        nested={"deep": [{"client_secret": SECRET.encode()}]},
        exit_code=1,
        keyboard="kept",
    )
    text = capsys.readouterr().err
    assert SECRET not in text
    assert "exit_code" in text
    assert "kept" in text
    assert text.count("[redacted]") == 7


@pytest.mark.parametrize("form", ["json", "human"])
@given(st.text())
def test_foreign_text_stays_on_one_line(form: str, text: str) -> None:
    event: Any = printable(None, "info", redact(None, "info", {"name": text}))
    assert form == "json" or str(event["name"]).isprintable()
    assert "\n" not in json.dumps(event)


def test_terminal_escapes_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "human")
    get_logger("x").info("offer", label="a\x1b]0;pwned\x07\nfake line")
    text = capsys.readouterr().err
    assert "\x07" not in text
    assert "\x1b" not in text
    assert text.count("\n") == 1


def test_long_values_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    get_logger("x").info("e", text="a" * 100_000, raw=b"b" * 100_000)
    assert len(capsys.readouterr().err) < 2 * MAX_VALUE_CHARS


def test_exceptions_and_library_warnings_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("x").exception("failed")
    logging.getLogger("library").warning("lost %s", "packets")
    logging.getLogger("library").info("noise")
    logging.getLogger("library").warning("bad %d", "format")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "ValueError: broken" in lines[0]["exception"]
    assert [(line["logger"], line["event"]) for line in lines[1:]] == [
        ("library", "lost packets"),
        ("library", "bad %d"),
    ]


def test_a_filtered_message_is_cheap() -> None:
    configure_logging("info", "json")
    log = get_logger("x")
    log.debug("first use")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(2000):
            log.debug("nothing", path=b"x")
        times.append((time.perf_counter() - start) / 2000)
    assert min(times) < 5e-6
