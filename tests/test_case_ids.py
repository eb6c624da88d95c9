"""Case ids: masks, fractions and ids outside the grid are refused, never read as something else."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch

from cri.attribution.baselines import nearest_operands, same_answer_by_distance
from cri.data.case_groups import make_groups
from cri.data.case_ids import check_case_ids
from cri.data.case_relations import grid_distance, shared_operands, shared_steps
from cri.errors import CriError
from cri.evaluation.decoding import predictions
from cri.evaluation.scoring import reading_table
from cri.formats import make_format
from cri.interventions import edit_rules, make_pairs, sample_edits, step_tokens, swap_pairs
from cri.interventions.components import logit_attribution
from cri.interventions.probes import ablate
from cri.models.activations import Site, collect, residual_sites
from cri.retraining.removals import removal_groups
from cri.statistics.intervals import grid_blocks
from cri.tasks import make_task
from cri.training.batches import BatchStream


def test_good_ids_are_kept_in_their_order():
    assert check_case_ids([3, 0, 2], 4).tolist() == [3, 0, 2]
    assert check_case_ids([], 4).dtype == np.int64


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        (np.array([True, False, True]), "a mask is not a list"),
        (np.array([-1]), "must be in 0"),
        (np.array([1.9]), "whole numbers"),
        (np.array([10**6]), "must be in 0"),
        (np.array([[1]]), "one id a case"),
    ],
)
def test_case_ids_are_checked(cases, said):
    """Not through `collect`, whose annotated shapes the tests check first."""
    with pytest.raises(CriError, match=f"case_ids: .*{said}"):
        check_case_ids(cases, 100)


TASK = make_task("addition", size=24)
GOOD, REST = np.array([5, 3]), np.array([7, 8])
SITE = Site("blocks.0.hook_resid_post")
SCRATCHPAD = make_format("scratchpad")
CALLERS = {
    "collect": lambda run, ids: collect(run.bridge, run.tokens, residual_sites(run.bridge), ids),
    "tokens": lambda run, ids: run.tokens[ids],
    "tokens, tensor": lambda run, ids: run.tokens[torch.as_tensor(ids)],
    "predictions": lambda run, ids: predictions(
        run.model, run.tokenizer, run.tokens, run.task, run.format, run.split, ids
    ),
    "reading_table": lambda run, ids: reading_table(TASK, run.format, run.split, ids, ["1"] * 3, [True] * 3),
    "grid_distance": lambda run, ids: grid_distance(TASK, ids, GOOD),
    "shared_operands": lambda run, ids: shared_operands(TASK, GOOD, ids),
    "shared_steps": lambda run, ids: shared_steps(TASK, ids, GOOD),
    "nearest_operands": lambda run, ids: nearest_operands(TASK, ids, GOOD),
    "same_answer_by_distance": lambda run, ids: same_answer_by_distance(TASK, ids, GOOD, ["1"], ["1"]),
    "make_groups": lambda run, ids: make_groups(TASK, ids, GOOD, ["1", "2"]),
    "removal_groups": lambda run, ids: removal_groups(TASK, ids, 3, ["1"], "1", 1, 0),
    "grid_blocks": lambda run, ids: grid_blocks(TASK, ids),
    "batches": lambda run, ids: BatchStream(ids, np.full(TASK.n_cases, 5), 2, 0),
    "sample_edits": lambda run, ids: sample_edits(TASK, SCRATCHPAD, ids),
    "step_tokens": lambda run, ids: step_tokens(_as(run, "scratchpad"), ids, 1),
    "swap_pairs": lambda run, ids: swap_pairs(run, "units", ids),
    "make_pairs": lambda run, ids: make_pairs(run, "digit", ids, GOOD),
    "logit_attribution": lambda run, ids: logit_attribution(run, ids),
    "ablate": lambda run, ids: ablate(run.bridge, run, ids, SITE, np.zeros((64, 0))),
    "edit_rules": lambda run, ids: edit_rules(_as(run, "rfft"), ids, []),
}


@pytest.fixture
def no_shape_checks():
    """The functions as a user has them: the tests' own checks of annotated shapes would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _as(run, fmt: str):
    import dataclasses

    return dataclasses.replace(run, format=make_format(fmt))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("ids", [np.array([True, False, True]), np.array([-1]), np.array([1.9]), np.array([10**6])])
def test_everything_that_takes_case_ids_refuses_what_is_none(tiny_run, caller, ids):
    with pytest.raises(CriError, match=r"(ids|rows|base_cases): "):
        CALLERS[caller](tiny_run, ids)
