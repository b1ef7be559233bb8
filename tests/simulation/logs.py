"""What nodes log, as part of the story: it is traced, nothing is printed, and a bug that a node survived is found."""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NoReturn

import structlog

from p2psync.errors import P2PSyncError
from p2psync.testing import Violation

_FORESEEN = (OSError, P2PSyncError)
"""What a node may give up on and try again. Any other exception that it logs is a bug."""


class LogBook:
    """The log of all nodes of one story."""

    def __init__(self, note: Callable[..., None]) -> None:
        """`note` counts and traces an event, as `Story.note`."""
        self._note = note
        self.violations: list[Violation] = []

    def __call__(self, _logger: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        """A structlog processor: takes the entry and lets it go no further."""
        error = event.pop("exc_info", None)
        fields = {key: value for key, value in event.items() if key != "event"}
        what = ": ".join(str(event[key]) for key in ("event", "code") if key in event)
        self._note("log", f"{method}: {what}", **fields)
        for leaf in _leaves(error):
            if not isinstance(leaf, _FORESEEN):
                self.violations.append(Violation("bug", f"{event['event']}: {leaf!r} at {_origin(leaf)}"))
        raise structlog.DropEvent


@contextmanager
def captured(book: LogBook) -> Iterator[None]:
    """Give `book` everything that is logged meanwhile."""
    before = structlog.get_config()
    structlog.configure(
        processors=[book],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _leaves(error: object) -> Iterator[BaseException]:
    match error:
        case BaseExceptionGroup():
            for inner in error.exceptions:
                yield from _leaves(inner)
        case BaseException():
            yield error


def _origin(error: BaseException) -> str:
    """Where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
