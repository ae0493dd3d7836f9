"""The size and shape of modules, functions and classes; and cycles of imports, which import-linter leaves alone."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE: Final = Path(__file__).parents[1] / "proxy"
MODULE_LINES_MAX: Final = 400
FUNCTION_LINES_MAX: Final = 50
PARAMETERS_MAX: Final = 12
PROTOCOLS_MAX: Final = 14

SETTINGS: Final = frozenset({"Derive", "Fetch"})
"""Sections of the configuration: a table of settings that operators know is one class, one field a setting."""

DECODED: Final = frozenset({"RuleTable", "_StoredRecord"})
"""Forms of a flat table or file: only msgspec makes them, field by field; no code of ours calls their constructor."""

FILES: Final = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


@cache
def _trees() -> dict[str, ast.Module]:
    """Parse every module, once, and not while pytest collects: every process of pytest-xdist collects all tests."""
    return {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def _nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    return ((module, node) for module, tree in _trees().items() for node in ast.walk(tree) if isinstance(node, kinds))


def _base_names(node: ast.ClassDef) -> set[str]:
    parts = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return {part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in parts}


def _is_data_class(node: ast.ClassDef) -> bool:
    by_decorator = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return by_decorator or bool(_base_names(node) & {"Struct", "NamedTuple", "Section"})


def _parameters(node: ast.ClassDef) -> int:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return len(member.args.args) + len(member.args.kwonlyargs) - 1
    if not _is_data_class(node):
        return 0
    fields = [member for member in node.body if isinstance(member, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(field.annotation) for field in fields)


def test_modules_are_short() -> None:
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: number for name, number in lines.items() if number > MODULE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    long = {}
    for module, node in _nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert node.end_lineno is not None
        if (number := node.end_lineno - node.lineno + 1) > FUNCTION_LINES_MAX:
            long[f"{module}.{node.name}"] = number
    assert long == {}


def test_constructors_have_few_parameters() -> None:
    wide = {}
    for module, node in _nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        if node.name not in DECODED | SETTINGS and (number := _parameters(node)) > PARAMETERS_MAX:
            wide[f"{module}.{node.name}"] = number
    assert wide == {}


def test_protocols_are_few() -> None:
    protocols = [
        f"{module}.{node.name}"
        for module, node in _nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef) and "Protocol" in _base_names(node)
    ]
    assert len(protocols) <= PROTOCOLS_MAX, protocols


def _imports() -> dict[str, set[str]]:
    """Return which modules each module imports, for types too and within functions."""
    imports: dict[str, set[str]] = {name: set() for name in FILES}
    for module, node in _nodes(ast.ImportFrom):
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            target = whole if whole in FILES else str(node.module)
            if target in FILES and target != module:
                imports[module].add(target)
    return imports


def test_imports_have_no_cycle() -> None:
    imports = _imports()
    while free := {name for name, targets in imports.items() if not targets}:
        imports = {name: targets - free for name, targets in imports.items() if name not in free}
    assert imports == {}, "each of these modules is part of a cycle of imports, or imports one that is"


@pytest.mark.parametrize("name", sorted(DECODED))
def test_no_code_calls_the_constructor_of_a_decoded_form(name: str) -> None:
    calls = [
        module
        for module, node in _nodes(ast.Call)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]
    assert calls == []
