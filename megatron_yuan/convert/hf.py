"""Weights in and out of the published Hugging Face layout: every tensor accounted for, bits unchanged, one at a time.

`import_hf` writes a native checkpoint (weights alone, step 0), `export_hf` a Hugging Face folder; `load_hf` fills a
model's parameters straight from a folder. All checks come before the first byte is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_yuan.checkpoint import layout
from megatron_yuan.checkpoint.save import save_in_pieces
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.store import Pieces, TensorSpec
from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.convert.hf_folder import HfFolder, open_hf_folder
from megatron_yuan.convert.names import HEAD, Match, fill, matches
from megatron_yuan.errors import CheckpointError
from megatron_yuan.model.model import YuanModel

_SHOWN = 10  # differing tensors named in one error
EMBEDDING = "model.embed_tokens.weight"


def model_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by global name; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in YuanModel(config).named_parameters()}


def check_folder(folder: HfFolder) -> None:
    """CheckpointError, tensor by tensor, unless the folder holds exactly the model that its config.json describes."""
    config = folder.config.model
    # Before anything is made for each layer and expert: a wrong figure in config.json must not take the memory.
    if config.num_layers * config.num_experts > len(folder.specs):
        raise CheckpointError(
            f"{folder.path} does not hold the model of its config.json: num_hidden_layers {config.num_layers} x "
            f"moe_num_experts {config.num_experts} are more experts than there are tensors ({len(folder.specs)}); "
            "correct config.json, or complete the weights"
        )
    shapes = model_shapes(config)
    wanted: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    for match in matches(config):
        shape = match.their_shape(shapes[match.ours])
        wanted.update(dict.fromkeys(match.theirs, shape))
        types = {folder.specs[name].dtype for name in match.theirs if name in folder.specs}
        if len(types) > 1 or not all(dtype.is_floating_point for dtype in types):
            problems.append(f"{match.theirs[0]} and its kin: of types {sorted(map(str, types))}")
    if not config.untie_embeddings_and_output_weights and HEAD in folder.specs:
        wanted[HEAD] = shapes["embedding.weight"]
    for name, shape in wanted.items():
        if name not in folder.specs:
            problems.append(f"{name}: missing, should be {list(shape)}")
        elif folder.specs[name].shape != shape:
            problems.append(f"{name}: {list(folder.specs[name].shape)}, should be {list(shape)}")
    problems += [f"{name}: unknown, the model has no such tensor" for name in folder.specs if name not in wanted]
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        head = f"{folder.path} does not hold the model of its config.json, {len(problems)} tensors differ:"
        raise CheckpointError("\n  ".join([head, *problems[:_SHOWN], *more]))
    _check_tied_head(folder)


def _check_tied_head(folder: HfFolder) -> None:
    if folder.config.model.untie_embeddings_and_output_weights or HEAD not in folder.specs:
        return
    if folder.specs[HEAD] == folder.specs[EMBEDDING]:
        copy, embedding = (folder.tensor(name).contiguous().view(torch.uint8) for name in (HEAD, EMBEDDING))
        if torch.equal(copy, embedding):
            return
    raise CheckpointError(
        f"{folder.path}: its config.json ties the embeddings (tie_word_embeddings), but {HEAD} is unlike {EMBEDDING}; "
        "set tie_word_embeddings to false if the model was trained with a head of its own"
    )


def load_hf(folder: HfFolder, into: Mapping[str, Tensor]) -> None:
    """Copy weights into parameters given by global name, in place, cast to their types; others are left alone.

    The whole folder is checked first. Memory beyond `into`: one published tensor.
    """
    check_folder(folder)
    found = {match.ours: match for match in matches(folder.config.model)}
    shapes = model_shapes(folder.config.model)
    for name, target in into.items():
        if name not in found or shapes[name] != tuple(target.shape):
            raise CheckpointError(
                f"{folder.path} is of another model: {name} is {list(target.shape)} in the model, "
                f"{list(shapes[name]) if name in found else 'missing'} in the folder"
            )
        fill(target, _pieces(folder, found[name]))


def import_hf(source: Path | str, run_folder: Path | str) -> Path:
    """Write the native checkpoint RUN/checkpoints/iter_0000000 of a Hugging Face folder; returns its path.

    Weights keep their types. The source's config.json is kept in the run state, for the way back.
    """
    folder, run_folder = open_hf_folder(source), Path(run_folder)
    check_folder(folder)
    require_new(run_folder)
    shapes = model_shapes(folder.config.model)
    files: dict[str, dict[str, Tensor | Pieces]] = {}
    nbytes = 0
    for match in matches(folder.config.model):
        spec = TensorSpec(folder.specs[match.theirs[0]].dtype, shapes[match.ours])
        nbytes += spec.nbytes
        pieces = Pieces(spec, partial(_pieces, folder, match))
        files.setdefault(layout.file_of(match.ours), {})[match.ours] = pieces
    state = RunState(0, 0, extra={"hf_config": folder.keys, "hf_has_head": HEAD in folder.specs})
    existed = run_folder.exists()
    try:
        return save_in_pieces(run_folder, state, files.values(), nbytes, to_yaml(folder.config), folder.tokenizer)
    except BaseException:
        for empty in (layout.checkpoints_folder(run_folder), *([] if existed else [run_folder])):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
        raise


def require_new(path: Path) -> None:
    """CheckpointError unless `path` is free to be written: absent, or an empty folder."""
    try:
        taken = path.exists() and (not path.is_dir() or any(os.scandir(path)))
    except OSError as error:
        raise CheckpointError(f"cannot write to {path}: {error.strerror}") from None
    if taken:
        raise CheckpointError(f"{path} exists and is not an empty folder; nothing was written: choose another --save")


def _pieces(folder: HfFolder, match: Match) -> Iterator[Tensor]:
    return match.join(folder.tensor(name) for name in match.theirs)
