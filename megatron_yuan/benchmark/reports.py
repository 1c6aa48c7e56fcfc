"""What the benchmarks measure, printed for people and returned for JSON."""

from __future__ import annotations

from typing import Any

import torch

from megatron_yuan.benchmark import expert_attention
from megatron_yuan.benchmark import moe as layers
from megatron_yuan.benchmark.peers import mixtral_layers, mixtral_step
from megatron_yuan.benchmark.training import our_step, shares, timed_in_turn
from megatron_yuan.config.schema import Config
from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel.topology import choose_device
from megatron_yuan.planning.accounting import TRAINING_PASSES, forward_flops
from megatron_yuan.report.peak import device_peak

ROUTER_TOKENS = (2048, 8192)
# Our dtype and whether gradients go into float32 sums; the peer's dtype and whether it computes under autocast.
MOE_SETTINGS = {
    "fp32": (torch.float32, False, (torch.float32, False)),
    "bf16, float32 gradients; peer: float32 weights, autocast": (torch.bfloat16, True, (torch.float32, True)),
    "bf16, bf16 gradients; peer: all bf16": (torch.bfloat16, False, (torch.bfloat16, False)),
}


def step(config: Config, rounds: int, peers: bool) -> dict[str, Any]:
    """A training step, and the share of its parts."""
    with our_step(config) as ours:
        device = ours.topology.device
        dtype = torch.bfloat16 if config.optimizer.bf16 else torch.float32
        actions = {"forward + backward": ours.forward_backward, "with the optimizer": ours.step}
        setting = "none"
        if peers:
            actions["peer, with the optimizer"], setting = mixtral_step(config, device)
        peak = device_peak(device, dtype, config.logging.peak_tflops)
        seconds = timed_in_turn(actions, rounds, device)
        flops = TRAINING_PASSES * forward_flops(config.model, config.data.seq_length).causal
        rates = {name: ours.tokens / each for name, each in seconds.items()}
        parts = shares(ours, rounds)
    print(f"peak: {peak.flops / 1e12:.3f} TFLOP/s, {peak.source}; peer: {setting}")
    print(f"{flops / 1e9:.3f} GFLOP a token forward and backward, causal attention scores included")
    for name, rate in rates.items():
        print(f"{name:<28}{rate:10.0f} tokens/s{rate * flops / 1e12:10.4f} TFLOP/s{rate * flops / peak.flops:8.1%} MFU")
    if peers:
        print(f"ours / peer, with the optimizer: {rates['with the optimizer'] / rates['peer, with the optimizer']:.2f}")
    for name, share in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {name:<42}{share:7.1%}")
    return {
        "tokens_per_step": ours.tokens,
        "gflop_per_token": flops / 1e9,
        "peak_tflops": peak.flops / 1e12,
        "peak_source": peak.source,
        "peer": setting,
        "tokens_per_second": rates,
        "shares": parts,
    }


def moe(config: Config, rounds: int, peers: bool) -> dict[str, Any]:
    """The mixture-of-experts layer, forward and backward: in each setting ours beside the peer's forms."""
    device = _device(config)
    model, tokens = config.model, config.training.micro_batch_size * config.data.seq_length
    if peers and (model.num_shared_experts or model.moe_router == "expert-choice"):
        raise ConfigError(
            "peers: transformers' Mixtral has neither shared experts nor expert choice, so there is nothing of its "
            "to time beside them;\ndrop --peers, or --num-shared-experts and --moe-router expert-choice."
        )
    flops = layers.flops_by_extent(model, tokens)
    print(
        f"one layer, forward and backward: {tokens:,} tokens, H {model.hidden_size}, F {model.ffn_hidden_size}, "
        f"{model.num_experts} experts, {model.experts_per_token:g} a token, {model.moe_router} router; "
        f"{flops['layer'] / 1e9:.1f} GFLOP, {flops['experts'] / 1e9:.1f} in the chosen experts"
    )
    result: dict[str, Any] = {"tokens": tokens, "gflop": {extent: each / 1e9 for extent, each in flops.items()}}
    for setting, (dtype, float32_sums, peer) in MOE_SETTINGS.items():
        peak = device_peak(device, dtype, None).flops
        for forced in (False, True):
            bench = layers.layer_bench(config, dtype, device, forced, float32_sums)
            actions = {"ours, experts": bench.experts_alone(), "ours, layer": bench.forward_backward}
            if peers:
                theirs = mixtral_layers(config, *peer, bench.x_1TH, bench.upstream_1TH, bench.routing)
                actions |= {f"transformers {name}": action for name, action in theirs.items()}
            seconds = timed_in_turn(actions, rounds, device)
            parts = timed_in_turn(bench.parts(), rounds, device)
            routing = "forced-balanced routing" if forced else f"real routing, max/mean {bench.imbalance:.2f}"
            print(f"{setting}; {routing}; GEMM peak {peak / 1e9:.0f} GFLOP/s")
            for name, each in seconds.items():
                extent = name.rsplit(", ", 1)[1]
                ours, work = seconds[f"ours, {extent}"], flops[extent]
                ratio = "" if name.startswith("ours") else f"   ours {each / ours:.2f} times as fast"
                print(
                    f"  {name:<34}{1000 * each:8.1f} ms {tokens / each:8.0f} tokens/s {work / each / 1e9:6.0f} GFLOP/s"
                    f" {work / each / peak:6.1%} of peak{ratio}"
                )
            print("  ours: " + ", ".join(f"{name} {1000 * each:.2f} ms" for name, each in parts.items()))
            result[f"{setting}; {'forced' if forced else 'real'}"] = {
                "peak_gflops": peak / 1e9,
                "milliseconds": {name: 1000 * each for name, each in seconds.items()},
                "parts_milliseconds": {name: 1000 * each for name, each in parts.items()},
            }
    return result


def router(config: Config, rounds: int, _peers: bool) -> dict[str, Any]:
    """The attention router's arithmetic, beside the formula written out."""
    if config.model.moe_router != "attention":
        raise ConfigError(
            f"moe-router is {config.model.moe_router}, but --part router times the attention router's arithmetic alone;"
            "\ntime this one within its layer by --part moe."
        )
    device, experts = _device(config), config.model.num_experts
    result: dict[str, Any] = {}
    for tokens in ROUTER_TOKENS:
        costs = expert_attention.measure(tokens, experts, device, max(rounds, 20))
        for name, cost in costs.items():
            peak = "" if cost.peak_bytes is None else f", peak {cost.peak_bytes / 2**20:.2f} MiB"
            print(
                f"T {tokens}, E {experts}, {name}: {cost.milliseconds:.2f} ms forward and backward, "
                f"{cost.saved_bytes / 2**20:.2f} MiB kept for backward{peak}"
            )
        fused, naive = costs["fused"], costs["naive"]
        print(
            f"  fused / naive: time {fused.milliseconds / naive.milliseconds:.2f}, "
            f"kept 1/{naive.saved_bytes / fused.saved_bytes:.1f}"
        )
        result[str(tokens)] = {name: vars(cost) for name, cost in costs.items()}
    return result


def _device(config: Config) -> torch.device:
    from megatron_yuan.parallel.host_memory import keep_freed_memory

    device = choose_device(config.training.device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def inference(config: Config, rounds: int, peers: bool) -> dict[str, Any]:
    """Prefill and decoding at batch 1 and 16, in tokens/s."""
    from megatron_yuan.benchmark.inference import NEW_TOKENS, OURS, measure

    precision = "bf16" if config.optimizer.bf16 else "fp32"
    print(f"prompt of {config.data.seq_length} tokens a row, then {NEW_TOKENS} new ones; {precision}")
    result: dict[str, Any] = {}
    for batch in (1, 16):
        speeds = measure(config, batch, rounds, peers)
        for name, speed in speeds.items():
            beside = ""
            if name != OURS:
                prefill, decode = speed.ours_beside
                beside = f"; ours: {prefill:.2f}x and {decode:.2f}x"
            print(
                f"batch {batch:2d}, {name}: prefill {speed.prefill:,.0f}, decode {speed.decode:,.1f} tokens/s{beside}"
            )
        result[f"batch {batch}"] = {name: speed._asdict() for name, speed in speeds.items()}
    return result
