"""Rules between the router and what is asked of it: which settings belong to which router."""

from __future__ import annotations

from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.errors import ConfigError

LOOKS_AHEAD = (
    "moe-router is expert-choice, which looks at later tokens: which experts a token gets depends on what follows it"
)


def check_router(model: ModelConfig) -> None:
    """Raises ConfigError where the router cannot do, or would ignore, what is set."""
    if model.moe_router_topk > model.num_experts:
        raise ConfigError(
            f"moe-router-topk {model.moe_router_topk} is more than num-experts {model.num_experts}; "
            "a token cannot visit more experts than there are: lower --moe-router-topk or raise --num-experts."
        )
    if model.moe_expert_capacity_factor is not None and model.moe_router != "expert-choice":
        raise ConfigError(
            f"moe-expert-capacity-factor {model.moe_expert_capacity_factor} is for --moe-router expert-choice alone; "
            f"with {model.moe_router} no token is dropped: drop it, or choose that router."
        )
    for name in ("moe_importance_loss_coeff", "moe_load_loss_coeff"):
        value = getattr(model, name)
        if value is not None and model.moe_router != "noisy-top-k":
            raise ConfigError(
                f"{name.replace('_', '-')} {value} weighs a loss that only --moe-router noisy-top-k defines, not "
                f"{model.moe_router}; drop it, or use --moe-router-load-balancing-type aux_loss."
            )
    _check_balance(model)
    _check_bias(model)


def _check_bias(model: ModelConfig) -> None:
    rate, enabled = model.moe_router_bias_update_rate, model.moe_router_enable_expert_bias
    if rate != ModelConfig.moe_router_bias_update_rate and not enabled:
        raise ConfigError(
            f"moe-router-bias-update-rate {rate} moves a bias that is off; give --moe-router-enable-expert-bias, or "
            "drop it."
        )
    if enabled and model.moe_router == "noisy-top-k" and model.load_loss_coeff > 0:
        raise ConfigError(
            f"moe-load-loss-coeff {model.load_loss_coeff} balances choices made without the bias of "
            "moe-router-enable-expert-bias, so the two would pull at different loads;\n"
            "give --moe-load-loss-coeff 0, or drop --moe-router-enable-expert-bias."
        )


def _check_balance(model: ModelConfig) -> None:
    kind, coefficient = model.moe_router_load_balancing_type, model.moe_aux_loss_coeff
    if kind == "none" and coefficient > 0:
        raise ConfigError(
            f"moe-aux-loss-coeff {coefficient} weighs a loss that is off; "
            "give --moe-router-load-balancing-type aux_loss (or global_aux_loss), or drop it."
        )
    if kind != "none" and coefficient == 0:
        raise ConfigError(
            f"moe-router-load-balancing-type {kind} has weight 0, so it would do nothing; "
            "give --moe-aux-loss-coeff 0.01, or leave the type at none."
        )
    if model.moe_router == "expert-choice" and (kind != "none" or model.moe_router_enable_expert_bias):
        asked = "moe-router-enable-expert-bias" if kind == "none" else f"moe-router-load-balancing-type {kind}"
        raise ConfigError(
            f"{asked} balances experts, but with --moe-router expert-choice all are equally busy by construction; "
            "drop it."
        )
