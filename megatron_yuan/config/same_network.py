"""Settings that the shapes of weights do not betray: with others, the same weights are another network."""

from __future__ import annotations

from megatron_yuan.config.fields import as_flag
from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.errors import ConfigError

FIXED = ("num_attention_heads", "head_dim", "norm_epsilon", "rotary_percent", "moe_router", "num_shared_experts")
"""Never to be changed for given weights."""
TUNABLE = ("moe_router_topk", "capacity_factor", "rotary_base", "rotary_ntk_factor", "rotary_rounding")
"""Changed on purpose where weights begin a new run, as to reach longer sequences; never in the midst of one."""

SETTING_OF = {"head_dim": "kv_channels", "capacity_factor": "moe_expert_capacity_factor"}
"""The setting behind what is derived."""


def check_same_network(saved: ModelConfig, asked: ModelConfig, where: str, new_run: bool) -> list[str]:
    """What a new run changes of the network saved at `where`, in words. Raises ConfigError where it must not."""
    remarks: list[str] = []
    for name in (*FIXED, *TUNABLE):
        theirs, ours = getattr(saved, name), getattr(asked, name)
        if theirs == ours:
            continue
        flag = as_flag(SETTING_OF.get(name, name))
        if name in FIXED or not new_run:
            also = ", or --finetune to change it on purpose" if name in TUNABLE else ""
            raise ConfigError(
                f"{flag[2:]} is {ours}, but the weights of {where} were trained with {theirs}: they would be another "
                f"network.\nFix: {flag} {theirs}{also}."
            )
        remarks.append(f"{flag} {ours}, where {where} has {theirs}")
    return remarks
