import pytest
import torch
from torch import nn

from megatron_yuan.config.schema import OptimizerConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.training.optimizer import MixedPrecisionAdamW

ALONE = Topology(0, 1, 0, 0, 1, 1, 0, 1, torch.device("cpu"))
TOKENS = 3
CONFIG = OptimizerConfig(weight_decay=0.1, clip_grad=1.0)


def make(dtype: torch.dtype, config: OptimizerConfig = CONFIG, copies: tuple[str, ...] = ()):
    torch.manual_seed(0)
    parameters = {
        "matrix": nn.Parameter(torch.randn(6, 5).to(dtype)),
        "norm.weight": nn.Parameter(torch.randn(5).to(dtype)),
        "embedding.weight": nn.Parameter(torch.randn(4, 5).to(dtype)),
    }
    return parameters, MixedPrecisionAdamW(parameters, copies, config)


def give_gradients(parameters, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in parameters.values():
        parameter.main_grad = torch.randn(parameter.shape)


def by_hand(parameters, config: OptimizerConfig, steps: int, lr: float):
    """The textbook: clip by the global norm, then AdamW with decay on matrices alone, all in float32."""
    weights = {name: p.detach().float().clone() for name, p in parameters.items()}
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(1, steps + 1):
        give_gradients(parameters, step)
        grads = {name: p.main_grad / TOKENS for name, p in parameters.items()}
        norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))
        for name, w in weights.items():
            g = grads[name] * min(1.0, config.clip_grad / norm)
            if w.ndim > 1:
                w -= lr * config.weight_decay * w
            first[name] = config.adam_beta1 * first[name] + (1 - config.adam_beta1) * g
            second[name] = config.adam_beta2 * second[name] + (1 - config.adam_beta2) * g * g
            m = first[name] / (1 - config.adam_beta1**step)
            v = second[name] / (1 - config.adam_beta2**step)
            w -= lr * m / (v.sqrt() + config.adam_eps)
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_the_mean_over_tokens_then_clipping_then_adamw_with_decay_on_matrices_alone(dtype):
    parameters, optimizer = make(dtype)
    expected = by_hand(parameters, CONFIG, steps=3, lr=0.01)
    for step in (1, 2, 3):
        give_gradients(parameters, step)
        optimizer.step(0.01, optimizer.gradient_norm(ALONE, TOKENS), TOKENS)
    for name, parameter in parameters.items():
        torch.testing.assert_close(optimizer.masters[name].data, expected[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parameter.data, optimizer.masters[name].data.to(dtype), rtol=0, atol=0)


def test_the_gradient_sum_is_not_aliased_into_the_next_backward():
    parameters, optimizer = make(torch.float32)
    give_gradients(parameters, 1)
    optimizer.step(0.01, optimizer.gradient_norm(ALONE, TOKENS), TOKENS)
    assert all(parameter.grad is None for parameter in parameters.values())


def test_a_tied_copy_is_stepped_but_not_counted_in_the_norm():
    parameters, optimizer = make(torch.float32, copies=("embedding.weight",))
    give_gradients(parameters, 1)
    counted = [parameters[name].main_grad for name in ("matrix", "norm.weight")]
    expected = torch.sqrt(sum(g.double().square().sum() for g in counted)).item()
    assert optimizer.gradient_norm(ALONE, TOKENS) == pytest.approx(expected / TOKENS, rel=1e-6)
    before = parameters["embedding.weight"].detach().clone()
    optimizer.step(0.01, expected, TOKENS)
    assert not torch.equal(before, parameters["embedding.weight"])


def test_state_put_into_another_optimizer_goes_on_to_the_bit():
    parameters, optimizer = make(torch.bfloat16)
    for step in (1, 2):
        give_gradients(parameters, step)
        optimizer.step(0.01, optimizer.gradient_norm(ALONE, TOKENS), TOKENS)
    others, restored = make(torch.bfloat16)
    for name, slots in restored.state().items():
        for slot, tensor in slots.items():
            tensor.copy_(optimizer.state()[name][slot])
    restored.steps = optimizer.steps
    restored.refresh_weights()
    for one, steps in ((parameters, optimizer), (others, restored)):
        give_gradients(one, 3)
        steps.step(0.01, steps.gradient_norm(ALONE, TOKENS), TOKENS)
    assert restored.steps == 3
    for name in parameters:
        assert torch.equal(parameters[name], others[name])
        assert torch.equal(optimizer.masters[name], restored.masters[name])


def test_asking_for_apex_without_apex_is_refused_in_words():
    with pytest.raises(ConfigError, match="apex is not installed"):
        make(torch.float32, OptimizerConfig(use_apex_adam=True))
