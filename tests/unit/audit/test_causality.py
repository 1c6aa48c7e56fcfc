"""Every causal router passes the audit, at the lengths that set traps; expert choice does not, and is told why."""

from __future__ import annotations

import copy

import pytest
import torch

from megatron_yuan.audit import Report, audit_causality
from megatron_yuan.audit.causality import trap_lengths
from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.model.initialize import initialize
from megatron_yuan.model.model import YuanModel

LENGTH = 8
CONFIG = ModelConfig(
    num_layers=3,
    hidden_size=24,
    num_attention_heads=2,
    kv_channels=16,
    ffn_hidden_size=20,
    vocab_size=50,
    make_vocab_size_divisible_by=1,
    num_experts=4,
    init_method_std=0.3,
)


def config_with(**values: object) -> ModelConfig:
    return ModelConfig(**{**vars(CONFIG), **values})  # type: ignore[arg-type]


def model_of(**values: object) -> LanguageModel:
    """A model with nothing at its first value of 0 or 1, behind which a leak could hide."""
    config = config_with(**values)
    model = LanguageModel(Config(model=config))
    initialize(model, config, seed=1)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "router" in name or "bias" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    return model.eval()


def columns(report: Report, kind: str) -> dict[str, float]:
    """The largest difference of each part."""
    return {part: cell.largest for (part, column), cell in report.columns.items() if column == kind}


@pytest.mark.parametrize("extras", [{}, {"num_shared_experts": 2, "moe_router_enable_expert_bias": True}])
@pytest.mark.parametrize("router", ["attention", "softmax", "noisy-top-k"])
def test_a_causal_router_passes_to_the_bit_and_the_fast_experts_within_a_millionth(
    router: str, extras: dict[str, object]
) -> None:
    report = audit_causality(model_of(moe_router=router, **extras), [2, LENGTH])
    assert report.clean, report.text()
    looped, grouped, gradient = (columns(report, kind) for kind in ("looped", "grouped", "gradient"))
    may_round = {"attention"}  # where an <eod> comes or goes
    assert {part for part, size in looped.items() if size} <= may_round
    assert {part for part, size in grouped.items() if size} <= may_round | {"experts", "whole model"}
    assert max(grouped.values()) <= 1e-6 and report.tipped == 0
    assert set(gradient.values()) == {0.0}
    expected = {"localized filter", "attention", "router scores", "router decisions", "experts", "whole model"}
    assert expected <= looped.keys() and expected <= gradient.keys()
    assert "CAUSAL" in report.text()


@pytest.mark.parametrize("length", trap_lengths(CONFIG)[:-1])
def test_lengths_equal_to_other_axes_hide_nothing_and_raise_no_alarm(length: int) -> None:
    assert audit_causality(model_of(num_layers=1), [length], experts=["grouped"]).clean


@pytest.mark.parametrize("values", [{"moe_router_topk": 1}, {"moe_router_topk": 4}, {"num_experts": 6}])
def test_any_number_of_choices_passes(values: dict[str, object]) -> None:
    report = audit_causality(model_of(num_layers=1, **values), [1, LENGTH])
    assert report.clean, report.text()


def test_dropout_is_audited_with_the_models_own_probabilities_too() -> None:
    model = model_of(num_layers=1, attention_dropout=0.3, hidden_dropout=0.2)
    assert audit_causality(model, [LENGTH], experts=["grouped"]).clean


def test_expert_choice_is_reported_as_looking_ahead_by_design() -> None:
    report = audit_causality(model_of(moe_router="expert-choice", num_layers=2), [LENGTH])
    assert {leak.part for leak in report.leaks} == {"router decisions"}
    assert report.first is not None and report.first.name == "layer 0, router decisions"
    assert "looks at later tokens by design" in report.text()


def test_the_model_is_left_as_it_was() -> None:
    model = model_of(num_layers=1)
    before = copy.deepcopy({name: vars(module) for name, module in model.named_modules()})
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audit_causality(model, [LENGTH])
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys(), name
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert getattr(module, "dropout", 0.0) == before[name].get("dropout", 0.0)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_bare_model_is_audited_as_well() -> None:
    model = YuanModel(CONFIG)
    initialize(model, CONFIG, seed=1)
    assert audit_causality(model, [LENGTH], experts=["grouped"]).clean


def test_what_cannot_be_audited_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="to the bit in float32"):
        audit_causality(model_of().bfloat16())
    with pytest.raises(ConfigError, match="pipeline stage"):
        audit_causality(YuanModel(CONFIG, [0], is_last=False))
    with pytest.raises(ConfigError, match="seq-length is 0"):
        audit_causality(model_of(), [0])
    with pytest.raises(ConfigError, match="eod-id is 50"):
        audit_causality(model_of(), [1], eod_id=50)
    spoiled = model_of()
    spoiled.final_norm.weight.data[0] = float("nan")
    with pytest.raises(ConfigError, match=r"final_norm\.weight is not finite"):
        audit_causality(spoiled)


def test_rounding_that_layers_amplify_is_no_leak() -> None:
    """Weights so large that a choice, and what follows it, hangs on the last bits."""
    model = model_of(num_layers=6, init_method_std=2.0)
    report = audit_causality(model, [LENGTH], experts=["grouped"])
    assert report.clean, report.text()


def test_where_a_row_lies_in_memory_raises_no_alarm() -> None:
    """At such widths a row's last bits depend on its address."""
    model = model_of(hidden_size=66, ffn_hidden_size=7, num_experts=8, moe_router_topk=1, num_layers=2)
    report = audit_causality(model, [16], experts=["looped"])
    assert report.clean, report.text()
