"""The pages keep their word: links lead somewhere, commands parse, and the tests they name exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from p2psync.cli.main import app

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^(?:\w*\$ )?(p2psync(?: .*)?)$")
NAMED_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
COMMANDS = get_command(app)
USAGE_ERROR = typer.BadParameter.__base__
"""What a command line that cannot be parsed ends in; typer keeps its parser's names to itself."""


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, command line) of every `p2psync …` in a console block."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.splitlines():
                if match := PROMPT.match(line):
                    yield name(page), match[1]


def parse(line: str) -> None:
    """Parse as the command line would, without running anything; USAGE_ERROR when it would be refused."""
    words = shlex.split(line, comments=True)
    command, parent = COMMANDS, None
    while True:
        context = command.make_context(words[0], words[1:], parent)
        if not isinstance(command, TyperGroup) or not context._protected_args:
            return
        label, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command, parent, words = found, context, [label or "", *rest]


LINES = sorted(set(command_lines()))


def test_there_are_commands_to_parse() -> None:
    assert len(LINES) > 20


@pytest.mark.parametrize(("page", "line"), LINES)
def test_commands_parse(page: str, line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["p2psync nonsense", "p2psync status --nonsense", "p2psync restore"])
def test_what_would_be_refused_is_noticed(line: str) -> None:
    with pytest.raises(USAGE_ERROR):
        parse(line)


@cache
def functions_of(file: str) -> frozenset[str]:
    """Names of the test functions in a file below tests/."""
    path = REPOSITORY / "tests" / file
    if not path.exists():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_tests_exist(page: Path) -> None:
    named = NAMED_TEST.findall(page.read_text())
    assert [f"{file}::{test}" for file, test in named if test not in functions_of(file)] == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/security.md"])
def test_claims_name_tests(page: str) -> None:
    assert len(NAMED_TEST.findall((REPOSITORY / page).read_text())) > 25


def problem_codes() -> set[str]:
    """Every code of a problem that the code can raise: literals given to what makes problems, or assigned to `code`."""
    makers = {"raise_problem", "Problem", "ScanProblem", "_problem", "_stop_with"}
    found: list[ast.expr] = []
    for room in ("node", "sync", "workspace"):
        for path in (REPOSITORY / "p2psync" / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Name(id=maker) | ast.Attribute(attr=maker)) if maker in makers:
                        found += node.args[:2]
                    case ast.Assign(targets=[ast.Name(id="code")]):
                        found.append(node.value)
                    case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="code"), *_])], value=ast.Tuple(elts=values)):
                        found.append(values[0])
    codes = {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {code for code in codes if re.fullmatch(r"[a-z]+(-[a-z]+)*", code)}


def test_every_problem_has_its_row() -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    codes = problem_codes()
    assert len(codes) > 20
    assert codes - set(re.findall(r"^\| `([a-z-]+)` \| .* \| .* \|$", page, re.MULTILINE)) == set()
