"""Everything that a config names, prepared once before training: task, split, format, tokenizer, tokens, model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.checks import check_memory
from cri.config import RunConfig, TrainConfig
from cri.data.splits import Split, make_split
from cri.data.tokenization import TOKENIZERS
from cri.errors import CorruptRunError, CriError, unknown_name
from cri.models.presets import PRESETS, is_preset
from cri.storage import config_hash
from cri.tasks import Task, make_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cri.data.token_table import TokenTable
    from cri.formats import Format
    from cri.models.loading import LoraConfig
    from cri.models.positions import Positions


TRAINED = "trained.safetensors"
"""What a run changed of a model that lies elsewhere."""


@dataclass(frozen=True)
class Part:
    """What a run trains of its model.

    Attributes:
        lora: the adapters, None where the model's own weights are trained.
        last_layers: only so many layers, from the end; 0 for all.
        kept_alone: whether the run's folder holds what was trained and not the whole model, which lies elsewhere.
        seed: of the adapters.
    """

    lora: LoraConfig | None = None
    last_layers: int = 0
    kept_alone: bool = False
    seed: int = 0

    @property
    def share(self) -> float:
        """Roughly the share of a model's parameters that have a gradient."""
        return 1.0 if not self.last_layers and self.lora is None else 0.5 if self.lora is None else 0.1


def part_of(config: RunConfig) -> Part:
    """Raises `CriError` naming the setting of adapters that is not one."""
    from cri.models.loading import LoraConfig

    lora = LoraConfig.of(config.lora_params) if config.lora else None
    partial = lora is not None or config.last_layers > 0
    return Part(lora, config.last_layers, partial and not is_preset(config.model), config.seed)


@dataclass(frozen=True, eq=False)
class Materials:
    """Everything a run starts from.

    It travels to another process as its config, and is prepared again there: that is quicker than sending tokenizer
    and model.
    """

    config: RunConfig
    task: Task
    split: Split
    format: Format
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenTable
    model: PreTrainedModel
    base_weights: str = ""
    """Hash of the weights of the model that training starts from, where the config only names it; none for a preset,
    whose weights the config decides."""
    part: Part = Part()

    def __reduce__(self) -> tuple[Callable[[RunConfig], Materials], tuple[RunConfig]]:
        return prepare, (self.config,)

    @cached_property
    def described(self) -> dict[str, Any]:
        """The config as JSON, as run folders keep it."""
        return self.config.to_dict()

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes that a checkpoint or finished run must share with this config and code."""
        mask = "".join(map(str, self.split.train.astype(int)))
        own = {
            "config": config_hash(self.described),
            "data": self.tokens.sha256()[:16],
            "split": config_hash({"mask": mask}),
        }
        return {**own, BASE_WEIGHTS: self.base_weights} if self.base_weights else own


BASE_WEIGHTS = "base_weights"
"""Key of the identity of a run that starts from a model made elsewhere. Runs made before it was recorded lack it."""


def require_same(folder: Path, found: dict[str, str], expected: dict[str, str]) -> None:
    """Raises `CorruptRunError` where a finished run's recorded identity is not the `expected` one."""
    for key, value in expected.items():
        if key == BASE_WEIGHTS and key not in found:  # made before these were recorded: opened, but not in silence
            print(f"note: {folder} does not record which weights it started from", file=sys.stderr)
        elif found.get(key) != value:
            what = key.replace("_", " ")
            raise CorruptRunError(f"run: {folder} was made with other {what}; remove the folder and train again")


def initial_model(
    config: RunConfig, task: Task, fmt: Format, tokenizer: PreTrainedTokenizerBase, tokens: TokenTable
) -> PreTrainedModel:
    """The randomly initialised model that a run of a preset starts from."""
    from cri.evaluation.decoding import max_new_tokens_for
    from cri.models.loading import build_model
    from cri.models.position_options import RandomOptions, position_options
    from cri.models.rotary import rope_parameters

    options = position_options(config.positions, config.position_params)
    n_positions = int(tokens.prompt_lengths.max()) + max_new_tokens_for(tokens)
    shape, rope = PRESETS.get(config.model), None
    if config.positions == "structured" and shape is not None:
        period = run_positions(config, task, fmt, tokenizer).period
        n_positions = max(n_positions, period)
        rope = rope_parameters(period, shape.d_head) if shape.block == "llama" else None
    elif isinstance(options, RandomOptions):
        n_positions = max(n_positions, options.longest)
    return build_model(
        config.model,
        vocab_size=len(tokenizer),
        n_positions=n_positions,
        pad=tokens.pad,
        eos=tokens.eos,
        seed=config.seed,
        rope=rope,
    )


def run_positions(
    config: RunConfig, task: Task, fmt: Format, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> Positions:
    """The positions of a run's texts; raises `CriError` where its format, tokenizer or model has no place for them."""
    from cri.formats.fields import format_fields
    from cri.models.position_options import position_options
    from cri.models.positions import Positions

    options = position_options(config.positions, config.position_params)
    if config.positions != "structured":
        return Positions(config.positions, options)
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    vocabulary = [token for token, _ in ids]
    fields = format_fields(fmt, task, vocabulary)
    table = None if model is None else getattr(model.config, "n_positions", None)
    positions = Positions(config.positions, options, fields, vocabulary, with_lines=table is None)
    if table is not None and table < positions.period:
        raise CriError(f"positions: the model's {table} positions do not hold the {positions.period} of a line")
    return positions


def check_steps(train: TrainConfig) -> None:
    """Raises `CriError` for more steps than their order of batches has memory for."""
    order = 16 * train.steps * train.batch_size
    check_memory("steps", train.steps, order, f"the order of {train.steps:,} batches of {train.batch_size:,}")


def _grid(config: RunConfig) -> tuple[Task, Format, Split]:
    """Task, format and split of a config; raises `CriError` naming the field for an unknown name or a bad value."""
    from cri.formats import make_format
    from cri.formats.fields import require_lists
    from cri.models.position_options import position_options

    position_options(config.positions, config.position_params)
    part_of(config)
    fmt = make_format(config.format)
    if is_preset(config.model) and config.tokenizer not in TOKENIZERS:
        raise unknown_name("tokenizer", config.tokenizer, TOKENIZERS)
    task = make_task(config.task, **config.task_params)
    if config.positions == "structured":
        require_lists(fmt, task)  # before the texts of the whole grid are written
    return task, fmt, make_split(task, config.split, **config.split_params)


def check(config: RunConfig) -> None:
    """Raises `CriError` naming the field for anything `prepare` could not build, without building what takes long."""
    check_steps(config.train)
    _grid(config)


def prepare(config: RunConfig) -> Materials:
    """Builds what `config` names, each thing once; raises `CriError` naming the field for anything it cannot build."""
    from cri.data.token_table import encode, task_tokenizer, texts
    from cri.data.tokenization import require_digits, require_prompts_in_context
    from cri.models.loading import load_pretrained, require_positions
    from cri.training.checkpoints import tensors_sha256

    check_steps(config.train)
    task, fmt, split = _grid(config)
    base_weights = ""
    if is_preset(config.model):
        tokenizer = task_tokenizer(config.tokenizer, task, fmt)
        tokens = encode(task, fmt, tokenizer)
        model = initial_model(config, task, fmt, tokenizer, tokens)
    else:
        model, tokenizer = load_pretrained(config.model, in_training=part_of(config).share)
        require_digits(tokenizer)
        tokens = encode(task, fmt, tokenizer)
        require_prompts_in_context(tokenizer, *texts(task, fmt))
        require_positions(model, tokens.ids.shape[1])
        base_weights = tensors_sha256(model.state_dict())[:16]  # before training changes them
    part = part_of(config)
    return _with_positions(Materials(config, task, split, fmt, tokenizer, tokens, model, base_weights, part))


def reopen(config: RunConfig, folder: Path) -> Materials:
    """What a finished run was trained on, with the model and tokenizer saved in `folder`; raises as `prepare` does.

    Where only a part of a pretrained model was trained, the folder holds that part alone, and the rest is read from the
    model that the config names.
    """
    from cri.data.token_table import encode
    from cri.models.loading import load_pretrained
    from cri.training.checkpoints import read_trained

    if (folder / TRAINED).exists():
        materials = prepare(config)
        model = part_to_train(materials)
        read_trained(model, folder / TRAINED)
        return replace(materials, model=whole(model, materials.part))
    model, tokenizer = load_pretrained(str(folder))
    task, fmt, split = _grid(config)
    return _with_positions(Materials(config, task, split, fmt, tokenizer, encode(task, fmt, tokenizer), model))


def part_to_train(materials: Materials) -> Any:
    """The model with what is to be trained of it marked: adapters, the last layers, or all."""
    from cri.models.loading import add_lora
    from cri.models.partial import train_last_layers

    part, model = materials.part, materials.model
    if part.lora is not None:
        return add_lora(model, part.lora, part.seed, part.last_layers)
    return train_last_layers(model, part.last_layers) if part.last_layers else model


def whole(model: Any, part: Part) -> PreTrainedModel:
    """A trained model as one plain model, adapters merged, nothing frozen, in eval mode."""
    from cri.models.loading import merge_lora

    plain = model if part.lora is None else merge_lora(model)
    return plain.requires_grad_(True).eval()


def _with_positions(materials: Materials) -> Materials:
    """The same, its model given the positions that its texts have."""
    from cri.models.positions import attach

    m = materials
    positions = run_positions(m.config, m.task, m.format, m.tokenizer, m.model)
    positions.check(m.tokens)
    attach(m.model, positions)
    return m
