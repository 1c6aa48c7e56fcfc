"""Unigram and bigram losses on the validation samples of a run, counted on at least an epoch of its training split.

python tools/ngram_baseline.py [the run's own flags]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice

from megatron_yuan.config.load import parse
from megatron_yuan.config.schema import ParallelConfig
from megatron_yuan.config.validate import validate_world
from megatron_yuan.errors import run_command_line


def main() -> None:
    """Read the run's command line, count, and print a line for each validation set."""
    config = parse(sys.argv[1:]).config
    config = validate_world(replace(config, parallel=ParallelConfig()), world_size=1)

    from megatron_yuan.data.datasets import build_training_samples, build_validation_samples, open_sources
    from megatron_yuan.data.ngram import NgramCounts
    from megatron_yuan.parallel import topology as processes

    training = config.training
    processes.start(config)  # megatron's builder asks who is to write the index files
    sources = open_sources(config.data, config.model.vocab_size)
    # An epoch of everything, though the run may be shorter: the harder bar.
    epoch = sum(source.tokens for source in sources.train) // config.data.seq_length
    samples = max(epoch, training.train_iters * (training.global_batch_size or 1))
    train = build_training_samples(sources, config.data, samples, training.seed)
    counts = NgramCounts((train[i].tokens for i in range(samples)), config.model.vocab_size)
    measured = training.eval_iters * (training.global_batch_size or 1)
    for name, samples in build_validation_samples(sources, config.data, training.seed).items():
        found = counts.loss(sample.tokens for sample in islice((samples[i] for i in range(len(samples))), measured))
        print(f"{name}: unigram {found.unigram:.4f}, bigram {found.bigram:.4f} nats a token, {found.tokens:,} tokens")
    processes.stop()


if __name__ == "__main__":
    run_command_line(main)
