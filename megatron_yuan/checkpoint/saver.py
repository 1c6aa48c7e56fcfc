"""Saving, as a run does it: one save after another, each waited for, or written behind the training that goes on.

    saver = CheckpointSaver(run_folder, ranks, config_text, background=True)
    with saver:                                     # leaving it in good order waits for the last write
        for step in ...:
            ...
            saver.save(run_state, weights, optimizer)   # "staged iter_0000100 in 0.6 s"
            saver.poll()                                # once a step; "durable iter_0000100 after 12 s"

All methods are called by all ranks together, at the same steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from torch import Tensor

from megatron_yuan.checkpoint import commit
from megatron_yuan.checkpoint.agreement import Ranks, together
from megatron_yuan.checkpoint.behind import Beat, SaveBehind, silent
from megatron_yuan.checkpoint.commit import KEEP_ALL, Retention
from megatron_yuan.checkpoint.save import Files, Order, agree
from megatron_yuan.checkpoint.stage import HostBuffers
from megatron_yuan.checkpoint.state import RunState

PATIENCE = 20.0  # seconds for a write under way when the run ends by an error: a checkpoint more may be worth hours

log = logging.getLogger(__name__)


class CheckpointSaver:
    """Writes checkpoints into a run folder; without one, it does nothing."""

    def __init__(
        self,
        run_folder: Path | None,
        ranks: Ranks,
        config_text: str,
        tokenizer: Path | None = None,
        retention: Retention = KEEP_ALL,
        *,
        background: bool = False,
        beat: Beat = silent,
    ) -> None:
        """`beat`: see SaveBehind. `background`: `save` returns once all is copied to host memory, which takes the bytes
        that this rank writes (its share of the stage among the replicas) once more."""
        self.folder, self._ranks, self._config_text, self._tokenizer = run_folder, ranks, config_text, tokenizer
        self._retention, self._background, self._beat = retention, background, beat
        self._buffers = HostBuffers()
        self._under_way: SaveBehind | None = None
        self._begun = 0.0

    @property
    def staged_bytes(self) -> int:
        """Host memory held for what is written behind."""
        return self._buffers.nbytes

    def save(
        self, run_state: RunState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Write RUN/checkpoints/iter_STEP from all ranks together; see `save_checkpoint` for what they pass."""
        if self.folder is None:
            return
        if self._under_way is not None:
            former = self._under_way.order.pending.final.name
            log.info("%s is still being written; the save of step %d waits for it", former, run_state.step)
            self._settle(self._under_way)
        self._begun = time.monotonic()
        order = agree(self.folder, self._ranks, run_state, weights, optimizer, self._config_text, self._tokenizer)
        if self._background:
            order = self._staged(order)
            seconds, held = time.monotonic() - self._begun, self.staged_bytes / 1e9
            log.info("staged %s in %.2f s (%.2f GB of host memory)", order.pending.final.name, seconds, held)
        self._under_way = SaveBehind(order, self._ranks, self._retention, self._beat)
        if not self._background:
            self._settle(self._under_way)

    def poll(self) -> None:
        """See how a write under way stands: say when the checkpoint is durable; raise CheckpointError if it failed."""
        if self._under_way is not None and self._under_way.poll():
            self._say(self._under_way)

    def close(self) -> None:
        """Wait for a write under way; fails as `poll` does."""
        if self._under_way is not None:
            log.info("%s", self._under_way.progress)
            self._settle(self._under_way)

    def abandon(self) -> None:
        """Leave in disorder, without other ranks: a write under way gets PATIENCE seconds to come to its end."""
        if self._under_way is not None:
            self._under_way.abandon(PATIENCE)

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _staged(self, order: Order) -> Order:
        held: Files = {}
        try:
            together(self._ranks, order.what, lambda: held.update(self._buffers.snapshot(order.held)))
        except BaseException:
            if self._ranks.rank == 0:
                commit.abandon(order.pending)
            raise
        return replace(order, held=held)

    def _settle(self, save: SaveBehind) -> None:
        save.wait()
        self._say(save)

    def _say(self, save: SaveBehind) -> None:
        self._under_way = None
        assert save.ended is not None
        pending, seconds = save.order.pending, save.ended - self._begun
        if self._background:
            log.info("durable %s after %.1f s", pending.final.name, seconds)
        else:
            size = save.order.plan.tensor_bytes / 1e9
            log.info("saved %s in %.1f s (%.2f GB, %.2f GB/s)", pending.final, seconds, size, size / seconds)


def save_checkpoint(
    run_folder: Path,
    ranks: Ranks,
    run_state: RunState,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]],
    config_text: str,
    tokenizer: Path | None = None,
    retention: Retention = KEEP_ALL,
) -> Path:
    """Write RUN/checkpoints/iter_STEP from all ranks together; returns its path once `latest` durably names it.

    weights: this rank's parameters by global name. optimizer: by name, then slot (master, exp_avg, exp_avg_sq), {} for
    weights alone; `master` is left out where the weights are fp32 themselves. Every replica of a stage passes the
    same. A tensor that two stages hold (the tied embedding) is written by the lower; where both pass it, both copies
    are compared.
    Any rank's failure is a CheckpointError on all; then nothing of this checkpoint remains, and others are intact.
    """
    order = agree(run_folder, ranks, run_state, weights, optimizer, config_text, tokenizer)
    save = SaveBehind(order, ranks, retention)
    try:
        save.wait()
    except BaseException:
        save.abandon()
        raise
    return order.pending.final
