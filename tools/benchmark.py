"""Measure training speed of one process, where the time goes, and the machine's own limit beside it.

python tools/benchmark.py --preset bench-cpu [--peers] [any flag of pretrain_yuan_moe.py]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_yuan.config.load import parse
from megatron_yuan.errors import run_command_line


def main() -> None:
    """Read the command line, measure, print, and write JSON where asked."""
    arguments = sys.argv[1:]
    peers = "--peers" in arguments
    rounds = int(_take(arguments, "--rounds", "5"))
    output = _take(arguments, "--json", "")
    config = parse([argument for argument in arguments if argument != "--peers"]).config

    import torch

    from megatron_yuan.benchmark.peers import mixtral_step
    from megatron_yuan.benchmark.training import our_step, shares, timed_in_turn
    from megatron_yuan.planning.accounting import TRAINING_PASSES, forward_flops
    from megatron_yuan.report.peak import device_peak

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
        result = {
            "tokens_per_step": ours.tokens,
            "gflop_per_token": flops / 1e9,
            "peak_tflops": peak.flops / 1e12,
            "peak_source": peak.source,
            "peer": setting,
            "tokens_per_second": {name: ours.tokens / each for name, each in seconds.items()},
            "shares": shares(ours, rounds),
        }
    print(f"peak: {peak.flops / 1e12:.3f} TFLOP/s, {peak.source}; peer: {setting}")
    print(f"{flops / 1e9:.3f} GFLOP a token forward and backward, causal attention scores included")
    for name, rate in result["tokens_per_second"].items():
        print(f"{name:<28}{rate:10.0f} tokens/s{rate * flops / 1e12:10.4f} TFLOP/s{rate * flops / peak.flops:8.1%} MFU")
    if peers:
        rates = result["tokens_per_second"]
        print(f"ours / peer, with the optimizer: {rates['with the optimizer'] / rates['peer, with the optimizer']:.2f}")
    for name, share in sorted(result["shares"].items(), key=lambda item: -item[1]):
        print(f"  {name:<42}{share:7.1%}")
    if output:
        Path(output).write_text(json.dumps(result, indent=1) + "\n")


def _take(arguments: list[str], flag: str, default: str) -> str:
    if flag not in arguments:
        return default
    at = arguments.index(flag)
    _, value = arguments.pop(at), arguments.pop(at)
    return value


if __name__ == "__main__":
    run_command_line(main)
