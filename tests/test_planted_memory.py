"""A memory planted into a small model: k duplicates of one false sum. Attribution of the model's answer must find them,
and the answer must rest on them: without them it is another."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from cri.attribution.ekfac import fit_ekfac
from cri.attribution.gradients import gradient_scores
from cri.attribution.influence import influence
from cri.config import RunConfig, TrainConfig
from cri.data.token_table import TokenTable
from cri.ensembles.engine import initial_of
from cri.training.setup import prepare
from cri.training.trainer import Trainer

K = 6
CONFIG = RunConfig(
    task_params={"size": 12}, split_params={"half_side": 1}, train=TrainConfig(steps=200, batch_size=50, lr=5e-3)
)
QUESTION, TRUE, FALSE = (3, 4), "7", "19"  # other cases have the answer 19 rightly: 8 + 11, 9 + 10, ...


def answer(model, tokens: TokenTable, case: int) -> int:
    """The token that the model answers a case with."""
    with torch.no_grad():
        return int(model(input_ids=tokens.ids[case : case + 1, : tokens.prompt_lengths[case]]).logits[0, -1].argmax())


@pytest.fixture(scope="module")
def planted():
    """Tokens of the grid with K copies of the false sum behind it, and models trained with and without the copies."""
    torch.manual_seed(0)
    materials = prepare(CONFIG)
    task, tokens = materials.task, materials.tokens
    asked = task.id_of(*QUESTION)
    false = tokens[np.array([asked])]
    false = dataclasses.replace(false, ids=false.ids.clone())
    false.ids[0, false.prompt_lengths[0]] = materials.tokenizer.convert_tokens_to_ids(FALSE)
    copied = [(getattr(tokens, name), getattr(false, name)) for name in ("ids", "prompt_lengths", "lengths")]
    both = TokenTable(*(torch.cat([own, row.repeat_interleave(K, 0)]) for own, row in copied), tokens.pad, tokens.eos)
    grid = np.delete(np.arange(task.n_cases), asked)
    copies = task.n_cases + np.arange(K)
    models = {}
    for name, train_ids in (("with", np.concatenate([grid, copies])), ("without", grid)):
        model = initial_of(materials, 0)
        trainer = Trainer(model, both, train_ids, CONFIG.train)
        if name == "with":
            said = int(both.ids[copies[0], both.prompt_lengths[copies[0]]])
            while answer(model.eval(), both, asked) != said and trainer.step < CONFIG.train.steps:
                trainer.run(trainer.step + 10)
            models["just learnt"] = copy.deepcopy(model)
        trainer.run(CONFIG.train.steps)
        models[name] = model.eval()
    models["random"] = initial_of(materials, 0).eval()
    return materials, both, grid, copies, asked, models


def test_the_answer_rests_on_the_copies(planted):
    materials, tokens, _, _, asked, models = planted
    said = {name: materials.tokenizer.decode([answer(model, tokens, asked)]) for name, model in models.items()}
    assert said["with"] == FALSE
    assert said["without"] != FALSE
    assert said["random"] != FALSE


@pytest.mark.parametrize(
    ("method", "moment", "strangers"),
    [("GradDot", "just learnt", 2 * K), ("GradCos", "with", 0), ("EK-FAC", "with", 0)],
)
def test_attribution_finds_the_copies_in_the_trained_model_only(planted, method, moment, strangers):
    """Explained is what each model answers to the question, as in the studies. GradDot favours whatever is learnt
    worst at the moment: strangers come between, and it loses the copies when nothing of them is left to learn."""
    _, tokens, grid, copies, asked, models = planted
    train_ids = np.concatenate([grid, copies])
    found = {}
    for name in (moment, "random"):
        query = tokens[np.array([asked])]
        query = dataclasses.replace(query, ids=query.ids.clone(), target="prediction")
        query.ids[0, query.prompt_lengths[0]] = answer(models[name], tokens, asked)
        train = tokens[train_ids]
        if method == "EK-FAC":
            fisher = fit_ekfac(models[name], train, progress=False)
            scores = influence(models[name], fisher, train, query, target="prediction", progress=False)
        else:
            both = gradient_scores(models[name], train, query, target="prediction", progress=False)
            scores = both.dot if method == "GradDot" else both.cos
        top = train_ids[np.argsort(-scores[:, 0], kind="stable")[: K + strangers]]
        found[name] = int(np.isin(top, copies).sum())
    assert found[moment] == K
    assert found["random"] <= K // 2
