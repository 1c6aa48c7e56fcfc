"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megatron_yuan.config.schema import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, train_iters: int) -> float:
    """Learning rate of optimizer step `step` (the first is 1).

    Linear from 0 over the warmup; then, towards min_lr at `lr_decay_iters` (unset: `train_iters`) and constant after
    it: cosine: min + (max - min) (1 + cos(pi t)) / 2, t the share of the decay done; constant: max;
    WSD: max, until the last `lr_wsd_decay_iters` (unset: a tenth) fall linearly.
    """
    if step <= config.lr_warmup_iters:
        return config.lr * step / config.lr_warmup_iters
    if config.lr_decay_style == "constant":
        return config.lr
    end = config.lr_decay_iters or train_iters
    if config.lr_decay_style == "WSD":
        length = config.lr_wsd_decay_iters or max(1, end // 10)
        done = (step - (end - length)) / length
        share = 1.0 - min(1.0, max(0.0, done))
    else:
        done = (step - config.lr_warmup_iters) / max(1, end - config.lr_warmup_iters)
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return config.min_lr + (config.lr - config.min_lr) * share
