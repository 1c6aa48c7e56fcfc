"""Where a run starts from: nothing, its own last checkpoint, or the weights of another run or a Hugging Face folder.

Found and checked before data and model are built, loaded after.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_yuan import log
from megatron_yuan.checkpoint.agreement import together
from megatron_yuan.checkpoint.damage import DamagedError
from megatron_yuan.checkpoint.load import (
    is_checkpoint,
    load_checkpoint,
    open_checkpoint,
    refuse_only_damaged,
    set_aside_damaged,
)
from megatron_yuan.checkpoint.opened import Checkpoint
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.same_data import check_same_data
from megatron_yuan.config.same_network import check_same_network
from megatron_yuan.config.schema import CheckpointConfig, Config, ModelConfig
from megatron_yuan.config.yaml_file import from_yaml
from megatron_yuan.convert.hf import load_hf, model_shapes
from megatron_yuan.convert.hf_folder import HfFolder, is_hf_folder, open_hf_folder
from megatron_yuan.data.digest import sha256_of
from megatron_yuan.errors import CheckpointError
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.training.setup import TrainingModel


@dataclass(frozen=True)
class Origin:
    """A checked place to start from."""

    source: Checkpoint | HfFolder | None
    """None: new weights."""
    goes_on: bool = False
    """Step, position in the data and optimizer go on too, not the weights alone."""
    replaceable: bool = False
    """It is the run's own newest checkpoint: should it prove damaged, the one before it serves."""

    @property
    def position(self) -> RunState:
        """Where the run stands in time."""
        return self.source.run_state if self.goes_on and isinstance(self.source, Checkpoint) else RunState(0, 0)

    def load(self, model: TrainingModel, config: Config, topology: Topology) -> str:
        """Fill `model`; returns what was loaded, in words. Called by all ranks together."""
        weights = {name: parameter.data for name, parameter in model.parameters.items()}
        if self.source is None:
            return f"new weights from seed {config.training.seed}"
        if isinstance(self.source, HfFolder):
            load_hf(self.source, weights)
            model.optimizer.take_weights()
            return f"weights of the Hugging Face folder {self.source.path}"
        with_optimizer = config.checkpoint.load_optim and self.goes_on and self.source.has_optimizer
        state = model.optimizer.state() if with_optimizer else None
        cast = not self.goes_on
        load_checkpoint(self.source, topology, weights, state, cast=cast, alive=lambda: topology.pulse.beat("load"))
        if with_optimizer:
            model.optimizer.steps = self.position.optimizer_steps
        else:
            model.optimizer.take_weights()
        return f"{'everything' if self.goes_on else 'weights'} from {self.source.path}"


def find_origin(config: Config, topology: Topology, tokenizer_sha256: str | None) -> Origin:
    """Open what the settings name, and hold it against the model and the data. Called by all ranks together.

    `tokenizer_sha256` is of the tokenizer that made the data, where that is known. Raises CheckpointError, tensor by
    tensor, for another model, and ConfigError for the same weights as another network.
    """
    settings = config.checkpoint
    main = topology.is_main
    nowhere = (None, False, None)
    path, own, step = together(topology, "finding a checkpoint", lambda: _path(settings) if main else nowhere)[0]
    if path is None:
        return Origin(None)
    if not is_checkpoint(path) and is_hf_folder(Path(path)):
        folder = open_hf_folder(Path(path))
        _check_network(folder.config.model, config.model, path, new_run=True)
        theirs = None if folder.tokenizer is None else sha256_of(folder.tokenizer)
        _check_tokenizer(path, theirs, tokenizer_sha256, new_run=True)
        return Origin(folder)
    if own and settings.load not in (None, path):
        log.logger.info(f"{path} holds a checkpoint already: going on from there, not from --load {settings.load}")
    replaceable, where = own and step is None, str(path)
    checkpoint = open_checkpoint(path, step, topology, verify=settings.verify, fall_back=replaceable)
    new_run = settings.finetune and not own
    checkpoint.check_model(model_shapes(config.model))
    saved = from_yaml(checkpoint.config_text, source=f"the config of {checkpoint.path}")
    _check_network(saved.model, config.model, where, new_run)
    _check_tokenizer(where, checkpoint.tokenizer_sha256, tokenizer_sha256, new_run)
    if not new_run:
        check_same_data(saved, config, where)
    return Origin(checkpoint, goes_on=not new_run, replaceable=replaceable)


def load_origin(
    origin: Origin, model: TrainingModel, config: Config, topology: Topology, tokenizer_sha256: str | None
) -> tuple[Origin, str]:
    """Fill `model`; returns where from, and that in words. Called by all ranks together.

    The run's own newest checkpoint may show only now, while its tensors are read and hashed, that it is damaged. It is
    then set aside, and the newest before it found as `find_origin` does, and loaded.
    """
    while True:
        try:
            return origin, origin.load(model, config, topology)
        except DamagedError as damage:
            if not (origin.replaceable and isinstance(origin.source, Checkpoint)):
                raise DamagedError(f"{damage}. Choose an earlier checkpoint with --ckpt-step") from None
            set_aside_damaged(origin.source, topology, damage)
            origin = find_origin(config, topology, tokenizer_sha256)


def branch_of(settings: CheckpointConfig) -> str | None:
    """What a session that goes back in its own run folder writes into its checkpoints, so that a restart of the same
    command by a launcher goes on from them instead of going back again."""
    within = settings.save is not None and settings.load in (None, settings.save)
    if within and settings.finetune and settings.load is not None:
        return f"finetune {settings.ckpt_step}"
    return f"ckpt-step {settings.ckpt_step}" if within and settings.ckpt_step is not None else None


def _path(settings: CheckpointConfig) -> tuple[str | None, bool, int | None]:
    """The path to load, whether it is the run's own folder, which comes first, lest a restart begin anew; and the step,
    None for the newest."""
    own = settings.save is not None and is_checkpoint(settings.save)
    if own and _has_branched(settings):
        log.logger.info(f"{settings.save} has gone on from where this command begins: going on from its newest step")
        return settings.save, True, None
    if own and not (settings.load == settings.save and settings.finetune):
        return settings.save, True, settings.ckpt_step if settings.load in (None, settings.save) else None
    if settings.save is not None and not own:
        refuse_only_damaged(settings.save)
    if settings.load is not None and settings.load == settings.save and not own:
        log.logger.info(f"there is no checkpoint in --load {settings.load} yet: the run begins there")
        return None, False, None
    return settings.load, False, settings.ckpt_step


def _has_branched(settings: CheckpointConfig) -> bool:
    branch = branch_of(settings)
    if branch is None or settings.save is None:
        return False
    try:
        return open_checkpoint(settings.save).run_state.extra.get("branch") == branch
    except CheckpointError:
        return False  # said where it is loaded


def _check_network(saved: ModelConfig, asked: ModelConfig, where: str, new_run: bool) -> None:
    for remark in check_same_network(saved, asked, where, new_run):
        log.logger.info(remark)


def _check_tokenizer(where: str, theirs: str | None, ours: str | None, new_run: bool) -> None:
    if theirs is None or ours is None or theirs == ours:
        return
    problem = f"the data's tokenizer (sha256 {ours[:12]}...) is not the one of {where} ({theirs[:12]}...)"
    if not new_run:
        raise CheckpointError(f"{problem}. Fix: data of the same tokenizer, or another --save for a new run.")
    log.logger.info(f"warning: {problem}; its weights mean other tokens, unless one tokenizer extends the other")
