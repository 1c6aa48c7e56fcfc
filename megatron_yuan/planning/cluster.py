"""What tools/plan_cluster.py does: try every layout, rank what fits, explain what does not, and write the best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.errors import ConfigError
from megatron_yuan.planning.accounting import TRAINING_PASSES, forward_flops
from megatron_yuan.planning.candidates import Layout, TimedLayout, fastest, first_that_fits, layouts
from megatron_yuan.planning.machine import Machine

SHOWN = 8
WHOLE = {
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": 1,
    "pipeline_model_parallel_layout": None,
    "micro_batch_size": 1,
    "recompute_granularity": "none",
    "recompute_num_layers": None,
}
"""Settings that a plan looks for, so what a preset says of them is no matter: valid for any model."""
MARK = "# Written by tools/plan_cluster.py:"


@dataclass(frozen=True)
class ClusterPlan:
    """The answer for one model on one number of one kind of GPU."""

    config: Config
    """What was asked for: its layout is not looked at."""
    gpus: int
    machine: Machine
    tried: int
    fitting: int
    best: list[TimedLayout]
    """The fastest, at most SHOWN; empty where nothing fits."""
    tightest: dict[int, Layout]
    """Of each number of stages that does not fit at all, the layout that needs least."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.training.train_iters

    @property
    def step_tokens(self) -> int:
        """Tokens in a step."""
        return (self.config.training.global_batch_size or 1) * self.config.data.seq_length

    def days(self, found: TimedLayout) -> float:
        """Of the whole run, nothing but training."""
        return self.steps * found.seconds / 86_400

    def mfu(self, found: TimedLayout) -> float:
        """Share of the peak of the GPUs that are used; causal scores counted."""
        flops = TRAINING_PASSES * forward_flops(self.config.model, self.config.data.seq_length).causal
        return flops * self.step_tokens / found.seconds / (found.layout.gpus * self.machine.bf16_tflops.value * 1e12)


def plan_cluster(config: Config, gpus: int, machine: Machine, tokens: float | None = None) -> ClusterPlan:
    """Try every layout of `config` on `gpus` GPUs; `tokens`: of the whole run. Raises ConfigError."""
    if gpus < 1:
        raise ConfigError(f"gpus is {gpus}, but must be at least 1.")
    if config.training.device == "cpu":
        raise ConfigError(
            f"device is cpu, but the plan is for GPUs ({machine.name}); leave out --device, or make it auto."
        )
    config = _sized(config, tokens)
    groups = list(layouts(config, gpus, machine))
    fitting = [each for each in (first_that_fits(group, machine) for group in groups) if each is not None]
    fitting_stages = {each.stages for each in fitting}
    tightest: dict[int, Layout] = {}
    for layout in (each for group in groups for each in group if each.stages not in fitting_stages):
        known = tightest.get(layout.stages)
        if known is None or layout.fullest.total < known.fullest.total:
            tightest[layout.stages] = layout
    best = fastest(fitting, machine, SHOWN)
    return ClusterPlan(config, gpus, machine, sum(map(len, groups)), len(fitting), best, tightest)


def _sized(config: Config, tokens: float | None) -> Config:
    """With its global batch said, and as many steps as `tokens` take."""
    batch = config.training.global_batch_size
    if batch is None:
        raise ConfigError("global-batch-size is unset, so the work of a step is not known; give --global-batch-size.")
    if tokens is None:
        return config
    if not (math.isfinite(tokens) and 1 <= tokens <= 1e18):
        raise ConfigError(f"tokens is {tokens:g}, but must be a number from 1 to 1e18, such as 2e12.")
    steps = math.ceil(tokens / (batch * config.data.seq_length))
    decay = config.optimizer.lr_decay_iters
    follows = decay is not None and decay >= config.training.train_iters
    sized = with_values(config, {"train_iters": steps, "lr_decay_iters": steps if follows else decay})
    validate(sized)  # a warmup may be longer than the run has become: what is written must train as it is
    return sized


def least_gpus(config: Config, machine: Machine, beyond: int) -> int | None:
    """The fewest of these GPUs, more than `beyond`, on which some layout fits; None where a layer each is too much."""
    for gpus in range(beyond + 1, config.model.num_layers + 1):
        if any(first_that_fits(group, machine) for group in layouts(config, gpus, machine)):
            return gpus
    return None


def write_config(plan: ClusterPlan, path: Path) -> None:
    """The best layout as a file for `pretrain_yuan_moe.py --config`. ConfigError where another's file is there."""
    layout = plan.best[0].layout
    head = (
        f"{MARK} {counted(layout.stages, 'stage')} x {counted(layout.replicas, 'replica')} on "
        f"{layout.gpus} x {plan.machine.name}.\n"
        f"# torchrun with {counted(layout.gpus, 'process', 'processes')} in all, "
        f"pretrain_yuan_moe.py --config {path.name} --data-path ...\n"
    )
    try:
        if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            raise ConfigError(f"output {path} is there and is no plan of this tool; name another file by --output.")
        path.write_text(head + to_yaml(layout.config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"output {path}: cannot be written ({error.strerror}); name another by --output.") from None


def counted(number: int, one: str, several: str = "") -> str:
    """'1 stage', '1,024 stages'."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
