from __future__ import annotations

import torch

from megatron_yuan.model.randomness import dropout, generator, key, seeded


def test_a_key_is_a_fixed_number_of_its_parts_in_their_order() -> None:
    assert key(1, "a", 2) == key(1, "a", 2)
    assert len({key(1, 2), key(2, 1), key(12), key(1, "2", 3), key()}) == 5
    assert all(0 <= key(i, "x") < 2**63 for i in range(50))
    assert key(1234, "layers.0.moe.router.weight") == 162933376628123964  # b2sum -l 64, halved


def test_seeding_puts_the_default_generator_back_even_after_an_error() -> None:
    state = torch.get_rng_state()
    try:
        with seeded(torch.device("cpu"), 1, "x"):
            first = torch.rand(3)
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(state, torch.get_rng_state())
    with seeded(torch.device("cpu"), 1, "x"):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3, generator=generator(torch.device("cpu"), 1, "x")), first)


def test_dropout_keeps_the_mean_and_the_share_asked_for() -> None:
    x = torch.ones(2, 100, 100)
    dropped = dropout(x, 0.25, [1, 2], "site")
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((dropped == 0).float().mean().item() - 0.25) < 0.01
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped, dropout(x, 0.25, [1, 2], "another site"))


def test_dropout_of_nothing_is_nothing() -> None:
    x = torch.randn(2, 3)
    assert dropout(x, 0.0, [1, 2]) is x and dropout(x, 0.5, None) is x


def test_what_is_dropped_gets_no_gradient_and_the_rest_is_scaled() -> None:
    x = torch.randn(1, 50, requires_grad=True)
    y = dropout(x, 0.5, [3])
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, (y != 0) * 2.0)
