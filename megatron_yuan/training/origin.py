"""Where a run starts from: nothing, its own last checkpoint, or the weights of another run or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from megatron_yuan import log
from megatron_yuan.checkpoint.load import Checkpoint, check_shapes, is_checkpoint, load_checkpoint, open_checkpoint
from megatron_yuan.config.same_network import check_same_network
from megatron_yuan.config.schema import CheckpointConfig, ModelConfig
from megatron_yuan.config.yaml_file import from_yaml
from megatron_yuan.convert.hf import load_hf
from megatron_yuan.convert.hf_folder import is_hf_folder, open_hf_folder
from megatron_yuan.data.passport import sha256_of
from megatron_yuan.errors import CheckpointError
from megatron_yuan.training.run import Run


def load_origin(run: Run, tokenizer_sha256: str | None) -> str:
    """Put the new `run` where its settings say; returns where it came from, in words. Called by all ranks together.

    `tokenizer_sha256` is of the tokenizer that made the data, where that is known.
    """
    settings = run.config.checkpoint
    path, own = _origin(settings)
    if path is None:
        return f"new weights from seed {run.config.training.seed}"
    if not is_checkpoint(path) and is_hf_folder(Path(path)):
        return _load_hf(run, path, tokenizer_sha256)
    step = settings.ckpt_step if path == settings.load or settings.load is None else None
    checkpoint = open_checkpoint(path, step, run.topology)
    if own and settings.load not in (None, settings.save):
        log.logger.info(f"{path} holds a checkpoint already: going on from there, not from --load {settings.load}")
    new_run = settings.finetune and not own
    _load_native(run, checkpoint, new_run, tokenizer_sha256)
    return f"{'weights' if new_run else 'everything'} from {checkpoint.path}"


def _origin(settings: CheckpointConfig) -> tuple[str | None, bool]:
    """The path to load, and whether it is the run's own folder: that comes first, lest a restart begin anew."""
    own = settings.save is not None and is_checkpoint(settings.save)
    if own and not (settings.load == settings.save and settings.finetune):
        return settings.save, True
    if settings.load is not None and settings.load == settings.save and not Path(settings.load).exists():
        log.logger.info(f"there is nothing at --load {settings.load} yet: the run begins there")
        return None, False
    return settings.load, False


def _load_native(run: Run, checkpoint: Checkpoint, new_run: bool, tokenizer_sha256: str | None) -> None:
    settings, model = run.config.checkpoint, run.model
    weights = {name: parameter.data for name, parameter in model.parameters.items()}
    check_shapes(checkpoint, run.topology, weights)
    saved = from_yaml(checkpoint.config_text, source=f"the config of {checkpoint.path}").model
    _check_network(run, saved, str(checkpoint.path), new_run)
    _check_tokenizer(str(checkpoint.path), checkpoint.tokenizer_sha256, tokenizer_sha256, new_run)
    with_optimizer = settings.load_optim and not new_run and checkpoint.has_optimizer
    state = model.optimizer.state() if with_optimizer else None
    load_checkpoint(checkpoint, run.topology, weights, state, cast=new_run)
    if not with_optimizer:
        model.optimizer.take_weights()
    if not new_run:
        position = checkpoint.run_state
        run.step, run.consumed_samples, run.tokens = position.step, position.consumed_samples, position.tokens
        if with_optimizer:
            model.optimizer.steps = position.optimizer_steps


def _load_hf(run: Run, path: str, tokenizer_sha256: str | None) -> str:
    folder = open_hf_folder(Path(path))
    _check_network(run, folder.config.model, path, new_run=True)
    theirs = None if folder.tokenizer is None else sha256_of(folder.tokenizer)
    _check_tokenizer(path, theirs, tokenizer_sha256, new_run=True)
    load_hf(folder, {name: parameter.data for name, parameter in run.model.parameters.items()})
    run.model.optimizer.take_weights()
    return f"weights of the Hugging Face folder {path}"


def _check_network(run: Run, saved: ModelConfig, where: str, new_run: bool) -> None:
    for remark in check_same_network(saved, run.config.model, where, new_run):
        log.logger.info(remark)


def _check_tokenizer(where: str, theirs: str | None, ours: str | None, new_run: bool) -> None:
    if theirs is None or ours is None or theirs == ours:
        return
    problem = f"the data's tokenizer (sha256 {ours[:12]}...) is not the one of {where} ({theirs[:12]}...)"
    if not new_run:
        raise CheckpointError(f"{problem}. Fix: data of the same tokenizer, or another --save for a new run.")
    log.logger.info(f"warning: {problem}; its weights mean other tokens, unless one tokenizer extends the other")
