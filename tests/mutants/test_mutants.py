"""The planted bugs themselves: each can still be planted, and a test that should notice one does."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.mutants.__main__ import run
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Edit, Mutant
from tests.mutants.scratch import HERE, BrokenRun

CHEAP = ("symlink-out-of-the-folder", "brake-counts-each-batch-alone")
HARMLESS = Mutant(
    "harmless",
    "A comment is no bug.",
    (Edit("p2psync/reconcile/clash.py", '    if target.startswith(b"/"):\n', '    if target[:1] == b"/":\n'),),
    ("tests/reconcile/test_clash.py::test_symlinks_that_lead_out",),
)


def test_every_mutant_has_a_name_and_a_story() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 40
    assert all(mutant.bug.endswith(".") and len(mutant.bug) > 30 for mutant in MUTANTS)
    assert all(mutant.edits and mutant.tests for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies_and_compiles(mutant: Mutant) -> None:
    """The code has moved where this fails: plant the same bug in what it has become."""
    sources: dict[str, str] = {}
    for edit in mutant.edits:
        sources[edit.file] = edit.on(sources.get(edit.file) or (HERE / edit.file).read_text())
    for file, source in sources.items():
        assert ast.unparse(ast.parse(source)) != ast.unparse(ast.parse((HERE / file).read_text()))
        compile(source, file, "exec")


def test_every_selection_names_tests_that_exist() -> None:
    """A selection with another name than any test would make a bug look unnoticed, or the whole run fail."""
    for test in sorted({test for mutant in MUTANTS for test in mutant.tests}):
        file, _, name = test.partition("::")
        functions = {
            node.name
            for node in ast.walk(ast.parse((HERE / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert any(function.startswith("test_") for function in functions), test
        assert not name or name.partition("[")[0] in functions, test


def test_a_bug_is_noticed_and_what_is_none_survives(capsys: pytest.CaptureFixture[str]) -> None:
    planted = [*(mutant for mutant in MUTANTS if mutant.name in CHEAP), HARMLESS]
    before = {edit.file: (HERE / edit.file).read_bytes() for mutant in planted for edit in mutant.edits}
    results = run(planted, jobs=1)
    assert [result.verdict for result in results] == ["killed", "killed", "SURVIVED"]
    assert all(result.killer.startswith("tests/reconcile/") for result in results[:2])
    assert {file: (HERE / file).read_bytes() for file in before} == before, "the working tree is never touched"
    assert "[3/3] harmless: SURVIVED" in capsys.readouterr().err


def test_tests_that_are_red_without_a_bug_prove_nothing() -> None:
    missing = replace(HARMLESS, tests=("tests/reconcile/test_clash.py::test_of_another_world",))
    with pytest.raises(BrokenRun, match="test_of_another_world"):
        run([missing], jobs=1)


def test_an_unknown_name_is_an_error() -> None:
    command = [sys.executable, "-m", "tests.mutants", "no-such-bug"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no-such-bug" in done.stderr
