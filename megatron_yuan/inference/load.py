"""Open a native checkpoint or a Hugging Face folder as a model to use, whole or one pipeline stage's part of it."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_yuan.checkpoint import layout
from megatron_yuan.checkpoint.load import is_checkpoint, open_checkpoint
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_model
from megatron_yuan.config.yaml_file import from_yaml
from megatron_yuan.convert.hf import EMBEDDING, check_folder, load_hf, model_shapes
from megatron_yuan.convert.hf_folder import is_hf_folder, open_hf_folder
from megatron_yuan.errors import CheckpointError, ConfigError
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.parallel.topology import Topology

DTYPES = {
    **dict.fromkeys(("fp32", "float32"), torch.float32),
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16"), torch.float16),
}


def load(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    topology: Topology | None = None,
    ckpt_step: int | None = None,
) -> LanguageModel:
    """Open a run folder, a checkpoint or a Hugging Face folder as a model in evaluation mode.

    dtype: unset, as saved; float32 takes a checkpoint's master weights where it has them. device: unset, the CPU;
    "auto" takes a GPU where there is one. `topology`: this process holds its stage's layers alone, on its device.
    `ckpt_step`: of a run folder, this step instead of the newest. Memory: the model's own and little more.
    CheckpointError says what is wrong.
    """
    place, wanted = _device(device) if topology is None else topology.device, _dtype(dtype)
    if is_checkpoint(path):
        checkpoint = open_checkpoint(path, ckpt_step)
        config = from_yaml(checkpoint.config_text, source=str(checkpoint.path / layout.CONFIG))
        validate_model(config.model, str(checkpoint.path / layout.CONFIG))
        checkpoint.check_model(model_shapes(config.model))
        model = _unfilled(
            config, checkpoint.tokenizer, wanted or checkpoint.dtypes()["embedding.weight"], place, topology
        )
        checkpoint.load_weights({name: each.data for name, each in model.named_parameters()}, cast=True)
    elif is_hf_folder(path):
        folder = open_hf_folder(path)
        check_folder(folder)
        stored = folder.specs[EMBEDDING].dtype if EMBEDDING in folder.specs else torch.float32
        model = _unfilled(folder.config, folder.tokenizer, wanted or stored, place, topology)
        load_hf(folder, dict(model.named_parameters()))
    else:
        what = "neither a checkpoint nor a Hugging Face folder" if Path(path).exists() else "not there"
        raise CheckpointError(
            f"{path} is {what}; give a run folder with checkpoints/, a checkpoint, or a folder with config.json and "
            "model.safetensors"
        )
    return model.eval()


def _unfilled(
    config: Config,
    tokenizer_path: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    topology: Topology | None,
) -> LanguageModel:
    tokenizer, eod_id = None, config.data.eod_id
    if tokenizer_path is not None:
        from megatron_yuan.data.tokenizer import Tokenizer

        tokenizer = Tokenizer(str(tokenizer_path))
    if eod_id is None and tokenizer is not None:
        eod_id = tokenizer.eod_id
    with torch.device("meta"):
        model = LanguageModel(config, tokenizer, eod_id, topology)
    return model.to(dtype).to_empty(device=device)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"dtype is {dtype}, but must be one of {', '.join(DTYPES)}.")
    return dtype


def _device(device: torch.device | str | None) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device or "cpu")
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {str(device)!r}, but must be auto, cpu, cuda or cuda:N.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {str(device)!r}, but torch sees no GPU here; give --device cpu.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {str(device)!r}, but torch sees {torch.cuda.device_count()} GPUs, counted from 0."
        )
    return chosen
