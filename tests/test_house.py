"""The house keeps its measures: few modules at the root, short modules and functions, no circle, one way through."""

from __future__ import annotations

import ast
import graphlib
import itertools
import sys
from collections import Counter
from pathlib import Path

from cri.config import RunConfig, TrainConfig
from cri.training.runs import train_run

ROOT = Path(__file__).parent.parent
TREES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "cri").rglob("*.py"))}


def module_name(path: Path) -> str:
    """`cri.tasks.base` for cri/tasks/base.py, `cri.tasks` for its `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): tree for path, tree in TREES.items()}


def imports(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports anywhere, those inside functions and for types alone too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(MODULES)) | ({node.module} if inner - set(MODULES) else set())
    return {name for name in found if name.split(".")[0] == "cri"}


def test_at_most_twelve_modules_at_the_root():
    assert len(list((ROOT / "cri").glob("*.py"))) <= 12


def test_no_module_over_400_lines_and_no_function_over_80():
    modules = {str(path): len(path.read_text().splitlines()) for path in TREES}
    functions = {
        f"{path}: {node.name}": node.end_lineno - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert len(functions) > 500
    assert {name: n for name, n in modules.items() if n > 400} == {}
    assert {name: n for name, n in functions.items() if n > 80} == {}


def test_every_import_is_of_a_module_that_exists_and_none_closes_a_circle():
    arrows = {name: imports(tree) for name, tree in MODULES.items()}
    assert {(name, other) for name, others in arrows.items() for other in others - set(MODULES)} == set()
    list(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError, which names the circle


def test_a_runs_config_is_read_on_one_way_and_each_thing_prepared_once(tmp_path, monkeypatch):
    """From `train_run` to the finished folder: where the config is read, and how often its parts are made."""
    config = RunConfig(task_params={"size": 12}, split_params={"half_side": 2}, train=TrainConfig(steps=1))
    reads: dict[tuple[str, int, str], None] = {}  # module, line, field: in order, a line that is read again counts once
    for cls in (RunConfig, TrainConfig):

        def noted(self, name, plain=cls.__getattribute__):
            frame = sys._getframe(1)
            module = frame.f_globals["__name__"]
            if module.startswith("cri.") and module != "cri.config" and not name.startswith("__"):
                reads[module, frame.f_lineno, name] = None
            return plain(self, name)

        monkeypatch.setattr(cls, "__getattribute__", noted)
    made: Counter[str] = Counter()

    def count(frame, event, arg):
        if event == "call" and frame.f_globals.get("__name__", "").startswith("cri."):
            made[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        train_run(config, tmp_path, progress=False)
    finally:
        sys.setprofile(None)
    stays = [module for module, _ in itertools.groupby(module for module, _, _ in reads)]
    assert len(stays) <= 5, stays
    once = ("make_task", "make_format", "make_split", "build_tokenizer", "encode", "build_model")
    assert {name: made[name] for name in once} == dict.fromkeys(once, 1)
