"""From the number of consumed samples to this replica's microbatches: the position in the data is one integer.

The global batch that starts at sample n is samples n ... n + G - 1, whatever the number of replicas: microbatch m of
replica r holds the (m x replicas + r) x micro_batch_size + 0, 1, ... th of them. Samples to be skipped are jumped over:
a batch is then the next G that are not among them, and the position is still the first sample not yet passed.
"""

from __future__ import annotations

import atexit
import itertools
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.config.spans import NOTHING, Spans
from megatron_yuan.data.batch import Batch, make_batch
from megatron_yuan.data.sample import Sample, SampleSource


class Microbatches:
    """One replica's microbatches of any global batch, prepared ahead by worker processes where the config has some."""

    def __init__(
        self,
        source: SampleSource,
        config: DataConfig,
        eod_id: int,
        micro_batch_size: int,
        global_batch_size: int,
        replica: int,
        replicas: int,
        skipped: Spans = NOTHING,
    ) -> None:
        self.source, self.config, self.eod_id = source, config, eod_id
        self.micro, self.replica, self.replicas = micro_batch_size, replica, replicas
        self.global_batch_size, self.skipped = global_batch_size, skipped
        self._stream: Iterator[Batch] | None = None
        self._next = -1  # the sample at which the stream's next global batch starts

    def __len__(self) -> int:
        """Microbatches of this replica in a global batch."""
        return self.global_batch_size // (self.micro * self.replicas)

    def step(self, consumed: int) -> Iterator[Batch]:
        """The microbatches of the global batch that starts at sample `consumed`."""
        if self._stream is None or consumed != self._next:
            self._stream = self._open(consumed)
        self._next = self.after(consumed)
        stream = self._stream
        return (next(stream) for _ in range(len(self)))

    def batch_ids(self, consumed: int) -> list[int]:
        """Sample numbers of the whole global batch that starts at `consumed`, over all replicas."""
        return list(itertools.islice(self.skipped.outside_from(consumed), self.global_batch_size))

    def after(self, consumed: int) -> int:
        """Where the data stand once the global batch that starts at `consumed` is seen."""
        return self.batch_ids(consumed)[-1] + 1 if self.skipped.bounds else consumed + self.global_batch_size

    def ids(self, consumed: int) -> Iterator[list[int]]:
        """Sample numbers of each of this replica's microbatches, from `consumed` on without end."""
        numbers = self.skipped.outside_from(consumed)
        while True:
            turn = list(itertools.islice(numbers, self.micro * self.replicas))
            yield turn[self.replica * self.micro : (self.replica + 1) * self.micro]

    def close(self) -> None:
        """End the worker processes; `step` starts new ones."""
        stream, self._stream = self._stream, None
        if stream is not None and self.config.num_workers:
            # Not left to the interpreter's exit, which would end them by SIGTERM and then wait for ever.
            stream._shutdown_workers()  # type: ignore[attr-defined]

    def _open(self, consumed: int) -> Iterator[Batch]:
        self.close()
        atexit.unregister(self.close)
        atexit.register(self.close)
        return iter(
            DataLoader(
                _Numbered(self.source),
                batch_sampler=self.ids(consumed),  # type: ignore[arg-type]
                collate_fn=self._collate,
                num_workers=self.config.num_workers,
                worker_init_fn=_leave_signals_to_the_trainer,
            )
        )

    def _collate(self, rows: Sequence[tuple[int, Sample]]) -> Batch:
        ids, samples = zip(*rows, strict=True)
        return make_batch(
            torch.from_numpy(np.stack([sample.tokens for sample in samples])),
            ids,
            self.eod_id,
            self.config.reset_position_ids,
            self.config.reset_attention_mask,
            self.config.eod_mask_loss,
            _stack_masks(samples),
            [sample.set_id for sample in samples],
            _stack_begins(samples),
        )


def _leave_signals_to_the_trainer(_: int) -> None:
    """A launcher signals the whole process group; a worker that died of it would fail the step that is to be saved."""
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(each, signal.SIG_IGN)


def _stack_masks(samples: Sequence[Sample]) -> torch.Tensor | None:
    if all(sample.loss_mask is None for sample in samples):
        return None
    whole = [np.ones(s.tokens.shape, np.float32) if s.loss_mask is None else s.loss_mask for s in samples]
    return torch.from_numpy(np.stack(whole))


def _stack_begins(samples: Sequence[Sample]) -> torch.Tensor | None:
    if all(sample.begins is None for sample in samples):
        return None
    nowhere = np.zeros(samples[0].tokens.shape, bool)
    return torch.from_numpy(np.stack([nowhere if s.begins is None else s.begins for s in samples]))


class _Numbered(Dataset):
    """Each sample with its number. Past the end samples come again, without loss: a last batch may be partly full."""

    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[int, Sample]:
        sample = self.source[index % len(self.source)]
        if index >= len(self.source):
            sample = sample._replace(loss_mask=np.zeros(sample.tokens.shape, np.float32))
        return index, sample
