"""The ignore file of a folder: read again when it changes, and what it no longer ignores is worked on again."""

from __future__ import annotations

from p2psync.errors import EscapeError
from p2psync.index.writer import Writer
from p2psync.model.ignore import IGNORE_FILE, MAX_BYTES, IgnoreMatcher
from p2psync.model.paths import RelPath
from p2psync.sync.context import FolderContext


class Ignores:
    """Keeps `FolderContext.ignore` what `.p2psyncignore` says."""

    def __init__(self, context: FolderContext) -> None:
        self._context = context
        self._text = b""

    def load(self) -> None:
        """Read `.p2psyncignore` again; entries it no longer ignores are worked on again. Blocks."""
        context = self._context
        try:
            file = context.root.open(IGNORE_FILE)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, EscapeError):
            text = b""
        except OSError as error:
            # What it says holds on: to publish what a person wanted to keep would be worse.
            why = f"{IGNORE_FILE.decode()} cannot be read: {error.strerror}; what it said before still counts"
            context.raise_problem("ignore", why, "make it readable")
            return
        else:
            try:
                buffer = bytearray(MAX_BYTES)
                text = bytes(buffer[: file.pread_into(memoryview(buffer), 0)])
            finally:
                file.close()
        if text != self._text:
            context.ignore = IgnoreMatcher(text)
        if context.ignore.errors:
            bad = context.ignore.errors[0]
            context.raise_problem(
                "ignore", f"{IGNORE_FILE.decode()}, line {bad.line}: {bad.text!r}: {bad.problem}", "correct that line"
            )
        else:
            context.clear_problem("ignore")
        if text == self._text:
            return

        def release(writer: Writer) -> None:
            for problem in writer.problems():
                if problem.held and problem.code == "ignored":
                    writer.release(RelPath(problem.path))

        context.index.write(release)
        self._text = text
