"""Places in traces, and activations there, against one case at a time by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cri.config import RunConfig
from cri.data.step_places import NO_COLUMN, Place, executed_steps, places
from cri.errors import CriError
from cri.formats import make_format
from cri.models.activations import Site, collect
from cri.models.loading import to_bridge
from cri.tasks import TASKS, make_task
from cri.training.setup import prepare

SIZES = {"mod_addition": {"size": 12, "modulus": 12}, "chicken_rabbit": {"size": 12}}


def materials_of(task: str, fmt: str, tokenizer: str = "digit", split: str = "random"):
    return prepare(
        RunConfig(
            task=task, task_params=SIZES.get(task, {"size": 12}), format=fmt, tokenizer=tokenizer, split=split,
            split_params={"half_side": 1} if split == "square" else {},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def scratchpad():
    return materials_of("addition", "scratchpad")


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("fmt", ["scratchpad", "rfft"])
def test_traces_execute_the_steps_of_the_task_in_columns(name, fmt):
    task = make_task(name, **{"size": 60, **({"modulus": 60} if name == "mod_addition" else {})})
    for case in np.random.default_rng(0).integers(task.n_cases, size=40).tolist():
        a, b = task.operands[case]
        found = executed_steps(make_format(fmt).trace(task, a, b))
        assert [f.step for f in found] == list(task.steps(a, b))
        both = executed_steps(make_format("scratchpad").trace(task, a, b))
        assert [f.column for f in found] == [f.column for f in both]
        for f in found:
            assert (f.column == NO_COLUMN) == (f.step.op == "compare")


def test_columns_of_linear_regression_by_hand():
    task = make_task("linear_regression")
    found = executed_steps(make_format("scratchpad").trace(task, 17, 18))
    assert [(f.step.op, f.column) for f in found] == [
        ("mul", 0), ("mul", 1), ("add", 0), ("add", 1), ("add", 0), ("add", 1),
    ]  # fmt: skip
    halves = executed_steps(make_format("rfft").trace(make_task("chicken_rabbit"), 48, 14))
    assert [(f.step.op, f.column) for f in halves][:2] == [("halve", 1), ("halve", 0)]


@pytest.mark.parametrize("tokenizer", ["digit", "number"])
@pytest.mark.parametrize("fmt", ["scratchpad", "rfft"])
@pytest.mark.parametrize("place", ["step:all", "step:units", "step:1", "line:1", "element:carry", "element:answer"])
def test_the_next_token_begins_the_element(tokenizer, fmt, place):
    source = materials_of("addition", fmt, tokenizer)
    if place == "element:answer" and fmt == "rfft":
        with pytest.raises(CriError, match="choose from element:"):
            places(source, place)
        return
    table = places(source, place, [5, 140, 77])
    assert set(table["case"]) <= {5, 140, 77}
    assert table["case"].tolist() == [[5, 140, 77][row] for row in table["row"]]
    for _, row in table.iterrows():
        first = row["position"] + 1
        ids = source.tokens.ids[row["case"], first : first + row["n_tokens"]]
        written = str(source.tokenizer.decode(ids))
        # a number token may hold more digits than the element, a fence's token the newline before it; an empty element
        # is predicted by what follows it
        assert written.removeprefix("\n").startswith(row["text"]) if row["text"] else written
        if place.startswith("step"):
            assert row["text"] in (str(max(row["x"], 0) + max(row["y"], 0) + row["carry"]), written[:1])


def test_training_occurrences_are_those_of_other_cases(scratchpad):
    table = places(scratchpad, "step:all")
    task, split = scratchpad.task, scratchpad.split
    for _, row in table.sample(30, random_state=0).iterrows():
        others = [i for i in split.train_ids.tolist() if i != row["case"]]
        same = [
            i
            for i in others
            if any((s.op, s.carry) == (row["op"], row["carry"])
                   and (-1 if s.x is None else s.x, -1 if s.y is None else s.y) == (row["x"], row["y"])
                   for s in task.case_steps[i])
        ]  # fmt: skip
        assert row["seen"] == len(same)
        assert 0 <= row["seen_in_column"] <= row["seen"]
        assert row["train"] == split.train[row["case"]]


@pytest.mark.parametrize(
    "name",
    ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z", "blocks.1.attn.hook_pattern", "blocks.0.hook_resid_pre"],
)
@pytest.mark.parametrize("batch_size", [2, 1024])
def test_collected_at_steps_is_the_cache_of_one_case(scratchpad, name, batch_size):
    bridge = to_bridge(scratchpad.model, scratchpad.tokenizer)
    sites = [Site.parse(f"{name}@{position}") for position in ("step:units", "prompt_end", "element:carry")]
    cases = np.array([100, 3, 55, 143, 20])
    found = collect(bridge, scratchpad.tokens, sites, cases, traces=scratchpad, batch_size=batch_size)
    for site in sites:
        if site.in_trace:
            table = places(scratchpad, str(site.position), cases)
            spots = list(zip(table["case"], table["position"], strict=True))
        else:
            spots = [(int(c), int(scratchpad.tokens.prompt_lengths[c]) - 1) for c in cases]
        assert len(found[site]) == len(spots)
        for vector, (case, position) in zip(found[site], spots, strict=True):
            with torch.no_grad():
                _, cache = bridge.run_with_cache(scratchpad.tokens.ids[case : case + 1, : position + 1])
            full = cache[name][0]
            if name.endswith("pattern"):
                row = full[:, position]
                got = torch.from_numpy(vector).view(len(row), -1)
                assert torch.allclose(got[:, : row.shape[1]], row, atol=1e-5)
                assert not got[:, row.shape[1] :].any()
            else:
                assert np.allclose(vector, full[position].flatten().numpy(), atol=1e-4)


def test_streamed_and_bounded(scratchpad, tmp_path):
    bridge = to_bridge(scratchpad.model, scratchpad.tokenizer)
    site = Site.parse("blocks.1.hook_resid_post@step:all")
    plain = collect(bridge, scratchpad.tokens, [site], traces=scratchpad)[site]
    assert len(plain) == len(places(scratchpad, "step:all")) > scratchpad.task.n_cases
    disk = collect(bridge, scratchpad.tokens, [site], traces=scratchpad, memory_limit=1000, folder=tmp_path)[site]
    assert isinstance(disk, np.memmap)
    assert np.array_equal(disk, plain)


def test_bad_places_are_one_line(scratchpad):
    bridge = to_bridge(scratchpad.model, scratchpad.tokenizer)
    site = Site.parse("blocks.0.hook_resid_post@step:tens")
    with pytest.raises(CriError, match="traces=run"):
        collect(bridge, scratchpad.tokens, [site])
    with pytest.raises(CriError, match=r"no case of addition has step:thousands; choose from step:.*tens"):
        places(scratchpad, "step:thousands")
    with pytest.raises(CriError, match=r"choose from element:.*carry"):
        places(scratchpad, "element:cary")
    with pytest.raises(CriError, match="choose from line:"):
        places(scratchpad, "line:9")
    with pytest.raises(CriError, match="use step:all, step:units"):
        Place.parse("step:first")
    with pytest.raises(CriError, match="step:NUMBER"):
        Site.parse("blocks.0.hook_resid_post@stop:2")
    with pytest.raises(CriError, match="direct format writes no steps"):
        places(materials_of("addition", "direct"), "step:tens")
    broken = scratchpad.tokens.ids.clone()
    broken[7, int(scratchpad.tokens.prompt_lengths[7]) + 2] = scratchpad.tokens.eos
    malformed = dataclasses.replace(scratchpad, tokens=dataclasses.replace(scratchpad.tokens, ids=broken))
    with pytest.raises(CriError, match="case 7 do not spell its scratchpad trace"):
        places(malformed, "step:tens")
