"""The data of a run: checked, with their index files, as samples to train on, to validate on and to test on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_yuan import log
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.schema import Config
from megatron_yuan.config.spans import parse_spans
from megatron_yuan.data.blend import names_of
from megatron_yuan.data.datasets import (
    Sources,
    build_test_samples,
    build_training_samples,
    build_validation_samples,
)
from megatron_yuan.data.index_cache import FORMAT
from megatron_yuan.data.passport_check import some_names
from megatron_yuan.data.record import Identity, check_same_data, data_record
from megatron_yuan.data.sample import SampleSource
from megatron_yuan.data.verify import verify_sources
from megatron_yuan.errors import ConfigError, ParallelError
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.turns import in_turns


@dataclass(frozen=True)
class RunData:
    """Samples of a run."""

    train: SampleSource
    validation: Mapping[str, SampleSource]
    """By name of the set."""
    test: Mapping[str, SampleSource]
    record: dict[str, Any]
    """What the data are, for checkpoints: a run goes on with the same ones."""


def open_run_data(config: Config, sources: Sources, position: RunState, topology: Topology) -> RunData:
    """Check the data, build the index files that are missing, open the samples. Called by all ranks together.

    Rank 0 reads and builds; the first rank of another machine does so where that has a disk of its own.
    """

    def open_here() -> RunData:
        found: list[Identity] = []
        if topology.local_rank == 0:
            found = verify_sources(sources, config.data, config.model.vocab_size, log.logger.info)
        record = record_of(config, sources, found)
        if found:
            _check_goes_on(position, record, config)
        data, seed = config.data, config.training.seed
        train = build_training_samples(sources, data, number_of_samples(config, position), seed)
        held_out = build_validation_samples(sources, data, seed), build_test_samples(sources, data, seed)
        return RunData(train, *held_out, record)

    opened = in_turns(topology, "data", open_here)
    records = topology.gather(opened.record)
    _check_hosts(records)
    return replace(opened, record=records[0])


def record_of(config: Config, sources: Sources, found: Sequence[Identity]) -> dict[str, Any]:
    """What a run with these settings is trained on; `found`: its sets."""
    fim_sets = sorted(sources.fim_sets) if config.data.fim_rate > 0 else ()
    return data_record(found, sources.eod_id, fim_sets, sources.train_split)


def number_of_samples(config: Config, position: RunState) -> int:
    """As many as the whole run has; more where it goes on with smaller batches than it began with.

    Skipped samples ask for no more: then the last ones come again, without loss.
    """
    training = config.training
    seen = position.consumed_samples - parse_spans("skip_samples", config.guard.skip_samples).count_below(
        position.consumed_samples
    )
    to_come = (training.train_iters - position.step) * (training.global_batch_size or 1)
    whole = training.train_iters * (training.global_batch_size or 1)
    return max(whole, seen + to_come)


def check_skipped(config: Config, position: RunState, available: int) -> str | None:
    """ConfigError where skip-samples leaves nothing to train on; else what follows where it leaves too little."""
    skipped = parse_spans("skip_samples", config.guard.skip_samples)
    to_come = (config.training.train_iters - position.step) * (config.training.global_batch_size or 1)
    if not skipped.bounds or to_come <= 0:
        return None
    passed = min(position.consumed_samples, available)
    left = available - passed - (skipped.count_below(available) - skipped.count_below(passed))
    asked = " ".join(config.guard.skip_samples)
    if left <= 0:
        raise ConfigError(
            f"skip-samples {asked} leaves none of the samples {passed} to {available - 1} that are still to come.\n"
            "Fix: narrower --skip-samples; samples are numbered from 0 over the whole run."
        )
    if left < to_come:
        return (
            f"skip-samples leaves {left} samples for the {to_come} to come: once they are seen, batches are filled "
            "with samples that have no loss"
        )
    return None


def _check_hosts(records: Sequence[Mapping[str, Any]]) -> None:
    """ParallelError where another host's data, which its first rank has read, are not rank 0's: passports are compared
    earlier, and not every set has one."""
    for rank, record in enumerate(records):
        for ours, theirs in zip(records[0]["sets"], record["sets"], strict=False):
            for content in ("idx_sha256", "bin_sha256"):
                if ours[content] and theirs[content] and ours[content] != theirs[content]:
                    raise ParallelError(
                        f"data {ours['name']} is not the same on all ranks: sha256 {ours[content][:12]} on rank 0, "
                        f"{theirs[content][:12]} on rank {rank}.\n"
                        "Fix: the same files on every host, or a folder that all share."
                    )


def not_validated(config: Config, sources: Sources, validation: Collection[str]) -> str | None:
    """What is to be said of the sets to validate on that are not in `validation`, as no sample can be made of them."""
    if not config.training.eval_interval:
        return None
    if not validation:
        return (
            f"eval-interval is {config.training.eval_interval}, but there is nothing to validate on: no set's "
            "validation part fills a sample"
        )
    without = [name for name in names_of(sources.valid) if name not in validation]
    if not without:
        return None
    return f"no validation loss of {some_names(without)}: what --split leaves for it holds no sample"


def _check_goes_on(position: RunState, record: Mapping[str, Any], config: Config) -> None:
    """DataError where a run would go on with other data than it was trained on."""
    if position.step == 0 or config.checkpoint.other_data:
        return
    where = config.checkpoint.save if config.checkpoint.load is None else config.checkpoint.load
    saved = position.extra.get("data")
    if not isinstance(saved, dict) or saved.get("order") != FORMAT:
        log.logger.info(
            f"warning: the run in {where} was begun by an earlier version, which shuffled otherwise: in this epoch, "
            "samples may repeat or be missed"
        )
        return
    check_same_data(saved, record, str(where))
