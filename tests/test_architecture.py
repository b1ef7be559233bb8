"""The house rules that import-linter cannot express: what pure rooms may touch, how modules present themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PURE_ROOMS = ("crypto", "membership", "model", "protocol", "reconcile", "transfer")
EFFECTS = {
    "asyncio", "concurrent", "lmdb", "multiprocessing", "os", "random", "secrets", "select", "shutil", "signal",
    "socket", "ssl", "subprocess", "tempfile", "threading", "time", "trio", "urllib.request", "uuid", "watchdog",
    "zeroconf",
}  # fmt: skip
"""Modules through which time, chance, threads or the outside world would enter a pure room."""
IMPURE_CALLS = {"generate", "generate_key", "now", "today", "urandom", "utcnow"}
"""Methods of otherwise pure libraries that read the clock or draw random numbers."""
IMPURE_BUILTINS = {"breakpoint", "id", "input", "open", "print"}
RELAY_ROOMS = ("accounts", "blocks", "mailbox")
RELAY_ADAPTERS = {"relay/accounts/mailers.py", "relay/blocks/local.py", "relay/blocks/s3.py"}
"""The rooms of the relay wait and run side by side (trio), but all else comes to them through ports, save for these."""
MAX_LINES = 500

MODULES = sorted(
    path
    for root in ("p2psync", "relay", "benchmarks", "examples", "tests")
    for path in (REPOSITORY / root).rglob("*.py")
)
PURE_MODULES = [
    path for path in MODULES if path.relative_to(REPOSITORY).parts[:2] in {("p2psync", r) for r in PURE_ROOMS}
]


RELAY_MODULES = [
    path
    for path in MODULES
    if path.relative_to(REPOSITORY).parts[:2] in {("relay", room) for room in RELAY_ROOMS}
    and str(path.relative_to(REPOSITORY)) not in RELAY_ADAPTERS
]


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)


def effects(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [module for module in imported(tree) if EFFECTS & {module, module.partition(".")[0]}]
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=attribute)) if attribute in IMPURE_CALLS:
                found.append(f".{attribute}() in line {node.lineno}")
            case ast.Call(func=ast.Name(id=builtin)) if builtin in IMPURE_BUILTINS:
                found.append(f"{builtin}() in line {node.lineno}")
    return found


@pytest.mark.parametrize("path", PURE_MODULES, ids=name)
def test_pure_rooms_touch_no_time_chance_thread_or_outside_world(path: Path) -> None:
    assert effects(path.read_text()) == []


@pytest.mark.parametrize("path", RELAY_MODULES, ids=name)
def test_rooms_of_the_relay_reach_the_world_through_ports(path: Path) -> None:
    allowed = ("trio", ".now() ")  # a service's own `now` asks the port
    found = [effect for effect in effects(path.read_text()) if not effect.startswith(allowed) or "thread" in effect]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["import os", "import os.path", "from time import time", "import trio.socket", "from urllib import request",
     "key = X25519PrivateKey.generate()", "datetime.now()", "open('x')", "id(x)"],
)  # fmt: skip
def test_the_check_itself_sees(source: str) -> None:
    assert effects(source)


def test_the_check_itself_allows() -> None:
    assert (
        effects("import hashlib\nfrom urllib.parse import quote\nfrom p2psync.model import time_text\nx.open()") == []
    )


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_why_it_exists(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name == "__init__.py" and not tree.body and path.is_relative_to(REPOSITORY / "tests"):
        return
    docstring = ast.get_docstring(tree)
    assert docstring, f"{name(path)} has no docstring"
    assert docstring.splitlines()[0].endswith((".", ":")), "the first line is a sentence"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parts[len(REPOSITORY.parts)] in {"p2psync", "relay"}], ids=name
)
def test_modules_are_short_and_finished(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES, "split it where the ideas part"
    for word in ("TODO", "FIXME", "XXX", "NotImplementedError"):
        assert word not in text
