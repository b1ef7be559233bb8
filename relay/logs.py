"""Logs: one JSON line per message on stderr, and nothing in it that the operator should not see."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

REDACTED: Final = "[redacted]"
MAX_VALUE_CHARS: Final = 2000
_SECRET_WORDS: Final = frozenset({"authorization", "email", "key", "login_key", "mail", "password", "secret", "token"})
_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


_encode_access = msgspec.json.Encoder().encode


class _Stderr:
    """Writes to whatever `sys.stderr` is at that moment, one call per line so that lines never mix."""

    def __init__(self, name: str = "relay") -> None:
        self.name = name

    def msg(self, message: str) -> None:
        sys.stderr.write(f"{message}\n")

    debug = info = warning = error = critical = msg


class _Forward(logging.Handler):
    """Carries what libraries say through the standard logging module; they speak of trouble only."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, record.getMessage()[:MAX_VALUE_CHARS])


def configure_logging(level: str) -> None:
    """Send every message from `level` up to stderr; call it once, before work begins."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_logger_name,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact,
            structlog.processors.JSONRenderer(default=repr),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Stderr,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger for the module `name`."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says of a request; nothing in it is as the client sent it."""

    method: str
    route: str
    """Its pattern."""
    status: int
    ms: float
    received: int
    sent: int
    network: str
    account: str
    """The beginning of its ID."""
    timestamp: datetime
    event: str = "request"
    logger: str = "relay.access"
    level: str = "info"


def log_access(access: Access) -> None:
    """Write one line, as a logger does; the processors of structlog take ten times as long."""
    _Stderr().msg(_encode_access(access).decode())


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _clean(key, value) for key, value in event.items()}


def _clean(key: str, value: Any) -> Any:
    if key in _SECRET_WORDS:
        return REDACTED
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARS:
        # The end of a traceback says more than its beginning.
        return f"…{value[-MAX_VALUE_CHARS:]}"
    return value
