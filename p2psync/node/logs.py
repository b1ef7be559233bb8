"""One set-up of structured logging: readable lines on a terminal, JSON lines elsewhere, and no secret in either."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

REDACTED = "[redacted]"
MAX_VALUE_CHARS = 2000
"""Longer texts are cut: much of what is logged was said by others."""

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_SECRET_WORDS = {"token", "key", "keys", "secret", "secrets", "passphrase", "password", "code", "psk", "authorization"}
_HARMLESS = {"exit_code", "status_code", "error_code", "public_key"}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class _StderrLogger:
    """Writes to whatever `sys.stderr` is at that moment, one call per line so that lines never mix."""

    def __init__(self, name: str = "p2psync") -> None:
        self.name = name

    def msg(self, message: str) -> None:
        sys.stderr.write(f"{message}\n")

    debug = info = warning = error = critical = msg


class _Forward(logging.Handler):
    """Carries records of libraries that use the standard logging module into ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        structlog.get_logger(record.name).log(max(record.levelno, logging.DEBUG), text[:MAX_VALUE_CHARS])


def configure_logging(level: str = "info", form: str = "auto", *, verbose: bool = False) -> None:
    """Send every log message of this process to stderr, from `level` up.

    Args:
        level: a key of `LEVELS`.
        form: "human", "json", or "auto" (human when stderr is a terminal).
        verbose: show everything, whatever `level` says.

    A logger that has already written keeps the level it had then: call this once, before work begins.
    """
    threshold = logging.DEBUG if verbose else LEVELS[level]
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        redact,
    ]
    if human:
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            printable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            ),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=True, default=str),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=True,
    )
    # Libraries tell us of trouble only: their debug output is theirs.
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_Forward()], force=True)
    # It warns of each interface without multicast, such as loopback; p2psync.net.discovery says what matters.
    logging.getLogger("zeroconf").setLevel(logging.WARNING if verbose else logging.ERROR)


def quiet_unless_configured() -> None:
    """For a program that embeds a node and says nothing about logging: trouble only, and never on standard output."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING), logger_factory=_StderrLogger
        )


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger for the module `name`; costs next to nothing where its level is filtered out."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the value of every key that is named like a secret, at any depth, and cut very long texts."""
    return {key: _clean(key, value) for key, value in event.items()}


def printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: a name from another device must not steer the terminal or fake a line."""
    return {
        key: value if not isinstance(value, str) or value.isprintable() or key == "exception" else ascii(value)[1:-1]
        for key, value in event.items()
    }


def _clean(key: str, value: Any) -> Any:
    if key not in _HARMLESS and not _SECRET_WORDS.isdisjoint(word.lower() for word in _WORDS.findall(key)):
        return REDACTED
    match value:
        case str() if len(value) > MAX_VALUE_CHARS:
            return f"{value[:MAX_VALUE_CHARS]}… ({len(value)} characters)"
        case bytes() | bytearray() | memoryview():
            text = bytes(value[: MAX_VALUE_CHARS // 4]).decode("utf-8", "backslashreplace")
            return text if len(value) <= MAX_VALUE_CHARS // 4 else f"{text}… ({len(value)} bytes)"
        case Mapping():
            return {str(inner): _clean(str(inner), item) for inner, item in value.items()}
        case Sequence() if not isinstance(value, str):
            return [_clean("", item) for item in value]
        case _:
            return value
