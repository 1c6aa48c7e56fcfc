"""Gradients of balance losses under pipeline, virtual stages, accumulation, replicas and recompute, against autograd.

The oracle is one process that holds the whole model and writes the objective down as it is defined: for the
microbatches m of all replicas together, sum_m (CE_m + n_m sum over layers of loss_m) / sum_m n_m.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate, validate_world
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes

LAYOUTS = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 1, 2)]  # stages, replicas, virtual
KINDS: dict[str, dict[str, Any]] = {
    "attention": {},
    "attention, aux, z": {
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.5,
        "moe_z_loss_coeff": 0.3,
    },
    "attention, global aux": {"moe_router_load_balancing_type": "global_aux_loss", "moe_aux_loss_coeff": 2.0},
    "softmax + 1 shared, global aux, bias": {
        "moe_router": "softmax",
        "num_shared_experts": 1,
        "moe_router_load_balancing_type": "global_aux_loss",
        "moe_aux_loss_coeff": 2.0,
        "moe_router_enable_expert_bias": True,
    },
    "noisy-top-k": {"moe_router": "noisy-top-k", "moe_importance_loss_coeff": 0.7, "moe_load_loss_coeff": 0.4},
    "expert-choice": {"moe_router": "expert-choice", "moe_z_loss_coeff": 0.3},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """`tiny` in fp32 with a short sequence; end-of-document inputs have no loss, so microbatches weigh unlike."""
    prefix = write_indexed(tmp_path_factory.mktemp("data") / "en", counting_documents(1))
    tiny = preset("tiny")
    return replace(
        tiny,
        data=replace(tiny.data, data_path=(prefix,), split="1,0,0", seq_length=32, eod_id=EOD, eod_mask_loss=True),
        optimizer=replace(tiny.optimizer, bf16=False, lr_warmup_iters=0),
        training=replace(tiny.training, train_iters=2, micro_batch_size=1, global_batch_size=8),
        logging=replace(tiny.logging, peak_tflops=1.0),
    )


def of_kind(config: Config, kind: str, stages: int = 1, virtual: int = 1, recompute: bool = False) -> Config:
    parallel = replace(
        config.parallel,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=virtual,
        recompute_granularity="full" if recompute else "none",
    )
    found = replace(config, model=replace(config.model, **KINDS[kind]), parallel=parallel)
    validate(found)
    return found


def gradients(configs: dict[str, Config]) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """Of one step of each config, in the calling process: sums by parameter name, and each layer's balance loss."""
    from megatron_yuan.data.datasets import open_sources
    from megatron_yuan.parallel import topology as processes
    from megatron_yuan.training.start import start_run
    from megatron_yuan.training.step import run_batch

    found = {}
    configs = {kind: validate_world(config, processes.world_size()) for kind, config in configs.items()}
    topology = processes.start(next(iter(configs.values())))  # the layout is the same for all
    try:
        for kind, config in configs.items():
            run = start_run(config, topology, open_sources(config.data, config.model.vocab_size))
            wake_routers(run.model.parameters)
            for chunk in run.model.chunks:
                chunk.zero_grad_buffer()
            sums = run_batch(run.model.chunks, run.microbatches.step(0), len(run.microbatches), config, topology, 1)
            # As arrays: a tensor sent to the parent dies with the process that made it.
            trained = {n: p for n, p in run.model.parameters.items() if p.requires_grad}
            sent = {n: p.main_grad.numpy().copy() for n, p in trained.items()}  # type: ignore[attr-defined]
            found[kind] = sent, (sums.routing.balance_loss / sums.tokens).tolist()
        return found
    finally:
        processes.stop()


@torch.no_grad()
def wake_routers(parameters: dict[str, Any]) -> None:
    """Give routers weights with clear preferences, so that no choice hangs on the last bit."""
    for name, parameter in parameters.items():
        if name.endswith("router.weight"):
            random = torch.Generator().manual_seed(int(name.split(".")[1]))
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
        if name.endswith("expert_bias"):
            parameter.copy_(torch.linspace(-0.05, 0.05, parameter.numel()))


def oracle(config: Config, replicas: int) -> tuple[dict[str, Tensor], list[float]]:
    """The same by autograd, from the definition."""
    from megatron_yuan.checkpoint.state import RunState
    from megatron_yuan.data.datasets import build_training_samples, open_sources
    from megatron_yuan.data.sampler import Microbatches
    from megatron_yuan.model.context import token_context
    from megatron_yuan.model.initialize import initialize
    from megatron_yuan.model.model import YuanModel
    from megatron_yuan.model.moe.routers import Router
    from megatron_yuan.model.randomness import key
    from megatron_yuan.training.run_data import number_of_samples

    config = validate_world(config, replicas)
    model_config, sources = config.model, open_sources(config.data, config.model.vocab_size)
    number = number_of_samples(config, RunState(0, 0))
    samples = build_training_samples(sources, config.data, number, config.training.seed)
    model = YuanModel(model_config)
    initialize(model, model_config, config.training.seed)
    wake_routers(dict(model.named_parameters()))
    routings: list[Any] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _m, _i, routing: routings.append(routing))
    by_replica = [
        list(Microbatches(samples, config.data, EOD, 1, 8, replica, replicas).step(0)) for replica in range(replicas)
    ]
    L, E = model_config.num_layers, model_config.num_experts
    so_far = torch.zeros(L, E)
    objective, per_layer = torch.zeros(()), [torch.zeros(()) for _ in range(L)]
    for microbatches in zip(*by_replica, strict=True):
        seen = []
        for batch in microbatches:
            routings.clear()
            keys = [key(config.training.seed, 1, sample) for sample in batch.sample_ids]
            context = token_context(model_config, batch.position_ids, torch.float32, batch.document_start, keys)
            logits = model.logits(model(batch.tokens, context).hidden_BSH).flatten(0, 1)
            losses = torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="none")
            objective = objective + (losses * batch.loss_mask.flatten()).sum()
            seen.append((batch.loss_mask.sum(), list(routings)))
        counts = [torch.stack([count(routing, E) for routing in each]) for _, each in seen]
        so_far = so_far + torch.stack(counts).sum(dim=0)
        for (tokens, each), own in zip(seen, counts, strict=True):
            for layer, routing in enumerate(each):
                loss = layer_loss(model_config, routing, own[layer], so_far[layer]) * tokens
                per_layer[layer] = per_layer[layer] + loss
    tokens = sum(float(batch.loss_mask.sum()) for each in by_replica for batch in each)
    (objective + torch.stack(per_layer).sum()).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found, [float(each.detach()) / tokens for each in per_layer]


def count(routing: Any, experts: int) -> Tensor:
    ids = routing.experts_TK.flatten()
    return torch.bincount(ids[ids >= 0], minlength=experts).float()


def layer_loss(model: Any, routing: Any, own: Tensor, so_far: Tensor) -> Tensor:
    """Balance losses of one layer and microbatch, written out."""
    loss = routing.loss if routing.loss is not None else torch.zeros(())
    probabilities = routing.logits_TE.softmax(dim=1)
    if model.moe_router_load_balancing_type != "none":
        load = own if model.moe_router_load_balancing_type == "aux_loss" else so_far
        for e in range(model.num_experts):
            share = float(load[e] / load.sum())
            loss = loss + model.moe_aux_loss_coeff * model.num_experts * share * probabilities[:, e].mean()
    return loss + model.moe_z_loss_coeff * torch.logsumexp(routing.logits_TE, dim=1).square().mean()


@pytest.mark.parametrize(("stages", "replicas", "virtual"), LAYOUTS)
def test_every_gradient_is_the_definitions(config, stages, replicas, virtual, capsys):
    worst = 0.0
    recompute = replicas == 2 or virtual == 2
    asked = {kind: of_kind(config, kind, stages, virtual, recompute) for kind in KINDS}
    by_rank = run_processes(gradients, stages * replicas, asked)
    for kind in KINDS:
        expected, expected_losses = oracle(of_kind(config, kind), replicas)
        names = set()
        for found, losses in (each[kind] for each in by_rank):
            assert losses == pytest.approx(expected_losses, rel=1e-4, abs=1e-9), kind
            for name, gradient in found.items():
                names.add(name)
                error = float(
                    (torch.from_numpy(gradient) - expected[name]).norm() / expected[name].norm().clamp_min(1e-12)
                )
                assert math.isfinite(error) and error < 1e-4, f"{kind}, {name}: {error:.1e}"
                worst = max(worst, error)
        assert names == expected.keys(), kind
    with capsys.disabled():
        print(f"\n{stages} x {replicas} x {virtual}: worst relative error of a gradient {worst:.1e}")


def test_the_loss_of_the_global_batch_is_not_the_microbatchs(config):
    one, other = (of_kind(config, "attention, global aux"), of_kind(config, "attention, aux, z"))
    assert oracle(one, 1)[1] != pytest.approx(oracle(other, 1)[1], rel=1e-3)
