"""Which paths a device leaves alone: `.p2psyncignore`, in the syntax of gitignore, after defaults for litter.

The file's lines come after the defaults, so `!*.part` takes a default back. As with git, nothing below an ignored
directory can be taken back. A changed ignore file never means that anything was deleted; that is the caller's to keep.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from p2psync.model.paths import name, parent

IGNORE_FILE = b".p2psyncignore"

DEFAULTS = (
    # Desktops and file systems.
    ".DS_Store",
    "/.Spotlight-V100/",
    "/.fseventsd/",
    "/.Trashes/",
    "/.TemporaryItems/",
    "/.DocumentRevisions-V100/",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$RECYCLE.BIN/",
    "/System Volume Information/",
    ".Trash-[0-9]*/",
    "/lost+found/",
    ".fuse_hidden*",
    ".nfs[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]*",
    # Editors: swap, lock, backup and owner files.
    ".*.sw[nopx]",
    "*~",
    ".#*",
    "\\#*#",
    "~$*",
    "~*.tmp",
    ".~lock.*#",
    ".*.kate-swp",
    ".goutputstream-*",
    # Downloads that are not finished.
    "*.part",
    "*.crdownload",
)
"""Names that are litter beyond doubt. `*.tmp` is not: people name files so."""

MAX_BYTES = 256 * 1024
MAX_PATTERNS = 2000
MAX_STARS = 3
"""Stars in one component, and `**` in one pattern: more would let a pattern make every scan crawl."""

_SET = re.compile(r"\[[!^]?\]?(?:\\.|[^\]\\])*?(?:\[|--|&&|~~|\|\|)")
"""Sets that gitignore, pathspec and Python's expressions read differently (POSIX classes, set operations)."""

# As pathspec writes them; a slash cannot stand in a set, so that `[^/]` is always its own.
_STAR = r"\[\^/\]\*"
_WILD = re.compile(r"(\\.|\[\^/\])|(\[\^?\]?[^\]]*\])", re.DOTALL)
_ONE = r"(?:\\.|\(\?!/\)\[\^?\]?[^\]]*\]|\[\^/\](?!\*)|[^\\\[\]/()*+?|^$.])"
_STARS = re.compile(f"(?:{_STAR}){{2,}}")
_INNER = re.compile(f"{_STAR}({_ONE}+)(?={_STAR})", re.DOTALL)

_CACHE = 1 << 16
_ANYWHERE = "^(?:.+/)?"
_BETWEEN = "(?:/.+)?"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that has no effect, and why. Lines count from 1."""

    line: int
    text: str
    problem: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pattern: `expression` must match a name when `by_name`, else a path, with a slash after a directory."""

    include: bool
    by_name: bool
    expression: str
    regex: re.Pattern[str]


class IgnoreMatcher:
    """Matches paths against one ignore file. `errors` lists the lines that could not be understood."""

    def __init__(self, text: bytes = b"") -> None:
        self.errors: list[BadLine] = []
        if len(text) > MAX_BYTES:
            self.errors.append(BadLine(1, "", f"the file has {len(text)} bytes; {MAX_BYTES} are read at most: none is"))
            text = b""
        rules: list[_Rule] = []
        for number, line in enumerate(_normal(text.removeprefix(b"\xef\xbb\xbf")).split("\n"), 1):
            rule = self._parse(number, line.removesuffix("\r"), len(rules))
            if rule is not None:
                rules.append(rule)
        rules = [_rule(line) for line in DEFAULTS] + rules
        self._rules = rules[::-1]
        # Nearly every path matches no pattern at all: one look at its name and one at its path tell.
        self._by_name = _union(rule.expression for rule in rules if rule.include and rule.by_name)
        self._by_path = _union(rule.expression for rule in rules if rule.include and not rule.by_name)
        self._pruned: dict[bytes, bool] = {b"": False}

    def ignored(self, path: bytes, is_directory: bool) -> bool:
        """Whether `path` (relative, raw bytes) is left alone, by itself or for a directory above it."""
        return self.prune(path) if is_directory else self.prune(parent(path)) or self._matches(path, False)

    def prune(self, directory: bytes) -> bool:
        """Whether a directory is left alone with everything below it, so that it need not even be listed."""
        known = self._pruned.get(directory)
        if known is None:
            if len(self._pruned) >= _CACHE:
                self._pruned = {b"": False}
            known = self.prune(parent(directory)) or self._matches(directory, True)
            self._pruned[directory] = known
        return known

    def _matches(self, path: bytes, is_directory: bool) -> bool:
        """Whether the last pattern that names this very path, not one above it, is one that ignores."""
        slash = "/" if is_directory else ""
        own, whole = _normal(name(path)) + slash, _normal(path) + slash
        if not self._by_name.fullmatch(own) and not self._by_path.fullmatch(whole):
            return False
        for rule in self._rules:
            if rule.regex.fullmatch(own if rule.by_name else whole):
                return rule.include
        return False

    def _parse(self, number: int, line: str, count: int) -> _Rule | None:
        if not line.strip() or line.startswith("#"):
            return None
        problem = _unfit(line) or ("too many patterns" if count >= MAX_PATTERNS else None)
        if problem is None:
            try:
                return _rule(line)
            except (ValueError, re.error):
                problem = "this is not a pattern, or one that can match nothing"
        self.errors.append(BadLine(number, line, problem))
        return None


def _normal(raw: bytes) -> str:
    """Text to match: NFC, so that a pattern typed on one system matches a name made on another."""
    if raw.isascii():
        return raw.decode("ascii")
    return unicodedata.normalize("NFC", raw.decode("utf-8", "surrogateescape"))


def _unfit(line: str) -> str | None:
    parts = line.split("/")
    if sum(p == "**" for p in parts) > MAX_STARS or any(p.count("*") > MAX_STARS for p in parts):
        return f"more than {MAX_STARS} stars"
    if _SET.search(line):
        return "a set in brackets that holds [, --, &&, ~~ or || has no agreed meaning"
    return None


def _rule(line: str) -> _Rule:
    """Translate one pattern. ValueError or re.error when it is none.

    pathspec's expressions also match everything below what a pattern names; matching whole paths, ours must not.
    """
    pattern = GitIgnoreSpecPattern(line)
    if pattern.include is None or pattern.regex is None:
        raise ValueError(line)
    bare = line.rstrip(" ")
    expression = re.sub(r"\(\?P<\w+>", "(?:", pattern.regex.pattern)
    if expression == ".":
        expression = ".+"
    elif expression == "(?:/)":
        expression = ".*/"
    elif expression == "/":
        expression = ".+/.+"
    elif bare.endswith("/**/"):
        expression = expression.removesuffix("(?:/)") + "/.+/"
    elif bare.endswith("/**"):
        expression += ".+"
    by_name = "/" not in bare.rstrip("/")
    if by_name:
        expression = expression.removeprefix(_ANYWHERE)
    expression = _tamed(expression)
    return _Rule(pattern.include, by_name, expression, re.compile(expression, re.DOTALL))


def _tamed(expression: str) -> str:
    """The same, but that sets match no slash either, as in git, and that nothing is tried in vain.

    What stands between two stars of a component, or between two `**` of a path, needs to be tried at its first place
    only: all combinations of places would let one line make every scan crawl.
    """
    expression = _WILD.sub(lambda m: m[0] if m[1] else f"(?!/){m[2]}", expression)
    expression = _STARS.sub("[^/]*", expression)
    expression = _INNER.sub(r"(?:(?!\1)[^/])*\1", expression)
    first, *inner = expression.split(_BETWEEN)
    if not inner:
        return expression
    last = inner.pop()
    if first.startswith(_ANYWHERE):
        first = "^" + _first_place(first.removeprefix(_ANYWHERE))
    return "".join((first, *(f"/{_first_place(part[1:])}" for part in inner), _BETWEEN, last))


def _first_place(components: str) -> str:
    return f"(?:(?!{components}/)[^/]+/)*{components}"


def _union(expressions: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{e})" for e in expressions), re.DOTALL)
