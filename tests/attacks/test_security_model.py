"""`docs/security.md` names a proof for each promise: the proof has to exist, and no attack may be missing there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tests.support.tables import table

TESTS = Path("tests")
PAGE = Path("docs/security.md").read_text("utf-8")
PROOFS = sorted(set(re.findall(r"`((?:[a-z0-9_]+/)+test_\w+\.py(?:::\w+)?)`", PAGE)))


@cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@table("proof", PROOFS)
def test_proof_exists(proof: str) -> None:
    path, _, name = proof.partition("::")
    assert not name or name in names_in(TESTS / path)
    assert (TESTS / path).is_file()


def test_each_attack_module_proves_a_promise() -> None:
    proving = {proof.partition("::")[0] for proof in PROOFS}
    supporting = {"attacks/test_security_model.py", "attacks/test_unverified_in_processes.py"}
    assert {str(path.relative_to(TESTS)) for path in (TESTS / "attacks").glob("test_*.py")} == supporting | {
        proof for proof in proving if proof.startswith("attacks/")
    }


def test_each_row_has_a_proof() -> None:
    section = PAGE.partition("## Promises")[2].partition("## What is the operator's job")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert rows
    assert [row for row in rows if not re.search(r"`(?:[a-z0-9_]+/)+test_\w+\.py", row)] == []
