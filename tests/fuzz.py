"""Odd command lines and misused functions: is each a good result, or one line that names the field?

`python -m tests.fuzz [--inputs 2000] [--seed 0] [--part commands|functions]` draws inputs by hypothesis: words for
every command line, through the entry that `cri` has, and arguments for the public functions. Training is cut off
where it would begin, which counts as accepted. A refusal must be a `CriError` of one line that names an argument or
option; on a command line it ends with exit code 2, and leaves no file behind. Every other outcome is a fault: it is
printed, once a kind, and the tool ends with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

COMMAND_SHARE = 0.35
"""Of the inputs: a command line takes longer to parse than a function to refuse its arguments."""


class Begun(BaseException):
    """The work that an input asks for would begin here: it was accepted."""


# --- what is drawn ---

NUMBERS = [-1, 0, 1, 2, 3, 7, 12, 1000, 2**31, 2**63, 2**64, 10**30]
FRACTIONS = [-1.0, 0.0, 1e-300, 0.5, 1.0, 1e300, float("inf"), float("nan")]
WORDS = ["", " ", "x", "addition", "direct", "square", "0", "-1", "nan", "None", "a/b", "..", "{}", "[1", "é", "1e5",
         "addition:direct:number", "addition:direct:number:0,0", "true", "d", "f", "x" * 300, "a\nb"]  # fmt: skip
KNOWN = {
    "task": ["addition", "mod_addition", "chicken_rabbit", "length_addition"],
    "format": ["direct", "scratchpad", "rfft"],
    "split": ["square", "random", "squares", "rows", "scattered", "lengths"],
    "tokenizer": ["number", "digit", "list"],
    "model": ["nano", "d"],
    "device": ["cpu", "auto", "cuda", "meta", "cpu:7"],
    "positions": ["plain", "none", "random", "structured"],
    "bank": ["cpu", "test"],
    "family": ["addition:direct:number", "addition:direct"],
    "out": ["build", "f/x", "d", "f", "p", "new/deep"],
    "runs": ["d", "f", "nothing"],
    "use": ["d", "./d", "f", "nothing"],
    "file": ["answers.jsonl", "f", "p", "d"],
    "cases": ["cases.csv", "d"],
    "scores": ["f", "p", "d", "nothing.npy"],
}
"""Values that fit a field of this name, or nearly."""
PARAMETERS = {
    "task_params": ["size", "base", "modulus", "per_length", "max_digits", "slope_a", "nonsense"],
    "split_params": ["half_side", "center", "n", "seed", "fraction", "centers", "half_sides", "train_max", "nonsense"],
    "position_params": ["window", "newest", "gap", "nonsense"],
}
KEYS = [key for keys in PARAMETERS.values() for key in keys]
JSON = ["3", "1", "12", "null", "true", '"3"', "1.5", "-1", "[5,5]", "[]", "[[1,2]]", "{}", "1e999", "NaN", "abc", "",
        "100000000", "9" * 5000, "[" * 2000]  # fmt: skip


RIGHT = {
    "train": ["--task-params", "size=12", "--split-params", "half_side=2", "--device=cpu"],
    "sweep": ["--task-params", "size=12", "--half-side=2", "--device=cpu"],
    "export": ["--out=build/x", "--task-params", "size=12"],
    "score": ["--task-params", "size=4", "--split-params", "half_side=1"],
}
"""Options that a command needs, or takes; what is drawn comes after them and is read in their place."""


def value_words(name: str) -> st.SearchStrategy[str]:
    known = KNOWN.get(name) or KNOWN.get(name.removesuffix("s")) or []
    odd = st.one_of(
        st.sampled_from(WORDS), st.sampled_from([*map(str, NUMBERS), *map(str, FRACTIONS)]), st.text(max_size=4)
    )
    return st.one_of(st.sampled_from(known), odd) if known else odd


@st.composite
def options(draw: st.DrawFn, fields: list[tuple[str, str]]) -> list[str]:
    """Words for one to three options of a command; lists have up to three values."""
    words: list[str] = []
    params = [field for field in fields if field[0].endswith("_params")] or fields
    chosen = st.lists(st.sampled_from(fields), min_size=1, max_size=3, unique=True)
    one = st.sampled_from(fields).map(lambda field: [field])
    for name, annotation in draw(st.one_of(chosen, one, st.sampled_from(params).map(lambda field: [field]))):
        flag = f"--{name.replace('_', '-')}"
        if name.endswith("_params"):
            pairs = st.builds("{}={}".format, st.sampled_from(PARAMETERS.get(name, KEYS)), st.sampled_from(JSON))
            several = st.lists(st.one_of(pairs, pairs, st.sampled_from(WORDS)), max_size=3)
            words += [flag, *draw(st.one_of(pairs.map(lambda pair: [pair]), pairs.map(lambda pair: [pair]), several))]
        elif annotation == "bool":
            words += draw(st.sampled_from([[flag], [flag.replace("--", "--no-")], [flag, "3"]]))
        elif annotation.startswith("tuple"):
            words += [flag, *draw(st.lists(value_words(name), max_size=3))]
        elif annotation.startswith(("int", "float")):
            pool = NUMBERS if annotation.startswith("int") else [*FRACTIONS, *NUMBERS]
            words += [f"{flag}={draw(st.one_of(st.sampled_from(pool), value_words(name)))}"]
        else:
            words += [f"{flag}={draw(value_words(name))}"]
    return words


def command_fields() -> dict[str, tuple[list[str], list[tuple[str, str]]]]:
    """Command -> first words it may have, and its options as (name, annotation)."""
    from cri.__main__ import COMMANDS, studies
    from cri.config import RunConfig, TrainConfig
    from cri.explore.command import ExploreConfig
    from cri.export import ExportConfig
    from cri.retraining.bench import BenchCommand
    from cri.score import ScoreConfig
    from cri.sweep import SweepConfig
    from cri.train import TrainCommand

    def of(*types: Any) -> list[tuple[str, str]]:
        own = [(f.name, str(f.type)) for t in types for f in dataclasses.fields(t)]
        return [
            (name, kind)
            for name, kind in own
            if not kind.startswith(("Suppress", "RunConfig", "TrainConfig", "Annotated[Pos"))
        ]

    found = {
        "train": ([], of(RunConfig, TrainConfig, TrainCommand)),
        "sweep": ([], of(SweepConfig)),
        "export": (["addition", "mod_addition", "x"], of(ExportConfig)),
        "score": (["answers.jsonl", "f", "p", "d", "nothing"], of(ScoreConfig)),
        "explore": (["d", "nothing", ""], of(ExploreConfig)),
        "bench": ([], of(BenchCommand)),
        "runs": (["ls", "show", "compare", "rm", "x"], [("runs", "Path")]),
    }
    for name in studies():
        presets = importlib.import_module(
            "cri.retraining.config" if name == "retraining_bank" else f"cri.studies.{name}.config"
        ).PRESETS
        found[f"study {name}"] = (["test", *presets, "nonsense"], of(type(next(iter(presets.values())))))
    named = {module.removeprefix("cri.studies.") for module, _ in COMMANDS.values() if module.startswith("cri.studies")}
    assert named <= set(studies()), "a command that no part of the fuzz covers"
    others = {name for name, (module, _) in COMMANDS.items() if not module.startswith("cri.studies")}
    assert others <= set(found), others - set(found)
    return found


# --- command lines ---


def begin(*args: Any, **kwargs: Any) -> Any:
    raise Begun


@contextlib.contextmanager
def nothing_is_trained() -> Iterator[None]:
    """Where trainings, jobs and measurements would begin, `Begun` is raised."""
    from unittest import mock

    places = (
        "cri.training.jobs.Workers.run", "cri.training.runs._train", "cri.evaluation.decoding.decode",
        "cri.studies.performance.study._measure", "cri.studies.representation_geometry.retraining.train_arm",
        "cri.studies.case_effects.calibration.calibrate",
        "cri.models.smollm2.smollm2_folder",
    )  # fmt: skip
    importlib.import_module("cri.interventions")  # first, or it would keep what stands in the place of `decode`
    with contextlib.ExitStack() as stack:
        for place in places:
            module, _, name = place.rpartition(".")
            if module.rpartition(".")[2][0].isupper():
                owner = getattr(importlib.import_module(module.rpartition(".")[0]), module.rpartition(".")[2])
            else:
                owner = importlib.import_module(module)
            stack.enter_context(mock.patch.object(owner, name, begin))
        yield


def furnish(folder: Path) -> None:
    """A file, a folder, a FIFO and an answers file, for options to name."""
    (folder / "d").mkdir(parents=True)
    (folder / "f").write_text("not what is wanted\n")
    os.mkfifo(folder / "p")
    rows = [{"id": i, "output": "1", "task": "addition", "format": "direct"} for i in range(3)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def run_command_line(words: list[str], names: list[str], folder: Path) -> str | None:
    """The outcome as `accepted` or `refused`, or what is wrong."""
    from cri.__main__ import main

    before = tree(folder)
    said, out = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(words)
    except Begun:
        return None
    except SystemExit as stop:
        message = said.getvalue().strip()
        if stop.code in (0, None):
            return None
        if stop.code != 2 or not message.startswith("error: ") or len(message.splitlines()) != 1:
            return f"exit code {stop.code}, stderr of {len(message.splitlines())} lines: {message[-300:]}"
        plain = message.replace("-", "_").lower()
        if not any(name in plain for name in names):
            return f"names no field: {message[:300]}"
        if left := tree(folder) - before:
            return f"left behind: {sorted(left)[:3]}"
        return "refused"
    except BaseException as error:
        return "raised " + _where(error)
    return None


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}cri{os.sep}" in f.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:160]}"


class Found:
    """Counts, and the shortest input of each kind of fault."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, str] = {}

    def add(self, part: str, outcome: str | None, shown: str) -> None:
        kind = outcome if outcome not in (None, "refused") else ""
        self.counts[f"{part} {'faulty' if kind else outcome or 'accepted'}"] += 1
        if kind:
            key = f"{part}: {re.sub(r'[0-9]+', '9', kind)[:110]}"
            if key not in self.faults or len(shown) < len(self.faults[key].splitlines()[-1]):
                self.faults[key] = f"{kind}\n    {shown}"

    def report(self) -> int:
        for text in self.faults.values():
            print("FAULT", text)
        print(json.dumps(dict(sorted(self.counts.items()))))
        return len(self.faults)


def fuzz_commands(n: int, seed: int, found: Found, only: str | None = None) -> None:
    """`n` command lines, of all commands or of one."""
    commands = command_fields()
    if only is not None:
        commands = {only: commands[only]}

    @st.composite
    def lines(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
        name = draw(st.sampled_from(sorted(commands)))
        first, fields = commands[name]
        start = [draw(st.sampled_from([*first, *first[:1] * 4]))] if first and draw(st.integers(0, 5)) else []
        chosen = [*(RIGHT.get(name, []) if draw(st.integers(0, 4)) else []), *draw(options(fields))]
        names = [
            *KEYS,
            "preset",
            "run",
            "task",
            "option",
            "argument",
            "file",
            "line",
            "scores",
            *(f for f, _ in fields),
        ]
        return name, [*name.split(), *start, *chosen], names

    with tempfile.TemporaryDirectory() as temporary, nothing_is_trained(), contextlib.chdir(temporary):

        def once(drawn: tuple[str, list[str], list[str]]) -> None:
            _, words, names = drawn
            here = Path(temporary) / "a" / "b"  # so that .. leads nowhere else
            if not here.exists():
                furnish(here)
            os.chdir(here)
            before = tree(Path(temporary))
            outcome = run_command_line(words, names, Path(temporary))
            found.add("commands", outcome, " ".join(words)[:300])
            if tree(Path(temporary)) != before:
                os.chdir(temporary)
                shutil.rmtree(Path(temporary) / "a")

        _drawn(lines(), n, seed, once)
        os.chdir(temporary)


def _drawn(strategy: st.SearchStrategy[Any], n: int, seed: int, once: Callable[[Any], None]) -> None:
    """Calls `once` with `n` draws."""
    left = n
    while left > 0:

        @hypothesis_seed(seed)
        @settings(
            max_examples=left, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def draw(value: Any) -> None:
            nonlocal left
            if left > 0:
                left -= 1
                once(value)

        draw()
        seed += 1


# --- functions ---


def odd_values() -> list[Any]:
    """What nobody should pass where something else is wanted."""
    import numpy as np
    import pandas as pd
    import torch

    rng = np.random.default_rng(0)
    return [
        None, True, -1, 0, 1, 2, 5, 10**6, 2**63, 10**30, 0.5, -0.5, 1.9, float("nan"), float("inf"), "", "x", "7",
        "addition", [], [0], [0, 0], [-1], [10**9], [[0, 1]], [[0], [1, 2]], ["a"], [None], (), (1, 2), (1, 2, 3), {},
        {"a": 1}, b"x", object(), range(3), np.int64(3), np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0)),
        np.ones((2, 3)), np.ones((3, 4), np.float32), np.full((4, 3), np.nan), np.arange(5), np.arange(-2, 3),
        np.array([True, False, True]), np.array([0.5, 1.5]), np.array(["1", "2"]), np.array([1 + 2j]),
        np.array([[1]], dtype=object), rng.normal(size=(12, 5)), torch.zeros(3), torch.arange(4)[None],
        torch.full((2, 2), float("nan")), pd.DataFrame(), pd.DataFrame({"a": [1]}), pd.Series([1, 2]),
        torch.nn.Linear(1, 1),
    ]  # fmt: skip


def calls() -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions with arguments that are right."""
    import numpy as np
    import pandas as pd

    import cri
    from cri import interventions as iv
    from cri import statistics as stats
    from cri.attribution import baselines, ekfac, gradients, neighbors
    from cri.attribution.influence import influence
    from cri.config import RunConfig, TrainConfig
    from cri.data import case_groups, case_relations, context_cases, held_out, splits
    from cri.data.case_ids import check_case_ids
    from cri.formats import make_format
    from cri.formats.rules.tracer import trace_rule
    from cri.interventions import stated_rules
    from cri.models import activations
    from cri.models.loading import to_bridge
    from cri.tasks import make_task
    from cri.training.setup import prepare

    small = {"size": 8}
    materials = prepare(RunConfig(tokenizer="digit", task_params=small, split_params={"half_side": 1}))
    written = prepare(
        RunConfig(format="scratchpad", tokenizer="digit", task_params={"size": 12}, split_params={"half_side": 1})
    )
    few: dict[str, Any] = {"rules": 2, "examples": 40, "fresh": 1, "digits": 2}
    stated = prepare(
        RunConfig(task="many_rules", task_params=few, format="stated_rule", split="rules", model="nano-rope")
    )
    reader = to_bridge(stated.model, stated.tokenizer)
    questions = stated_rules.edited_questions(stated, ["side"], 2)
    asked = stated_rules.ask(stated, questions)
    told = asked.tables["old", "old"]
    task, split, tokens, model = materials.task, materials.split, materials.tokens, materials.model
    bridge = to_bridge(model, materials.tokenizer)
    rng = np.random.default_rng(0)
    train, test = split.train_ids[:12], split.test_ids[:5]
    answers = [task.answers[i] for i in test]
    labels = stats.labels([task.answers[i] for i in train]), stats.labels(answers)
    groups = stats.make_groups(task, train, test, answers, n_near=2)
    scores = rng.normal(size=(12, 5))
    fisher = ekfac.fit_ekfac(model, tokens[train], progress=False)
    site = activations.Site("blocks.0.hook_resid_post")
    acts = rng.normal(size=(12, 6))
    table = pd.DataFrame({
        "value": rng.normal(size=12), "group": ["a"] * 12, "run": np.arange(12) // 4, "block": np.arange(12) % 4,
        "model": ["m", "n"] * 6, "test_id": np.arange(12) // 2 % 2, "yes": [True, False] * 6,
        "no": [True] * 5 + [False] * 7,
        "row": np.arange(12) % 4, "col": np.arange(12) // 4, "correct": [True, False, True] * 4,
    })  # fmt: skip
    run, block, one = np.arange(12) % 3, np.arange(12) % 4, np.ones(12)
    quick = {"n_boot": 20}
    edits = iv.sample_edits(written.task, written.format, [9, 10], ["carry", "digit"])
    ids = tokens.ids[:2, :4]
    target: dict[str, Any] = {"target": "reference", "progress": False}
    pair = {"train_ids": train, "test_ids": test}
    by_label = {"train_labels": labels[0], "test_labels": labels[1]}
    return [
        (cri.recipe, {"task": "addition", "format": "direct", "model": "nano", "seed": 1}),
        (cri.load_run, {"path": "nothing"}),
        (RunConfig, {"task": "addition", "split": "square"}),
        (TrainConfig, {"steps": 10, "lr": 1e-3, "seed": 0, "batch_size": 4}),
        (make_task, {"name": "addition", "size": 8}),
        (make_format, {"name": "direct"}),
        (splits.make_split, {"task": task, "kind": "square", "half_side": 1}),
        (splits.make_split, {"task": task, "kind": "rows", "n": 2, "seed": 1}),
        (splits.square, {"task": task, "center": [4, 4], "half_side": 1}),
        (splits.random, {"task": task, "fraction": 0.5, "seed": 1}),
        (splits.depth, {"task": task, "center": [4, 4], "half_side": 1}),
        (check_case_ids, {"ids": train, "n_cases": 64}),
        (held_out.leave_out, {"task": task, "design": "square", "n": 9, "seed": 0}),
        (held_out.diagonal_square, {"task": make_task("addition", size=16), "n": 9}),
        (case_relations.grid_distance, {"task": task, **pair}),
        (case_relations.shared_operands, {"task": task, **pair}),
        (case_relations.shared_steps, {"task": task, **pair}),
        (case_relations.same_answer, by_label),
        (case_relations.mirror_images, {"task": task}),
        (context_cases.example_kinds, {"task": task, "candidates": train, "questions": test, "radius": 1, "far": 3}),
        (case_groups.make_groups, {"task": task, **pair, "predictions": answers, "n_near": 2}),
        (case_groups.matched_size, by_label),
        (stats.top_k, {"scores": scores, "k": 3}),
        (stats.enrichment, {"scores": scores, "groups": groups, "k": 3}),
        (stats.matched, {"scores": scores, "groups": groups, "k": 3}),
        (stats.kind_shares, {"scores": scores, "kinds": {"near": groups.near}, "test_ids": groups.test_ids, "k": 3}),
        (stats.vote, {"scores": scores, "groups": groups, "true_labels": labels[1], "k": 3}),
        (stats.neighbor_distance, {"scores": scores, "k": 3}),
        (stats.wilson, {"successes": 3, "n": 9, "level": 0.9}),
        (stats.grid_blocks, {"task": task, "case_ids": test, "side": 2}),
        (stats.bootstrap_ratio, {"numerator": one, "denominator": one, "run": run, "block": block, **quick}),
        (stats.estimate, {"table": table, "value": "value", "by": ["group"], **quick}),
        (stats.paired, {"table": table, "value": "value", "models": ("m", "n"), "by": ["group"], **quick}),
        (stats.agreement, {"table": table, "predicted": "yes", "observed": "no", **quick}),
        (stats.ring_accuracy, {"cases": table, "square": (1, 1, 1), **quick}),
        (stats.stratified_auc,
         {"score": one, "positive": run > 0, "stratum": block, "run": run, "block": block, **quick}),
        (neighbors.similarity, {"train": acts, "test": acts[:3], "metric": "cosine"}),
        (neighbors.nearest, {"train": acts, "test": acts[:3], "k": 2, "metric": "euclidean"}),
        (neighbors.whiten, {"train": acts, "test": acts[:3], "shrinkage": 0.01}),
        (baselines.nearest_operands, {"task": task, **pair}),
        (baselines.same_answer_by_distance, {"task": task, **pair, **by_label}),
        (baselines.shared_tokens, {"task": task, "tokenizer": "digit", **pair}),
        (baselines.bm25, {"train": tokens[train], "test": tokens[test], "k1": 1.2, "b": 0.5}),
        (gradients.gradient_scores,
         {"model": model, "train": tokens[train], "test": tokens[test], "batch_size": 8, **target}),
        (gradients.gradient_coverage, {"model": model, "tokens": tokens[train], "parameters": ["*"], "n_cases": 4}),
        (ekfac.fit_ekfac,
         {"model": model, "tokens": tokens[test], "labels": "sampled", "seed": 0, "batch_size": 8, "progress": False}),
        (influence, {"model": model, "fisher": fisher, "train": tokens[train], "test": tokens[test], "damping": 0.0,
                     "relative_damping": 0.1, **target}),
        (activations.collect, {"bridge": bridge, "tokens": tokens, "sites": [site], "case_ids": train}),
        (activations.check_sites, {"bridge": bridge, "sites": [site]}),
        (activations.Site.parse, {"text": "blocks.0.hook_resid_post@1"}),
        (iv.patched_logits, {"bridge": bridge, "base_ids": ids, "source_ids": ids.flip(0), "site": site}),
        (iv.patch_sites, {"n_layers": 2}),
        (iv.sample_edits, {"task": written.task, "fmt": written.format, "case_ids": [9], "kinds": ["carry"], "seed": 0,
                           "step": 1}),
        (iv.step_edits, {"run": written, "edits": edits[:1]}),
        (iv.make_pairs,
         {"run": written, "variable": "carry", "base_cases": range(144), "source_cases": range(144), "n": 2}),
        (iv.fit_probe, {"x": acts, "labels": run, "ridge": 1e-3, "max_rank": 2}),
        (iv.probe_labels, {"task": task, "variable": "units"}),
        (iv.swap_pairs, {"run": materials, "variable": "units", "case_ids": split.train_ids, "n": 3}),
        (iv.random_basis, {"d": 5, "k": 2, "seed": 0}),
        (iv.ablate, {"bridge": bridge, "run": materials, "case_ids": test, "site": site, "basis": np.eye(64)[:, :2]}),
        (iv.logit_attribution, {"run": materials, "case_ids": test[:2]}),
        (iv.edited_source, {"task": task, "kind": "base"}),
        (trace_rule, {"rule": "def f():\n    return 1"}),
        (stated_rules.stated_task, {"run": stated}),
        (stated_rules.fresh_lists, {"run": stated, "rules": [3], "n": 2, "seed": 0}),
        (stated_rules.edited_questions, {"run": stated, "kinds": ["side"], "n": 2, "seed": 0}),
        (stated_rules.token_table, {"run": stated, "prompts": [(3, 112)], "traces": [(4, 112)]}),
        (stated_rules.ask, {"run": stated, "questions": questions}),
        (stated_rules.writes, {"bridge": reader, "tokens": told}),
        (stated_rules.cut_hooks, {"bridge": reader, "tokens": told, "places": asked.places, "queries": "later"}),
        (stated_rules.patch_hooks, {"bridge": reader, "source": told, "mask": told.ids > 0, "layer": 1}),
    ]  # fmt: skip


def call_once(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """None where it returns, `refused`, or what is wrong."""
    from cri.errors import CriError

    quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    started = time.process_time()
    try:
        with quiet[0], quiet[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except CriError as error:
        message = str(error)
        if len(message.splitlines()) != 1:
            return f"several lines: {message[:200]!r}"
        if not (any(name in message for name in arguments) or re.match(r"[\w. ]{2,60}: ", message)):
            return f"names no argument: {message[:200]}"
        return "refused"
    except BaseException as error:
        return "raised " + _where(error)
    seconds = time.process_time() - started
    return f"took {seconds:.0f} s" if seconds > 20 else None


def fuzz_functions(n: int, seed: int, found: Found) -> None:
    """`n` calls, each with one or two arguments exchanged for odd ones."""
    known, odd = calls(), odd_values()
    for function, arguments in known:  # the right ones are right
        outcome = call_once(function, arguments)
        if outcome is not None and arguments != {"path": "nothing"}:
            found.add("functions", f"refuses what is right: {outcome}", function.__name__)

    @st.composite
    def misuse(draw: st.DrawFn) -> tuple[int, dict[str, int]]:
        i = draw(st.integers(0, len(known) - 1))
        names = draw(st.lists(st.sampled_from(sorted(known[i][1])), min_size=1, max_size=2, unique=True))
        return i, {name: draw(st.integers(0, len(odd) - 1)) for name in names}

    def once(drawn: tuple[int, dict[str, int]]) -> None:
        i, changes = drawn
        function, arguments = known[i]
        outcome = call_once(function, {**arguments, **{name: odd[j] for name, j in changes.items()}})
        shown = ", ".join(f"{name}={' '.join(repr(odd[j]).split())[:60]}" for name, j in changes.items())
        name = getattr(inspect.unwrap(function), "__qualname__", function.__name__)
        found.add(
            "functions", f"{name}: {outcome}" if outcome not in (None, "refused") else outcome, f"{name}({shown})"
        )

    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        _drawn(misuse(), n, seed, once)
        if left := tree(Path(temporary)):
            found.add("functions", f"left behind: {sorted(left)[:3]}", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=["commands", "functions"])
    parser.add_argument("--command", help="this command alone")
    parser.add_argument("--without-checks", action="store_true", help="take the guard out: faults must be found")
    given_options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", MPLBACKEND="Agg")
    if given_options.without_checks:
        from cri import checks

        checks._fits = lambda *args: True
        for name in ("check_type", "check_range"):
            setattr(checks, name, lambda *args: None)
    import torch

    torch.set_num_threads(1)
    found, n = Found(), given_options.inputs
    part = "commands" if given_options.command else given_options.part
    n_commands = {"commands": n, "functions": 0}.get(part, int(n * COMMAND_SHARE))
    started = time.process_time()
    if n_commands:
        fuzz_commands(n_commands, given_options.seed, found, given_options.command)
        print(json.dumps({"commands": n_commands, "cpu_seconds": round(time.process_time() - started)}), flush=True)
    if n - n_commands:
        fuzz_functions(n - n_commands, given_options.seed, found)
    print(json.dumps({"inputs": n, "cpu_seconds": round(time.process_time() - started)}), flush=True)
    sys.stdout.flush()
    raise SystemExit(1 if found.report() else 0)


if __name__ == "__main__":
    main()
