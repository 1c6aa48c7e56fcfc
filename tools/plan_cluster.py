"""Plan before paying: which layout of a model fits a cluster, which is fastest, and how long the run would take.

python tools/plan_cluster.py --preset yuan2-m32 --gpus 64 --gpu h100-80gb [--tokens 2e12] [--output plan.yaml]
    [any flag of pretrain_yuan_moe.py]

--gpu: h100-80gb, h200-141gb, or a YAML file of a GPU's figures like those in megatron_yuan/planning/machines.
Tries stages x virtual x replicas x micro-batch x recomputation x splits of the layers, ranks what fits, says why the
rest does not, and writes the fastest as a config for pretrain_yuan_moe.py --config. Builds nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_yuan.config.load import parse
from megatron_yuan.errors import ConfigError, run_command_line
from megatron_yuan.planning.cluster import WHOLE, counted, plan_cluster, write_config
from megatron_yuan.planning.cluster_report import cluster_report
from megatron_yuan.planning.machine import known_machines, read_machine


def main() -> None:
    """Read the command line, plan, print, and write the best layout."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return
    gpus, gpu = _take(arguments, "--gpus"), _take(arguments, "--gpu")
    tokens, output = _take(arguments, "--tokens"), _take(arguments, "--output") or "plan.yaml"
    if gpus is None or gpu is None:
        known = ", ".join(known_machines())
        raise ConfigError(
            f"{'gpus' if gpus is None else 'gpu'} is not given; give --gpus NUMBER --gpu {known} or FILE.yaml."
        )
    if not (gpus.isascii() and gpus.isdigit()) or not 1 <= int(gpus) <= 1_000_000:
        raise ConfigError(f"gpus is {gpus!r}, but must be a whole number from 1 to 1,000,000.")
    machine = read_machine(gpu)
    config = parse(arguments, instead=WHOLE).config
    plan = plan_cluster(config, int(gpus), machine, None if tokens is None else _number(tokens))
    print(cluster_report(plan))
    if not plan.best:
        sys.exit(1)
    write_config(plan, Path(output))
    processes = counted(plan.best[0].layout.gpus, "process", "processes")
    print(f"\nwrote {output}: pretrain_yuan_moe.py --config {output}, with {processes}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"tokens is {text!r}, but must be a number, such as 2e12.") from None


def _take(arguments: list[str], flag: str) -> str | None:
    """The value of `flag`, taken out of `arguments`: the last one, where it is given several times."""
    value, at = None, 0
    while at < len(arguments):
        name, equals, text = arguments[at].partition("=")
        if name != flag:
            at += 1
            continue
        arguments.pop(at)
        if not equals and at == len(arguments):
            raise ConfigError(f"{flag} needs a value.")
        value = text if equals else arguments.pop(at)
    return value


if __name__ == "__main__":
    run_command_line(main)
