"""Tasks while a model trains: on the first questions of each, with the weights as they are, changing nothing.

The model that answers shares the training model's weights. Where stages hold several runs of layers (the interleaved
schedule), inference, which has one a stage, gets what it lacks from the others for as long as it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError
from megatron_yuan.evaluation.catalogue import TASKS
from megatron_yuan.log import logger

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_yuan.data.tokenizer import Tokenizer
    from megatron_yuan.inference.model import LanguageModel
    from megatron_yuan.parallel.topology import Topology
    from megatron_yuan.report.result import TaskScores


def task_measure(config: Config) -> Callable[[Mapping[str, Tensor], Topology], TaskScores] | None:
    """What measures the tasks of the settings; None where they name none.

    ConfigError or DataError for what cannot be measured, before anything else of the run begins.
    """
    if config.training.eval_tasks is None:
        return None
    wanted = config.training.eval_tasks.split(",")
    for name in wanted:
        if name.strip() in TASKS and TASKS[name.strip()].runs_code:
            raise ConfigError(
                f"eval-tasks names {name.strip()}, which runs programs that the model wrote: not while it trains; "
                "leave it out, and evaluate checkpoints with tools/evaluate.py."
            )
    if config.data.tokenizer_model is None:
        raise ConfigError("eval-tasks asks questions in words, but tokenizer-model is unset; give --tokenizer-model.")
    from megatron_yuan.data.tokenizer import Tokenizer
    from megatron_yuan.evaluation.run import Settings, check

    training = config.training
    settings = Settings(
        Path(training.task_data), training.eval_tasks_limit, num_fewshot=training.eval_tasks_num_fewshot
    )
    names = check(wanted, settings, config.model)
    tokenizer = Tokenizer(config.data.tokenizer_model)
    told: set[str] = set()

    def measure(weights: Mapping[str, Tensor], topology: Topology) -> TaskScores:
        from megatron_yuan.evaluation.run import evaluate
        from megatron_yuan.report.result import TaskScores

        with random_state_kept():
            found = evaluate(sharing(weights, config, topology, tokenizer), names, settings, speaks=False)
        for note in found.notes:
            if note not in told:
                logger.info("%s: %s", config.training.eval_tasks, note)
        told.update(found.notes)
        return TaskScores(found.figures(), {each.task: each.questions for each in found.tasks}, found.seconds)

    return measure


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever draws in here, what is drawn afterwards is the same."""
    import random

    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def sharing(
    weights: Mapping[str, Tensor], config: Config, topology: Topology, tokenizer: Tokenizer | None = None
) -> LanguageModel:
    """A model to use that holds the very `weights` of this process's chunks, and copies of what it lacks.

    Called by all stages together.
    """
    import torch

    from megatron_yuan.inference.model import LanguageModel

    one_run_each = topology.vp_size == 1
    layout = config.parallel.pipeline_model_parallel_layout if one_run_each else None
    eod_id = config.data.eod_id if tokenizer is None else tokenizer.eod_id
    with torch.device("meta"):
        model = LanguageModel(config, tokenizer, eod_id, topology, layout)
    wanted = {name for name, _ in model.named_parameters()}
    held = {name: weights[name] for name in wanted if name in weights}
    if not one_run_each:
        held |= lacking(wanted, weights, model, topology)
    model.load_state_dict(held, assign=True)
    return model.requires_grad_(False).eval()


def lacking(
    wanted: set[str], weights: Mapping[str, Tensor], model: LanguageModel, topology: Topology
) -> dict[str, Tensor]:
    """Of the `wanted` names those that other stages hold, copied from them. Called by all stages together."""
    import torch
    import torch.distributed as dist

    mine = {name: (tuple(each.shape), each.dtype) for name, each in weights.items()}
    everyone = model.relay.gather_stages((mine, wanted - set(weights)))
    found = {}
    for name in sorted(set().union(*(lacks for _, lacks in everyone))):
        owner = next(stage for stage, (holds, _) in enumerate(everyone) if name in holds)
        shape, dtype = everyone[owner][0][name]
        is_owner = owner == topology.pp_rank
        copy = weights[name].contiguous() if is_owner else torch.empty(shape, dtype=dtype, device=topology.device)
        with topology.pulse.waiting("weights from other stages"):
            dist.broadcast(copy, group=topology.pp_group, group_src=owner)
        if name in everyone[topology.pp_rank][1]:
            found[name] = copy
    return found
