from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.training import auto_layout

TIMES = {"middle": (1.0, 2.0), "first": (1.0, 2.0), "last": (17.0, 10.0)}  # the head: eight layers


class Measured:
    """In the place of real measurements."""

    def __init__(self, *_: Any) -> None: ...

    def pieces(self, _: int) -> dict[str, float]:
        passes = {f"{name} {way}": both[i] for name, both in TIMES.items() for i, way in enumerate(WAYS)}
        return passes | {"zero": 0.0, "norm": 0.0, "optimizer": 0.0}


WAYS = ("forward", "backward")


@pytest.mark.parametrize(("granularity", "layout"), [("none", "16,8"), ("full", "15,9")])
def test_layers_that_are_computed_again_weigh_more_beside_the_head(
    monkeypatch: pytest.MonkeyPatch, granularity: str, layout: str
) -> None:
    monkeypatch.setattr(auto_layout, "PieceTimes", Measured)
    values = {
        "num_layers": 24, "pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "auto",
        "recompute_granularity": granularity, "save": None,
    }  # fmt: skip
    topology: Any = SimpleNamespace(
        pp_size=2, vp_size=1, is_main=True, device=torch.device("cpu"), gather=lambda x: [x], barrier=lambda: None
    )
    settled, _ = auto_layout.settle_layout(with_values(preset("tiny"), values), topology)
    assert settled.parallel.pipeline_model_parallel_layout == layout
