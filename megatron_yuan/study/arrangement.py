"""What is compared: a router, with shared experts or without, with a balance or without, at equal size.

Letters: E experts, K chosen of them, F their width; with S shared ones E' experts of width f.

`softmax+2shared` is the M32 paper's baseline (Table 1: 2 shared and the top 2 of 14, of half width, beside the top 2 of
8). Equal parameters and equal active ones ask for (E' + S) f = E F and (K + S) f = K F, so f = K F / (K + S) and
E' = E (K + S) / K - S.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from megatron_yuan.config.routing import check_router
from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.model.moe.routers import ROUTERS

BALANCES: dict[str, dict[str, Any]] = {
    "aux": {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01},
    "globalaux": {"moe_router_load_balancing_type": "global_aux_loss", "moe_aux_loss_coeff": 0.01},
    "bias": {"moe_router_enable_expert_bias": True},
}
"""What may follow a router's name after a +, besides Nshared."""


@dataclass(frozen=True)
class Arrangement:
    """One column of a comparison."""

    name: str
    """As it was asked for: softmax+2shared."""
    router: str
    shared: int = 0
    balances: tuple[str, ...] = ()

    def applied_to(self, model: ModelConfig, experts: int) -> ModelConfig:
        """`model` with this router and as many parameters as with `experts` plain experts.

        Raises ConfigError where shared experts do not divide them.
        """
        K, S = model.moe_router_topk, self.shared
        if experts < K:
            raise ConfigError(
                f"experts is {experts}, but moe-router-topk is {K}; a token cannot visit more than there are."
            )
        width, rest = divmod(K * model.ffn_hidden_size, K + S)
        routed, uneven = divmod(experts * (K + S), K)
        routed -= S
        if rest or uneven or routed < K:
            raise ConfigError(
                f"routers: {self.name} splits top-{K} of {experts} experts of ffn-hidden-size {model.ffn_hidden_size} "
                f"into {S} shared and {routed} others of 1/{(K + S) / K:g} the width, which does not come out even;\n"
                f"give an --ffn-hidden-size divisible by {K + S}, and --experts in multiples of {K}."
            )
        settings = {name: value for kind in self.balances for name, value in BALANCES[kind].items()}
        found = replace(
            model,
            moe_router=self.router,  # type: ignore[arg-type]
            num_experts=routed,
            num_shared_experts=S,
            ffn_hidden_size=width,
            **settings,
        )
        check_router(found)
        return found


def parse_arrangement(text: str) -> Arrangement:
    """The arrangement that `text` names. Raises ConfigError for an unknown router or addition."""
    router, *additions = text.strip().split("+")
    if router not in ROUTERS:
        raise ConfigError(f"routers: {text!r} begins with {router!r}, but must with one of {', '.join(ROUTERS)}.")
    shared, balances = 0, []
    for addition in additions:
        match = re.fullmatch(r"([1-9]\d*)shared", addition)
        if match and not shared:
            shared = int(match[1])
        elif addition in BALANCES:
            balances.append(addition)
        else:
            raise ConfigError(f"routers: {text!r} adds {addition!r}, but may Nshared (once), {', '.join(BALANCES)}.")
    return Arrangement(text.strip(), router, shared, tuple(balances))


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    arrangement: Arrangement
    experts: int
    """Plain experts that it is as large as."""
    seed: int

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"{self.arrangement.name}-{self.experts}experts-seed{self.seed}"

    def config(self, base: Config) -> Config:
        """The run's settings: `base` but for the experts, the router and the seed."""
        model = self.arrangement.applied_to(base.model, self.experts)
        return replace(base, model=model, training=replace(base.training, seed=self.seed))


def parse_cell(name: str) -> Cell | None:
    """The cell whose folder is called `name`; None where none is."""
    match = re.fullmatch(r"(.+)-(\d+)experts-seed(\d+)", name)
    return Cell(parse_arrangement(match[1]), int(match[2]), int(match[3])) if match else None


def plan_cells(arrangements: list[Arrangement], experts: list[int], seeds: int, base: Config) -> list[Cell]:
    """Every cell once, all of the first seed before any of the second, so that an unfinished study is a smaller one."""
    first = base.training.seed
    return list(dict.fromkeys(Cell(a, e, first + s) for s in range(seeds) for e in experts for a in arrangements))
