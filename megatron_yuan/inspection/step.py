"""The samples of one step of a run, made again exactly as training made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_yuan.checkpoint import layout
from megatron_yuan.checkpoint.load import open_checkpoint
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.data.batch import Batch
from megatron_yuan.data.datasets import Sources, build_training_samples, open_sources
from megatron_yuan.data.fim import Cut, FimSamples
from megatron_yuan.data.index_cache import FORMAT
from megatron_yuan.data.record import check_same_data
from megatron_yuan.data.sample import Sample
from megatron_yuan.data.sampler import Microbatches
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.data.verify import verify_sources
from megatron_yuan.errors import CheckpointError, DataError
from megatron_yuan.inspection.session import Session, open_session
from megatron_yuan.training.batches import training_batches
from megatron_yuan.training.run_data import number_of_samples, record_of


@dataclass(frozen=True)
class Row:
    """One sample of a step, as the model gets it; S + 1 tokens, of which the last S are labels and all but the last
    inputs."""

    sample: int
    """Its number in the data order."""
    set_name: str
    tokens: np.ndarray
    """Ids [S + 1]."""
    loss: np.ndarray
    """[S + 1], True where the token, as a label, has loss."""
    positions: np.ndarray
    """[S] of the inputs."""
    begins: np.ndarray | None
    """[S + 1], True where a document begins that no <eod> goes before; None: nowhere."""
    cuts: list[Cut]
    """Documents that FIM rearranged."""


@dataclass(frozen=True)
class Step:
    """What one step consumes."""

    number: int
    session: Session
    rows: list[Row]
    eod_id: int
    tokenizer: Tokenizer | None

    @property
    def remark(self) -> str:
        """Whether it was trained on."""
        record = self.session.record(self.number)
        if record is None:
            return "not made yet, or its record was lost"
        return f"skipped: {record['skipped']}" if "skipped" in record else "trained on"


def open_step(folder: Path, number: int) -> Step:
    """The rows of step `number` of the run in `folder`, in the order of its microbatches.

    Raises DataError where the data are not, or no longer, those that the run's checkpoints tell of.
    """
    session = open_session(folder, number)
    config = session.config
    sources = open_sources(config.data, config.model.vocab_size)
    _check_data(session, sources)
    position = RunState(session.step, session.samples)
    samples = build_training_samples(sources, config.data, number_of_samples(config, position), config.training.seed)
    batches = training_batches(config, samples, sources)
    model = config.data.tokenizer_model or session.folder.tokenizer
    tokenizer = Tokenizer(model) if Path(model).is_file() else None
    rows = []
    for batch in batches.step(_consumed_before(number, session, batches)):
        rows += _rows(batch, batches, sources.train_names)
    return Step(number, session, rows, sources.eod_id, tokenizer)


def _consumed_before(number: int, session: Session, batches: Microbatches) -> int:
    known = session.consumed()
    step = max(each for each in known if session.step <= each < number)
    consumed = known[step]
    while step < number - 1:
        consumed, step = batches.after(consumed), step + 1
    return consumed


def _rows(batch: Batch, batches: Microbatches, names: list[str]) -> list[Row]:
    rows, source = [], batches.source
    for i, sample in enumerate(batch.sample_ids):
        drawn: Sample = source[sample % len(source)]
        cuts = source.cuts(sample % len(source)) if isinstance(source, FimSamples) else []
        tokens = np.append(batch.tokens[i].numpy(), batch.labels[i, -1].item())
        loss = np.append(False, batch.loss_mask[i].numpy() > 0)
        positions = batch.position_ids[i].numpy()
        rows.append(Row(sample, names[batch.set_ids[i]], tokens, loss, positions, drawn.begins, cuts))
    return rows


def _check_data(session: Session, sources: Sources) -> None:
    """DataError where a checkpoint of the session tells of other data than there are now."""
    found = verify_sources(sources, session.config.data, session.config.model.vocab_size, lambda text: None)
    now = record_of(session.config, sources, found)
    end = session.end if session.end is not None else session.config.training.train_iters
    saved = layout.list_checkpoints(layout.checkpoints_folder(session.folder.path))
    for step in sorted((s for s in saved if session.step < s <= end), reverse=True):
        try:
            record = open_checkpoint(saved[step]).run_state.extra.get("data")
        except CheckpointError:
            continue
        if isinstance(record, dict):
            if record.get("order") != FORMAT:
                raise DataError(
                    f"the run in {session.folder.path} was trained by an earlier version, which shuffled otherwise: "
                    "this one cannot make its samples again. Fix: use the version that made it."
                )
            check_same_data(record, now, str(session.folder.path))
        return
