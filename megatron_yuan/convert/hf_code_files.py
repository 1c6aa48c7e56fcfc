"""What an export carries besides weights and config.json so that transformers opens it: code, tokenizer, defaults."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from megatron_yuan.checkpoint import strict_json
from megatron_yuan.data.tokenizer import Tokenizer

CODE = ("configuration_yuan.py", "modeling_yuan.py", "tokenization_yuan.py")
AUTO_MAP = {
    "AutoConfig": "configuration_yuan.YuanConfig",
    "AutoModel": "modeling_yuan.YuanModel",
    "AutoModelForCausalLM": "modeling_yuan.YuanForCausalLM",
}
"""Key of config.json by which transformers finds the code."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}<sep>{% endif %}"
    "{% else %}{{ message['content'] + ('<eod>' if loop.last else '<sep>') }}{% endif %}"
    "{% endfor %}"
)
"""Question <sep> answer <sep> question <sep> answer <eod>, as instruction data are written. A system's message stands
before the first question, on lines of its own."""


def code_files() -> dict[str, bytes]:
    """Our modelling code, by file name."""
    folder = resources.files("megatron_yuan.convert.hf_code")
    return {name: folder.joinpath(name).read_bytes() for name in CODE}


def tokenizer_files(longest: int) -> dict[str, bytes]:
    """tokenizer_config.json."""
    config: dict[str, Any] = {
        "tokenizer_class": "YuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_yuan.YuanTokenizer", None]},
        "eos_token": "<eod>",
        "pad_token": "<pad>",
        "sep_token": "<sep>",
        "padding_side": "left",
        "model_max_length": longest,
        "chat_template": CHAT_TEMPLATE,
    }
    return {"tokenizer_config.json": strict_json.readable(config).encode()}


def generation_file(tokenizer: Tokenizer | None, keys: Mapping[str, Any], in_use: int) -> dict[str, bytes]:
    """generation_config.json: an answer ends with <eod>, or where a question would begin; without a tokenizer, as the
    `keys` of config.json say. Ids from `in_use` on, or that the tokenizer does not spell, are never chosen.
    """
    if tokenizer is not None:
        in_use = min(in_use, tokenizer.vocab_size)
        ends = [tokenizer.eod_id, tokenizer.special_ids["<sep>"]]
        generation: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_id}
    else:
        generation = {name: keys[name] for name in ("eos_token_id", "pad_token_id") if keys.get(name) is not None}
    if unspelt := list(range(in_use, keys["vocab_size"])):
        generation["suppress_tokens"] = unspelt
    return {"generation_config.json": strict_json.readable(generation).encode()}
