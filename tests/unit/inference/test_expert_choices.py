"""Which experts took which token."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from rich.console import Console

import megatron_yuan
from megatron_yuan.inference.expert_choices import as_table, colour, expert_choices
from tests.reference import yuan
from tests.reference.published_layout import config_json, published, write_folder

SHAPE = yuan.Shape(layers=3, hidden=24, heads=2, head_dim=16, ffn=20, experts=5, chosen=2, vocab=50, rotary_dim=8)
IDS = [11, 5, 30, 2, 8, 44]


def test_the_choices_are_those_of_the_routers_heaviest_first(tmp_path: Path) -> None:
    model = megatron_yuan.load(write_folder(tmp_path, published(yuan.random_weights(SHAPE), SHAPE), config_json(SHAPE)))
    weights: list[torch.Tensor] = []
    for layer in model.layers.values():
        layer.moe.router.register_forward_hook(lambda _module, _inputs, routing: weights.append(routing))
    model(torch.tensor([IDS]))
    found = expert_choices(model, IDS)
    assert found.shape == (len(IDS), 3, 2)
    for layer, routing in enumerate(weights[:3]):
        for token in range(len(IDS)):
            heaviest = int(routing.experts_TK[token, routing.weights_TK[token].argmax()])
            assert int(found[token, layer, 0]) == heaviest
            assert set(found[token, layer].tolist()) == set(routing.experts_TK[token].tolist())
    assert torch.equal(expert_choices(model, IDS[:3]), found[:3])  # routing is per token


def test_the_table_names_tokens_and_experts_in_numbers_and_colours() -> None:
    choices_SLK = torch.tensor([[[4, 0]], [[1, -1]]])
    console = Console(width=60, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(as_table(["sun", "\n"], choices_SLK, 5))
    text = console.export_text(clear=False)
    assert "sun" in text and "4,0" in text and "1,-1" in text and "\\n" in text
    assert "\x1b[38;2;" in console.export_text(styles=True)
    assert len({colour(expert, 32) for expert in range(32)}) == 32 and colour(-1, 32) == "default"
