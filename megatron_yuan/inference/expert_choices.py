"""Which experts took which token, layer by layer, and how that looks on a terminal.

Shapes: S tokens, L layers, K choices of a token.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from megatron_yuan.inference.decoding import Decoder
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.model.moe.routers.base import Routing

GOLDEN = 0.618034  # of a turn: neighbours' hues lie far apart, however many experts there are


@torch.inference_mode()
def expert_choices(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Experts of each of S tokens in each layer, heaviest first: [S, L, K] int64, -1 where none took it.

    On several stages every process calls this with the same ids, and every one gets all layers.
    """
    seen: dict[int, Tensor] = {}

    def note(layer: int) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: tuple, routing: Routing) -> None:
            order_SK = routing.weights_TK.argsort(dim=-1, descending=True, stable=True)
            seen[layer] = routing.experts_TK.gather(1, order_SK).cpu()

        return hook

    hooks = [layer.moe.router.register_forward_hook(note(int(name))) for name, layer in model.layers.items()]  # type: ignore[union-attr]
    try:
        ids_1S = model.checked(torch.tensor([list(ids)]))
        Decoder(model, ids_1S, None, 0, False, model.vocabulary_in_use, model.relay).hidden()
    finally:
        for each in hooks:
            each.remove()
    every = {layer: experts for stage in model.relay.gather_stages(seen) for layer, experts in stage.items()}
    return torch.stack([every[layer] for layer in sorted(every)], dim=1)


def as_table(pieces: Sequence[str], choices_SLK: Tensor, num_experts: int) -> Table:
    """A line a token: its text, then the experts of each layer, each in the colour of the heaviest."""
    table = Table(box=None, padding=(0, 1, 0, 0), title="experts of each token, heaviest first", title_justify="left")
    table.add_column("token", no_wrap=True)
    for layer in range(choices_SLK.shape[1]):
        table.add_column(f"{layer}", no_wrap=True)
    for piece, choices_LK in zip(pieces, choices_SLK.tolist(), strict=True):
        cells = [Text(",".join(map(str, experts)), colour(experts[0], num_experts)) for experts in choices_LK]
        table.add_row(Text(repr(piece)[1:-1]), *cells)
    return table


def colour(expert: int, num_experts: int) -> str:
    """A hue of its own for each expert, light enough for a dark terminal and dark enough for a light one."""
    if not 0 <= expert < num_experts:
        return "default"
    red, green, blue = colorsys.hls_to_rgb((expert * GOLDEN) % 1.0, 0.5, 0.75)
    return f"rgb({round(255 * red)},{round(255 * green)},{round(255 * blue)})"
