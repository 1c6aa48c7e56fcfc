"""A kind of GPU and the machines it stands in, from a YAML file; every figure says where it comes from.

A file holds each figure as `name: {value: 989, source: "datasheet"}`, or as a bare number, whose source is the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import yaml

from megatron_yuan.config.fields import perhaps
from megatron_yuan.config.yaml_file import load_plain
from megatron_yuan.errors import ConfigError

FOLDER = Path(__file__).parent / "machines"

# Unit, and the least and the most that is believed.
FIGURES: dict[str, tuple[str, float, float]] = {
    "memory_gb": ("GB (10^9 bytes) of one GPU", 1, 2000),
    "reserve_gb": ("GB kept free", 0, 200),
    "bf16_tflops": ("TFLOP/s dense in bfloat16", 1, 50_000),
    "memory_gb_per_s": ("GB/s of its memory", 50, 100_000),
    "nvlink_gb_per_s": ("GB/s to another GPU of the machine, one direction", 1, 10_000),
    "network_gb_per_s": ("GB/s to another machine for each GPU, one direction", 0.1, 10_000),
    "latency_us": ("microseconds of a message", 0.1, 100_000),
    "gpus_per_node": ("GPUs in a machine", 1, 1024),
    "matmul_efficiency": ("share of the peak that matrix products reach", 0.01, 1),
    "memory_efficiency": ("share of the memory's bandwidth that is reached", 0.01, 1),
    "network_efficiency": ("share of the links' bandwidth that is reached", 0.01, 1),
}


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of a GPU. Units: FIGURES."""

    name: str
    memory_gb: Figure
    reserve_gb: Figure
    bf16_tflops: Figure
    memory_gb_per_s: Figure
    nvlink_gb_per_s: Figure
    network_gb_per_s: Figure
    latency_us: Figure
    gpus_per_node: Figure
    matmul_efficiency: Figure
    memory_efficiency: Figure
    network_efficiency: Figure

    @property
    def usable_bytes(self) -> float:
        """What a plan may fill."""
        return (self.memory_gb.value - self.reserve_gb.value) * 1e9

    @property
    def flops(self) -> float:
        """FLOP/s that matrix products reach."""
        return self.bf16_tflops.value * 1e12 * self.matmul_efficiency.value

    @property
    def memory_bytes_per_second(self) -> float:
        """Bytes a second that a kernel bound by memory reaches."""
        return self.memory_gb_per_s.value * 1e9 * self.memory_efficiency.value

    def link_bytes_per_second(self, within_node: bool, gpus_together: int = 1) -> float:
        """Bytes a second of a message, or of a ring in which `gpus_together` of each machine use their own cards."""
        nvlink, network = self.nvlink_gb_per_s.value, self.network_gb_per_s.value * gpus_together
        return (nvlink if within_node else min(nvlink, network)) * 1e9 * self.network_efficiency.value

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Name and figure of each."""
        for field in fields(self):
            if field.name != "name":
                yield field.name, getattr(self, field.name)


def known_machines() -> list[str]:
    """Names that `read_machine` takes besides files."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_machine(name: str) -> Machine:
    """A machine that is shipped, or one of a YAML file. Raises ConfigError in a sentence or two."""
    path = FOLDER / f"{name}.yaml" if name in known_machines() else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"gpu {name!r} is not known{perhaps(name, known_machines())}; known are {', '.join(known_machines())}, "
            "or give a YAML file of such figures."
        )
    try:
        tree = load_plain(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"gpu {name}: cannot be read ({reason}); give a YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"gpu {name} is not YAML: {' '.join(str(error).split())}") from None
    return machine_of(tree, path.stem, f"gpu {name}")


def machine_of(tree: Any, name: str, where: str) -> Machine:
    """The machine that `tree`, as read from YAML, describes. Raises ConfigError that begins with `where`."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} holds no figures; write lines such as 'memory_gb: 80'.")
    given = {str(key): value for key, value in cast("dict[Any, Any]", tree).items()}
    for key in given:
        if key not in FIGURES:
            raise ConfigError(f"{where}: unknown figure {key!r}{perhaps(key, FIGURES)}.")
    missing = [figure for figure in FIGURES if figure not in given]
    if missing:
        unit = FIGURES[missing[0]][0]
        raise ConfigError(f"{where} lacks {', '.join(missing)}; add each, such as '{missing[0]}: NUMBER' ({unit}).")
    figures = {key: _figure(key, given[key], where, name) for key in FIGURES}
    if figures["reserve_gb"].value >= figures["memory_gb"].value:
        raise ConfigError(
            f"{where}: reserve_gb {figures['reserve_gb'].value:g} leaves nothing of memory_gb "
            f"{figures['memory_gb'].value:g}; lower it."
        )
    return Machine(name=name, **figures)


def _figure(key: str, given: Any, where: str, name: str) -> Figure:
    source = f"given in {name}"
    if isinstance(given, dict):
        inside = cast("dict[Any, Any]", given)
        strange = set(map(str, inside)) - {"value", "source"}
        if strange or "value" not in inside:
            raise ConfigError(f"{where}: {key} must be a number, or {{value: NUMBER, source: TEXT}}.")
        source, given = str(inside.get("source", source)), inside["value"]
    unit, least, most = FIGURES[key]
    whole = "a whole number " if key == "gpus_per_node" else ""
    try:
        value = float("nan") if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if not least <= value <= most or (whole and value != int(value)):
        raise ConfigError(f"{where}: {key} is {given!r}, but must be {whole}from {least:g} to {most:g}: {unit}.")
    return Figure(value, source)
