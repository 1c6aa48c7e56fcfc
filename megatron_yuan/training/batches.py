"""From a run's samples to the microbatches of its steps: what the model gets, in which order."""

from __future__ import annotations

from megatron_yuan.config.schema import Config
from megatron_yuan.config.spans import NOTHING, Spans, parse_spans
from megatron_yuan.data.datasets import Sources
from megatron_yuan.data.fim import FimSamples
from megatron_yuan.data.sample import SampleSource
from megatron_yuan.data.sampler import Microbatches
from megatron_yuan.data.tokenizer import Tokenizer


def training_batches(
    config: Config, samples: SampleSource, sources: Sources, replica: int = 0, replicas: int = 1
) -> Microbatches:
    """Those of one replica that trains on `samples`: rearranged where there is FIM, without what is to be skipped."""
    skipped = parse_spans("skip_samples", config.guard.skip_samples)
    return microbatches(_with_fim(config, samples, sources), config, sources.eod_id, replica, replicas, skipped)


def microbatches(
    source: SampleSource, config: Config, eod_id: int, replica: int = 0, replicas: int = 1, skipped: Spans = NOTHING
) -> Microbatches:
    """One replica's share of `source`, sample by sample as they are."""
    training = config.training
    size = training.global_batch_size or training.micro_batch_size
    return Microbatches(source, config.data, eod_id, training.micro_batch_size, size, replica, replicas, skipped)


def _with_fim(config: Config, samples: SampleSource, sources: Sources) -> SampleSource:
    data = config.data
    if data.fim_rate == 0:
        return samples
    assert data.tokenizer_model is not None, "validate_run asks for it"
    return FimSamples(
        samples,
        Tokenizer(data.tokenizer_model),
        data.fim_rate,
        data.fim_spm_rate,
        config.training.seed,
        sources.eod_id,
        data.fim_cut,
        sources.fim_sets,
    )
