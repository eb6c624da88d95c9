"""Many models at once against one at a time: the same numbers, resumed or not, in banks and in ordinary runs."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

import cri.ensembles.engine
import cri.evaluation.decoding
from cri.config import RunConfig, TrainConfig
from cri.ensembles.bank import AnswerReader, load_bank, stacked_decode, stacked_scores
from cri.ensembles.engine import Replica
from cri.ensembles.stacked import Layout, Member, StackedForward, StackedTrainer
from cri.ensembles.train import train_replicas
from cri.errors import CorruptRunError, CriError
from cri.evaluation.decoding import decode, predictions
from cri.training.compilation import GraphedStep
from cri.training.setup import prepare
from cri.training.trainer import Trainer

CONFIG = RunConfig(
    task_params={"size": 15}, split_params={"half_side": 2}, train=TrainConfig(steps=40, batch_size=48, lr=2e-3)
)
if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES = {
    "gpt2": CONFIG,
    "llama": CONFIG.replace(model="nano-rope"),
    "varied lengths": CONFIG.replace(task_params={"size": 40}, tokenizer="digit"),
    "traces": CONFIG.replace(task_params={"size": 12}, format="scratchpad", steps=8),
    "no clipping": CONFIG.replace(grad_clip=0.0),
    "everything scored": CONFIG.replace(loss_on="all"),
}


def masks(materials, sizes: list[int]) -> list[np.ndarray]:
    """Train masks with as many of the split's cases."""
    rng, out = np.random.default_rng(0), []
    for size in sizes:
        mask = np.zeros(materials.task.n_cases, dtype=bool)
        mask[rng.choice(materials.split.train_ids, size, replace=False)] = True
        out.append(mask)
    return out


def alone(config: RunConfig, materials, mask, **settings) -> tuple[list[float], PreTrainedModel]:
    """One model by the ordinary loop."""
    own = config.replace(**settings)
    model, losses = prepare(own).model, []
    trainer = Trainer(model, materials.tokens, np.flatnonzero(mask), own.train)
    trainer.run(own.train.steps, 10, lambda p: losses.append(p.loss))
    return losses, model


def assert_same_function(model: PreTrainedModel, other: PreTrainedModel, materials) -> None:
    """Equal logits, and weights equal up to what rounding makes of them.

    Not every single weight is determined: a key's bias has no gradient but rounding, which AdamW scales up.
    """
    ids = materials.tokens.ids[::11]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, other(input_ids=ids).logits, rtol=1e-3, atol=3e-3)
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        if "bias" not in name:
            assert (a - b).norm() <= 2e-3 * b.norm(), name


@pytest.mark.parametrize(
    "name", [n if n in ("gpt2", "llama") else pytest.param(n, marks=pytest.mark.slow) for n in SHAPES]
)
def test_a_stack_equals_models_one_by_one(name):
    """Other seeds, training sets (one smaller than a batch), batch sizes, learning rates and weight decays."""
    config = SHAPES[name]
    materials = prepare(config)
    settings = [
        {"seed": 0, "lr": 2e-3, "weight_decay": 0.0, "batch_size": 32},
        {"seed": 1, "lr": 5e-4, "weight_decay": 0.3, "batch_size": 20},
        {"seed": 2, "lr": 1e-3, "weight_decay": 0.0, "batch_size": 32},
    ]
    sets = masks(materials, [110, 90, 30])
    layout = Layout(materials.model)
    members = [
        Member(layout.flatten(prepare(config.replace(**s)).model), np.flatnonzero(m), **s)
        for s, m in zip(settings, sets, strict=True)
    ]
    trainer = StackedTrainer(materials.model, layout, materials.tokens, members, config.train, "cpu", log_every=10)
    trainer.run(config.train.steps)
    for k, (own, mask) in enumerate(zip(settings, sets, strict=True)):
        losses, model = alone(config, materials, mask, **own)
        np.testing.assert_allclose(trainer.losses[:, k], losses, rtol=1e-4)
        assert_same_function(trainer.model(k, prepare(config).model), model, materials)


def test_one_replica_equals_the_loop():
    materials = prepare(CONFIG)
    layout = Layout(materials.model)
    member = Member(
        layout.flatten(materials.model), materials.split.train_ids, 0, CONFIG.train.lr, 0.0, CONFIG.train.batch_size
    )
    trainer = StackedTrainer(prepare(CONFIG).model, layout, materials.tokens, [member], CONFIG.train, "cpu")
    trainer.run(40)
    _, model = alone(CONFIG, materials, materials.split.train)
    assert_same_function(trainer.model(0, prepare(CONFIG).model), model, materials)


def test_layout_round_trip():
    model = prepare(CONFIG.replace(seed=4)).model
    layout = Layout(model)
    row = layout.flatten(model)
    other = prepare(CONFIG).model
    layout.load(row, other)
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    flat = torch.stack([row, 2 * row])
    assert torch.equal(layout.stack(layout.views(flat)), flat)


def test_interrupted_stack_resumes_exactly(tmp_path):
    materials = prepare(CONFIG)
    layout = Layout(materials.model)
    start = layout.flatten(materials.model)

    def trainer():
        members = [
            Member(start, materials.split.train_ids, seed, 1e-3, 0.0, CONFIG.train.batch_size) for seed in (0, 1)
        ]
        return StackedTrainer(
            prepare(CONFIG).model, layout, materials.tokens, members, CONFIG.train, "cpu", log_every=7
        )

    whole, first, second = trainer(), trainer(), trainer()
    whole.run(40)
    first.run(23)
    first.save(tmp_path / "c.safetensors", {"members": "a"})
    second.restore(tmp_path / "c.safetensors", {"members": "a"})
    second.run(40)
    assert torch.equal(second.flat, whole.flat)
    assert torch.equal(second.losses, whole.losses)
    with pytest.raises(CorruptRunError, match="other members"):
        trainer().restore(tmp_path / "c.safetensors", {"members": "b"})


def test_a_stack_begun_with_more_members_than_now_fit_is_finished_with_them(tmp_path, monkeypatch):
    mask = prepare(CONFIG).split.train
    members = [Replica(seed, mask) for seed in range(3)]
    options: dict = {"method": "stacked", "device": "cpu", "progress": False}
    bank = train_replicas(CONFIG, members, tmp_path / "whole", chunk=3, **options)
    real, saved = StackedTrainer.run, StackedTrainer.save

    def save_and_stop(self, path, identity):
        saved(self, path, identity)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StackedTrainer, "run", lambda self, until, **logs: real(self, CONFIG.train.steps // 2, **logs))
        patch.setattr(StackedTrainer, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_replicas(CONFIG, members, tmp_path / "resumed", chunk=3, checkpoint_seconds=0.0, **options)
    again = train_replicas(CONFIG, members, tmp_path / "resumed", chunk=2, **options)
    assert (load_bank(again).table["index"] == [0, 1, 2]).all()
    for k in range(3):
        for name, value in load_bank(bank).state(k).items():
            assert torch.equal(load_bank(again).state(k)[name], value)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("varied lengths", marks=pytest.mark.slow)])
def test_stacked_decoding_equals_decoding(name):
    config = SHAPES[name]
    materials = prepare(config)
    models = []
    for seed in (0, 1):
        model = prepare(config.replace(seed=seed)).model
        Trainer(model, materials.tokens, materials.split.train_ids, config.train).run(20)
        models.append(model)
    layout = Layout(models[0])
    flat = torch.stack([layout.flatten(m) for m in models])
    found = stacked_decode(StackedForward(prepare(config).model, layout, "fp32"), flat, materials.tokens)
    reader = AnswerReader(materials.task, materials.format, materials.tokenizer, materials.tokens)
    for model, decoded in zip(models, found, strict=True):
        expected = decode(model, materials.tokens)
        np.testing.assert_array_equal(decoded.lengths, expected.lengths)
        np.testing.assert_array_equal(decoded.finished, expected.finished)
        np.testing.assert_array_equal(decoded.ids[:, :2], expected.ids[:, :2])
        table = predictions(
            model, materials.tokenizer, materials.tokens, materials.task, materials.format, materials.split
        )
        np.testing.assert_array_equal(reader.correct(decoded), table["correct"])


@pytest.fixture(scope="module")
def replicas():
    materials = prepare(CONFIG)
    notes = [{"removed": name} for name in ("near", "far", "none")]
    sets = masks(materials, [120, 100, 30])
    settings = [{}, {"lr": 1e-3}, {"weight_decay": 0.1}]
    return [Replica(i % 2, m, note=n, **s) for i, (m, n, s) in enumerate(zip(sets, notes, settings, strict=True))]


@pytest.fixture(scope="module")
def bank(replicas, tmp_path_factory):
    out = tmp_path_factory.mktemp("banks")
    return load_bank(train_replicas(CONFIG, replicas, out, device="cpu", method="stacked", chunk=2, progress=False))


def test_a_bank_holds_what_was_asked_for(bank, replicas):
    assert bank.table["removed"].tolist() == ["near", "far", "none"]
    assert bank.table["n_train"].tolist() == [120, 100, 30]
    assert bank.table["lr"].tolist() == [2e-3, 1e-3, 2e-3]
    assert bank.table["seed"].tolist() == [0, 1, 0]
    assert np.isfinite(bank.table["loss"]).all()
    for k, replica in enumerate(replicas):
        np.testing.assert_array_equal(bank.train[k], replica.train)
        row = bank.table.loc[k]
        assert row["train_acc"] == pytest.approx(bank.correct[k][replica.train].mean())
        assert row["test_acc"] == pytest.approx(bank.correct[k][~replica.train].mean())


def test_models_of_a_bank_answer_as_it_says(bank):
    for k in range(len(bank)):
        table = predictions(bank.model(k), bank.tokenizer, bank.tokens, bank.task, bank.format, bank.split)
        np.testing.assert_array_equal(table["correct"], bank.correct[k])


def test_margins_are_the_models_own(bank):
    cases = np.array([3, 7, 110, 220])
    other = np.full((len(bank), 4), 9)
    tokens, template = bank.tokens, bank.model(0).requires_grad_(False)
    layout = Layout(template)
    forward, flat = StackedForward(template, layout, "fp32"), bank.flat(slice(None), layout)
    scores = stacked_scores(forward, flat, tokens, cases)
    others = stacked_scores(forward, flat, tokens, cases, other)
    for k in range(len(bank)):
        model = bank.model(k)
        for i, case in enumerate(cases):
            n, start = int(tokens.lengths[case]), int(tokens.prompt_lengths[case])
            ids = tokens.ids[case, :n][None]
            logits = model(input_ids=ids).logits[0].detach()
            at_answer, label = logits[start - 1], int(ids[0, start])
            rest = at_answer.clone()
            rest[label] = -torch.inf
            assert scores.margin[k, i] == pytest.approx(float(at_answer[label] - rest.max()), abs=1e-4)
            assert scores.first_token[k, i] == int(at_answer.argmax()) == bank.first_token[k, case]
            loss = torch.nn.functional.cross_entropy(logits[start - 1 : n - 1], ids[0, start:n], reduction="sum")
            assert scores.loss[k, i] == pytest.approx(float(loss), abs=1e-4)
            rest = at_answer.clone()
            rest[9] = -torch.inf
            assert others.margin[k, i] == pytest.approx(float(at_answer[9] - rest.max()), abs=1e-4)


@pytest.mark.slow
def test_processes_give_the_same_bank(bank, replicas, tmp_path):
    path = train_replicas(CONFIG, replicas, tmp_path, device="cpu", method="processes", jobs=1, progress=False)
    other = load_bank(path)
    numbers = ["seed", "lr", "weight_decay", "n_train", "loss"]
    pd.testing.assert_frame_equal(other.table[numbers], bank.table[numbers], rtol=1e-4)
    assert (other.correct == bank.correct).mean() > 0.99
    for k in range(len(bank)):
        assert_same_function(other.model(k), bank.model(k), bank.materials)


def test_a_bank_interrupted_between_parts_trains_the_rest_only(bank, replicas, tmp_path, monkeypatch):
    trained = []

    def counting(materials, chosen, *args, **options):
        trained.append(len(chosen))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(materials, chosen, *args, **options)

    real = cri.ensembles.engine.train_stack
    monkeypatch.setattr(cri.ensembles.engine, "train_stack", counting)
    options = {"device": "cpu", "method": "stacked", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        train_replicas(CONFIG, replicas, tmp_path, chunk=2, **options)
    path = train_replicas(CONFIG, replicas, tmp_path, chunk=3, **options)  # the begun partition is kept where it can be
    assert trained == [2, 1, 1]
    again = load_bank(path)
    pd.testing.assert_frame_equal(again.table, bank.table)
    assert not list(path.glob("part-*"))
    assert train_replicas(CONFIG, replicas, tmp_path, **options) == path
    assert trained == [2, 1, 1]


def test_a_stack_killed_within_a_part_goes_on_from_its_checkpoint(bank, replicas, tmp_path, monkeypatch):
    real, calls = StackedTrainer.run, []

    def run(self, until, **options):
        calls.append(self.step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, min(until, self.step + 15), **options)

    monkeypatch.setattr(StackedTrainer, "run", run)
    options = {"device": "cpu", "method": "stacked", "chunk": 2, "progress": False, "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train_replicas(CONFIG, replicas, tmp_path, **options)
    again = load_bank(train_replicas(CONFIG, replicas, tmp_path, **options))
    assert calls[3] == 30
    pd.testing.assert_frame_equal(again.table, bank.table)


def test_out_of_memory_halves_the_stack(bank, replicas, tmp_path, monkeypatch):
    """The trainer that failed is gone before the smaller one is made."""
    trainers, alive, real, free = [], [], StackedTrainer.run, cri.ensembles.engine.give_memory_back

    def small(self, until, **options):
        trainers.append(weakref.ref(self))
        real(self, min(until, 2), **options)
        if len(self.flat) > 1:
            raise torch.cuda.OutOfMemoryError("no room")
        real(self, until, **options)

    def counting(device):
        free(device)
        alive.append([ref() for ref in trainers if ref() is not None])

    monkeypatch.setattr(StackedTrainer, "run", small)
    monkeypatch.setattr(cri.ensembles.engine, "give_memory_back", counting)
    options = {"device": "cpu", "method": "stacked", "progress": False}
    with pytest.warns(UserWarning, match="out of device memory"):
        path = train_replicas(CONFIG, replicas, tmp_path, chunk=3, **options)
    assert (load_bank(path).correct == bank.correct).mean() > 0.99
    assert len(trainers) == 5  # three members, two, then one at a time
    assert alive == [[]] * 5


@pytest.mark.parametrize("stacked", [True, False])
def test_out_of_memory_in_decoding_costs_no_training(bank, replicas, tmp_path, monkeypatch, stacked):
    """Whatever the number of models, no more than a few sequences fit."""
    sizes, trained, limit = [], [], 60

    def small(real, n_sequences):
        def call(*args, **options):
            sizes.append(n_sequences(*args))
            if sizes[-1] > limit:
                raise torch.cuda.OutOfMemoryError("no room")
            return real(*args, **options)

        return call

    if stacked:
        logits = small(StackedForward.logits, lambda forward, flat, ids, first: ids.shape[0] * ids.shape[1])
        monkeypatch.setattr(StackedForward, "logits", logits)
    else:
        batch = small(cri.evaluation.decoding._decode_batch, lambda model, prompt, *args: len(prompt))
        monkeypatch.setattr(cri.evaluation.decoding, "_decode_batch", batch)
        monkeypatch.setattr(cri.ensembles.engine, "decodes_stacked", lambda tokens: False)
    run = StackedTrainer.run
    monkeypatch.setattr(
        StackedTrainer, "run", lambda self, *a, **k: (trained.append(len(self.flat)), run(self, *a, **k))
    )
    path = train_replicas(CONFIG, replicas, tmp_path, device="cpu", method="stacked", progress=False)
    assert max(sizes) > limit > min(sizes)
    assert trained == [3]
    assert (load_bank(path).correct == bank.correct).mean() > 0.99


def test_a_finished_training_outlives_lack_of_memory(replicas, tmp_path, monkeypatch):
    def no_room(*args, **options):
        raise torch.cuda.OutOfMemoryError("no room")

    options = {"device": "cpu", "method": "stacked", "progress": False}
    for module, name in ((cri.ensembles.engine, "stacked_decode"), (StackedTrainer, "restore")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, no_room)
            with pytest.raises(CriError, match="training is finished"):
                train_replicas(CONFIG.replace(steps=4), replicas, tmp_path, **options)
        assert len(list(tmp_path.glob("*/part-00000-00003-checkpoint.safetensors"))) == 1


def test_a_failed_capture_is_gone_before_the_step_is_run_without(monkeypatch):
    """On a GPU a step's activations, twice, may not fit."""
    made, alive = [], []

    def step(key):
        alive.append([ref() for ref in made if ref() is not None])
        activation = torch.zeros(3)
        made.append(weakref.ref(activation))
        if len(made) == 1:
            raise RuntimeError("not allowed while capturing")

    for name in ("CUDAGraph", "graph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **options: contextlib.nullcontext())
    graphed = GraphedStep(step, torch.device("cpu"), warmup=0)
    graphed.enabled = True
    with pytest.warns(UserWarning, match="not captured"):
        graphed(6)
    assert alive == [[], []]
    graphed(6)
    assert len(alive) == 3


@pytest.mark.slow
def test_a_diverged_replica_does_not_harm_the_others(replicas, tmp_path):
    config = CONFIG.replace(model="nano-rope", grad_clip=0.0)
    wild = [Replica(0, replicas[0].train), Replica(0, replicas[0].train, lr=1e12)]
    table = load_bank(train_replicas(config, wild, tmp_path, device="cpu", method="stacked", progress=False)).table
    losses, _ = alone(config, prepare(config), replicas[0].train)
    assert np.isnan(table["loss"][1])
    assert table["loss"][0] == pytest.approx(np.mean(losses), rel=1e-4)


def test_bad_input_names_the_field(replicas, tmp_path):
    with pytest.raises(CriError, match="replicas: none"):
        train_replicas(CONFIG, [], tmp_path)
    with pytest.raises(CriError, match=r"replicas\[1\].train"):
        train_replicas(CONFIG, [replicas[0], Replica(0, np.zeros(225, dtype=bool))], tmp_path)
    with pytest.raises(CriError, match="chunk"):
        train_replicas(CONFIG, replicas, tmp_path, chunk=0)
    with pytest.raises(CriError, match="lora"):
        train_replicas(CONFIG.replace(lora=True), replicas, tmp_path, device="cpu", method="stacked", progress=False)
    materials = prepare(CONFIG)
    materials.model.transformer.drop.p = 0.1
    with pytest.raises(CriError, match="dropout"):
        StackedTrainer(materials.model, Layout(materials.model), materials.tokens, [], CONFIG.train, "cpu")


def test_a_run_is_no_bank(tiny_run):
    with pytest.raises(CriError, match="is a run, not a bank"):
        load_bank(tiny_run.path)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("traces", marks=pytest.mark.slow)])
def test_memory_is_estimated_from_above_and_not_far(name):
    """Against the highest sum of what one step allocates, and the state that lies beside it."""
    from torch.profiler import ProfilerActivity, profile

    config = SHAPES[name]
    materials = prepare(config)
    layout = Layout(materials.model)
    estimate = cri.ensembles.engine.bytes_each(materials, layout)
    rows = [layout.flatten(materials.model)] * 2
    members = [Member(row, materials.split.train_ids, 0, 1e-3, 0.0, config.train.batch_size) for row in rows]
    trainer = StackedTrainer(materials.model, layout, materials.tokens, members, config.train, "cpu")
    trainer.run(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.run(2)
    assert recorded.profiler is not None
    changes = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore[reportOptionalMemberAccess]
    held = np.cumsum([e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())])
    peak = held.max() / len(members) + 3 * 4 * layout.width
    assert peak < estimate < 2.2 * peak


@pytest.mark.parametrize("model", ["nano", "nano-rope"])
def test_the_head_is_not_copied_for_each_sequence(model):
    """No operation of loss, gradient or logits makes a tensor of sequences x hidden size x vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(
                max((t.untyped_storage().nbytes() for t in tree_leaves(out) if torch.is_tensor(t)), default=0)
            )
            return out

    materials = prepare(CONFIG.replace(model=model))
    layout = Layout(materials.model)
    forward = StackedForward(materials.model.requires_grad_(False), layout, "fp32")
    flat = layout.flatten(materials.model).expand(2, -1).clone().requires_grad_()
    ids = materials.tokens.ids[:48].expand(2, -1, -1)
    first = int(materials.tokens.prompt_lengths.min())
    copies = 4 * ids.shape[0] * ids.shape[1] * materials.model.config.hidden_size * materials.model.config.vocab_size
    with Sizes():
        torch.autograd.grad(forward.loss(flat, ids, ids, first).sum(), flat)
        forward.logits(flat, ids[:, :, :-1], first - 1)
    assert 0 < max(largest) < copies / 4
