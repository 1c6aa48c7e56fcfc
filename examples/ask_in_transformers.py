"""Ask an exported model questions with transformers alone: nothing of this project is imported.

    python examples/ask_in_transformers.py --model HF_FOLDER --question 'What is 1 + 1?' --question '一加一等于几?'

HF_FOLDER is what `tools/convert_checkpoint.py --to hf --with-code` wrote. The questions are one padded batch; an answer
ends at <eod>, or at <sep>, where the next question would begin.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="exported folder")
    parser.add_argument("--question", action="append", required=True, help="give it again for a batch")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        arguments.model, trust_remote_code=True, torch_dtype=torch.float32
    )
    chats = [[{"role": "user", "content": question}] for question in arguments.question]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    sep = tokenizer.convert_tokens_to_ids("<sep>")
    ends = [tokenizer.eos_token_id, sep]
    found = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False, eos_token_id=ends)
    for question, ids in zip(arguments.question, found[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        end = min((ids.index(each) for each in ends if each in ids), default=len(ids))
        print(f"{question}\n{tokenizer.decode(ids[:end])}\n")


if __name__ == "__main__":
    main()
