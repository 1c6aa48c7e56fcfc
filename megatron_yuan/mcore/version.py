"""The range of megatron-core that this project was checked with; another one is refused before it can misbehave."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from megatron_yuan.errors import ConfigError

LOWEST, BEYOND = (0, 16, 1), (0, 17)
FIX = 'pip install "megatron-core>=0.16.1,<0.17"'


def check_version() -> None:
    """Refuse a megatron-core outside [0.16.1, 0.17), or none at all."""
    try:
        found = version("megatron-core")
    except PackageNotFoundError:
        raise ConfigError(f"megatron-core is not installed; it is needed to train. Fix: {FIX}") from None
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:3] if part.isdigit())
    if not LOWEST <= numbers < BEYOND:
        raise ConfigError(f"megatron-core {found} is installed, but this project needs >=0.16.1,<0.17. Fix: {FIX}")
