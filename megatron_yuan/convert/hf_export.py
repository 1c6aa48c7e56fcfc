"""A native checkpoint -> a folder in the published Hugging Face layout: config.json, safetensors, tokenizer.model.

The folder is put together under a temporary name and renamed when whole. Tensors go from the checkpoint's mapped files
straight into the shards.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from megatron_yuan.checkpoint import layout, store, strict_json
from megatron_yuan.checkpoint.load import Checkpoint, open_checkpoint
from megatron_yuan.checkpoint.store import Pieces, TensorSpec
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate_model
from megatron_yuan.config.yaml_file import from_yaml
from megatron_yuan.convert.hf import model_shapes, require_new
from megatron_yuan.convert.hf_code_files import AUTO_MAP, code_files, generation_file, tokenizer_files
from megatron_yuan.convert.hf_config import write_config
from megatron_yuan.convert.hf_folder import CONFIG, TOKENIZER
from megatron_yuan.convert.names import EMBEDDING, HEAD, Match, check_publishable, matches
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import CheckpointError

SHARD_BYTES = 5_000_000_000
"""Largest file of weights that an export writes (one tensor may be larger), as transformers chooses."""


def export_hf(
    source: Path | str,
    folder: Path | str,
    ckpt_step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    with_code: bool = False,
    more_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the weights of a checkpoint, or of a run folder's latest one, as a Hugging Face folder; returns its path.

    Types are kept. Every file of the checkpoint is verified first, against its recorded hash and the model's shape.
    `with_code`: transformers can open the folder, by code of ours that is written into it. `more_files`: to be written
    beside the rest, by name.
    """
    # Resolved, for '.' has no name to put a temporary one beside, and a link to a folder cannot be renamed over.
    checkpoint, folder = open_checkpoint(source, ckpt_step), Path(folder).resolve()
    config = from_yaml(checkpoint.config_text, source=str(checkpoint.path / layout.CONFIG))
    validate_model(config.model, str(checkpoint.path / layout.CONFIG))
    check_publishable(config.model)
    checkpoint.check_model(model_shapes(config.model))
    require_new(folder)
    tensors = published_tensors(checkpoint, config)
    shards = make_shards({name: each.spec.nbytes for name, each in tensors.items()}, shard_bytes)
    temporary = folder.with_name(f"{folder.name}.tmp-{layout.new_token()}")
    with _explained(folder, sum(each.spec.nbytes for each in tensors.values())):
        checkpoint.verify_files()
        try:
            temporary.mkdir(parents=True)
            for file, names in shards.items():
                store.write_tensors(temporary / file, {name: tensors[name] for name in names}, {"format": "pt"})
            small = {**_small_files(checkpoint, config, shards, tensors, with_code), **(more_files or {})}
            for file, content in small.items():
                layout.write_durably(temporary / file, content)
            layout.sync_folder(temporary)
            os.rename(temporary, folder)
            layout.sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return folder


def published_tensors(checkpoint: Checkpoint, config: Config) -> dict[str, Pieces]:
    """Every tensor of the published layout, by its name there, to be read when it is written."""
    reader = _Reader(checkpoint)
    shapes, dtypes = checkpoint.shapes(), checkpoint.dtypes()
    found: dict[str, Pieces] = {}
    for match in matches(config.model):
        spec = TensorSpec(dtypes[match.ours], match.their_shape(shapes[match.ours]))
        for name in match.theirs:
            found[name] = Pieces(spec, partial(reader.pieces, match, name))
    tied = not config.model.untie_embeddings_and_output_weights
    if tied and checkpoint.run_state.extra.get("hf_has_head", True):
        embedding = Match(EMBEDDING, (HEAD,), next(matches(config.model)).form)
        found[HEAD] = Pieces(TensorSpec(dtypes[EMBEDDING], shapes[EMBEDDING]), partial(reader.pieces, embedding, HEAD))
    return found


def make_shards(nbytes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """File name -> tensors in it: in order, each file up to `limit` bytes; a single one has the single file's name."""
    groups: list[list[str]] = []
    room = 0
    for name, size in nbytes.items():
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def _small_files(
    checkpoint: Checkpoint,
    config: Config,
    shards: Mapping[str, list[str]],
    tensors: Mapping[str, Pieces],
    with_code: bool,
) -> dict[str, bytes]:
    original = checkpoint.run_state.extra.get("hf_config")
    eod_id = config.data.eod_id
    files: dict[str, bytes] = code_files() if with_code else {}
    tokenizer = None
    if checkpoint.tokenizer is not None:
        files[TOKENIZER] = checkpoint.tokenizer.read_bytes()
        if with_code or eod_id is None:
            tokenizer = Tokenizer(checkpoint.tokenizer)
            eod_id = tokenizer.eod_id if eod_id is None else eod_id
            files |= tokenizer_files(config.model.max_position_embeddings) if with_code else {}
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        total = sum(each.spec.nbytes for each in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        files["model.safetensors.index.json"] = strict_json.readable(index).encode()
    dtype = checkpoint.dtypes()[EMBEDDING]
    keys = write_config(config, dtype, eod_id, original if isinstance(original, dict) else None)
    if with_code:
        files |= generation_file(tokenizer, keys, config.model.vocab_size)
        keys["auto_map"] = AUTO_MAP
        keys.pop("tokenizer_class", None)
    files[CONFIG] = strict_json.readable(keys).encode()
    return files


@dataclass
class _Reader:
    """A checkpoint's tensors, mapped from its files."""

    checkpoint: Checkpoint
    _open: dict[Path, Any] = field(default_factory=dict)

    def pieces(self, match: Match, name: str) -> Iterator[Tensor]:
        """The published tensor `name` of `match`, as one piece."""
        path = self.checkpoint.path / layout.file_of(match.ours)
        if path not in self._open:
            self._open.clear()  # matches come file by file
            self._open[path] = safetensors.safe_open(path, framework="pt")
        yield match.split(self._open[path].get_tensor(match.ours))[name]


@contextmanager
def _explained(folder: Path, nbytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"no disk space for {folder}: it needs {nbytes:,} bytes; nothing was left there, free space and repeat"
            ) from None
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}; nothing was left there") from None
