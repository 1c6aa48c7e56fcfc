"""Read tensors from a pickle of the published training code without running any of its objects' code.

Such files hold, beside tensors, the arguments of the run (an argparse.Namespace with enums of Megatron's) and numpy's
random state, which torch's weights_only reader refuses. What a file asks for is listed first; a name of Megatron's or
numpy's is given an inert stand-in, argparse.Namespace itself, and any other name is refused before anything is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from megatron_yuan.errors import CheckpointError

_STAND_INS = ("megatron.", "numpy.", "numpy")
"""Whose objects are left out: enums, random states, scalers."""


class Inert:
    """Takes any arguments and any state, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """One object more."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        """Forget it."""


def load_inert(path: Path) -> dict[str, Any]:
    """The file's dictionary, its tensors mapped from the disk. CheckpointError for damage and for unknown objects."""
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        allowed: list[Any] = []
        for name in asked:
            if name == "argparse.Namespace":
                allowed.append((argparse.Namespace, name))
            elif name.startswith(_STAND_INS):
                allowed.append((Inert, name))
            else:
                raise CheckpointError(
                    f"{path} asks for {name}, which has no place in a checkpoint: refused, nothing was run"
                )
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except CheckpointError:
        raise
    except Exception as error:  # bytes of unknown origin: torch's reader meets whatever they make of it
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} is damaged, or no file of torch.save: {first[:200]}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not the dictionary of a checkpoint")
    return found
