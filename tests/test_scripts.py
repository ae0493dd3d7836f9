"""The scripts, the hooks before a commit and CI run the same checks."""

from __future__ import annotations

import re

from tests.support.program import ROOT

CHECK = (ROOT / "scripts" / "check").read_text("utf-8")
CHECKS = set(re.findall(r"^([a-z-]+)\(\) \{", CHECK, re.MULTILINE)) - {"dev"}


def test_each_hook_runs_a_check() -> None:
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"), re.MULTILINE)
    assert {f"scripts/check {check}" for check in CHECKS} == set(hooks)


def test_default_checks_are_all_that_the_suite_does_not_run() -> None:
    (chosen,) = re.findall(r"set -- ([a-z -]+)$", CHECK, re.MULTILINE)
    assert {*chosen.split(), "words"} == CHECKS


def test_ci_runs_the_scripts_alone() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["scripts/install-test-programs", "scripts/test", "scripts/check"]
    assert all((ROOT / command).is_file() for command in commands)
