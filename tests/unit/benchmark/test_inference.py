"""What the benchmark of inference sets side by side is the same network, and its experts are drawn evenly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_yuan.benchmark.inference import NEW_TOKENS, EvenChoice, measure, speed_of
from megatron_yuan.config.presets import preset
from megatron_yuan.errors import ConfigError

TINY = preset("tiny")
CONFIG = replace(
    TINY,
    model=replace(TINY.model, num_layers=2, hidden_size=32, ffn_hidden_size=16, num_experts=4, vocab_size=64),
    data=replace(TINY.data, seq_length=8),
    training=replace(TINY.training, device="cpu"),
)


@pytest.mark.parametrize(
    "values",
    [{"moe_router": "noisy-top-k"}, {"moe_router": "expert-choice"}, {"num_shared_experts": 1}],
    ids=lambda values: next(iter(values.values())),
)
def test_peers_are_refused_where_theirs_would_be_another_network(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"peers: the model has .*\n.*--peers"):
        measure(replace(CONFIG, model=replace(CONFIG.model, **values)), batch=1, rounds=1, peers=True)
    assert measure(replace(CONFIG, model=replace(CONFIG.model, **values)), batch=1, rounds=1, peers=False)


def test_a_slow_spell_that_hits_all_models_changes_no_ratio() -> None:
    ours = [(1.0, 2.0), (1.0, 2.0), (4.0, 8.0)]
    theirs = [(0.5, 3.0), (2.0, 12.0), (2.0, 12.0)]
    speed = speed_of(theirs, ours, prompt_tokens=100, new_tokens=60)
    assert speed == (50, 5, (0.5, 1.5))  # the slow spell began between our second round and theirs


def test_every_model_takes_each_token_of_each_layer_from_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    seen: list[list[int]] = []
    begin = EvenChoice.begin

    def noted(self: EvenChoice) -> None:
        seen.append(getattr(self, "seen_L", []))
        begin(self)

    monkeypatch.setattr(EvenChoice, "begin", noted)
    assert len(measure(CONFIG, batch=2, rounds=1, peers=True)) == 3
    assert seen[2:] == [[2 * (8 + NEW_TOKENS)] * 2] * 5  # three models twice, the last one's end unseen
