"""Which settings belong to which router."""

from __future__ import annotations

import pytest

from megatron_yuan.config.load import load_config
from megatron_yuan.config.same_network import check_same_network
from megatron_yuan.config.schema import ModelConfig
from megatron_yuan.errors import ConfigError


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--moe-router atention", "'--moe-router'.*'attention', 'softmax', 'noisy-top-k', 'expert-choice'"),
        ("--moe-router-topk 9 --num-experts 8", "moe-router-topk 9 is more than num-experts 8"),
        ("--moe-router expert-choice --moe-expert-capacity-factor 0", "moe-expert-capacity-factor is 0.*above 0"),
        ("--moe-router expert-choice --moe-expert-capacity-factor -1", "moe-expert-capacity-factor is -1.*above 0"),
        ("--moe-expert-capacity-factor 2", "expert-choice alone"),
        ("--num-shared-experts -1", "num-shared-experts is -1"),
        ("--moe-router softmax --moe-load-loss-coeff 0.1", "only --moe-router noisy-top-k defines, not softmax"),
        ("--moe-router expert-choice --moe-router-enable-expert-bias", "equally busy by construction"),
        (
            "--moe-router expert-choice --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1",
            "equally busy by construction",
        ),
        ("--moe-aux-loss-coeff 0.1", "a loss that is off"),
        ("--moe-router-load-balancing-type aux_loss", "give --moe-aux-loss-coeff"),
        ("--moe-z-loss-coeff nan", "moe-z-loss-coeff is nan"),
    ],
)
def test_what_a_router_cannot_do_or_would_ignore_is_refused(flags: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(flags.split())


def test_unset_weights_of_noisy_top_k_are_the_papers_and_zero_is_zero() -> None:
    unset = load_config(["--moe-router", "noisy-top-k"]).model
    zero = load_config(["--moe-router", "noisy-top-k", "--moe-importance-loss-coeff", "0"]).model
    assert (unset.importance_loss_coeff, unset.load_loss_coeff) == (0.1, 0.1)
    assert (zero.importance_loss_coeff, zero.load_loss_coeff) == (0.0, 0.1)


def test_weights_are_another_network_with_another_capacity_unless_a_new_run_asks_for_it() -> None:
    saved = ModelConfig(moe_router="expert-choice")
    asked = ModelConfig(moe_router="expert-choice", moe_expert_capacity_factor=2.0)
    with pytest.raises(ConfigError, match=r"moe-expert-capacity-factor is 2.0.*with 1.0"):
        check_same_network(saved, asked, "there", new_run=False)
    assert check_same_network(saved, asked, "there", new_run=True)
    same = ModelConfig(moe_router="expert-choice", moe_expert_capacity_factor=1.0)
    assert check_same_network(saved, same, "there", new_run=False) == []
