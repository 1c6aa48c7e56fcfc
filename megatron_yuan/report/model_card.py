"""The model card (README.md) of an export, written from the run's own records: what is not on record is not told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_yuan.checkpoint.load import Checkpoint
from megatron_yuan.config.schema import Config, ModelConfig
from megatron_yuan.config.yaml_file import from_yaml
from megatron_yuan.planning.accounting import count_parameters
from megatron_yuan.report.metrics import Metrics, read_metrics
from megatron_yuan.report.run_folder import RunFolder

FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: text-generation
language:
- zh
- en
tags:
- yuan
- moe
---"""

CITATION = """\
@article{wu2024yuan,
  title   = {Yuan 2.0-M32: Mixture of Experts with Attention Router},
  author  = {Wu, Shaohua and Luo, Jiangang and Chen, Xi and Li, Lingjun and Zhao, Xudong and Yu, Tong and others},
  journal = {arXiv preprint arXiv:2405.17976},
  year    = {2024}
}"""

USE = """\
```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True, torch_dtype=torch.bfloat16)
inputs = tokenizer(["{prompt}"], return_tensors="pt", padding=True)
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=64)))
```

{remark}"""
FINE_TUNED = (
    "It was fine-tuned on questions and answers: end a question with `<sep>`, or use the tokenizer's chat template."
)
PRETRAINED = "It was pretrained on text, without BOS; `<eod>` ends a document."


def model_card(checkpoint: Checkpoint, name: str) -> str:
    """Markdown about the model `name` out of a checkpoint; what its run folder tells, where it still lies in one."""
    config = from_yaml(checkpoint.config_text, source=str(checkpoint.path))
    step, samples = checkpoint.run_state.step, checkpoint.run_state.consumed_samples
    folder = RunFolder(checkpoint.path.resolve().parents[1])
    metrics = _metrics(folder, step)
    sections = [_head(name, config.model), "## Architecture\n\n" + _table(_architecture(config.model))]
    if step:
        sections.append("## Training\n\n" + _table(_training(config, step, samples, metrics)))
        losses = _losses(metrics)
        if losses:
            sections.append("Validation loss, mean nats a token: " + losses + ".")
    records = _environment(folder)
    if records:
        sections.append(f"Trained with {records}.")
    tuned = config.data.sft
    prompt, remark = ("What is 1 + 1?<sep>", FINE_TUNED) if tuned else ("The capital of France is", PRETRAINED)
    sections += ["## Use\n\n" + USE.format(name=name, prompt=prompt, remark=remark)]
    sections += ["## Citation\n\n```bibtex\n" + CITATION + "\n```"]
    return "\n\n".join(sections) + "\n"


def _head(name: str, model: ModelConfig) -> str:
    parameters = count_parameters(model)
    router = "An attention router" if model.moe_router == "attention" else f"A {model.moe_router} router"
    return (
        f"{FRONT_MATTER}\n\n# {name}\n\nA mixture-of-experts language model of the Yuan 2.0-M32 family: "
        f"{parameters.total:,} parameters, of which {parameters.active:,} are active for a token. "
        f"{router} picks {model.moe_router_topk} of {model.num_experts} experts in each layer."
    )


def _architecture(model: ModelConfig) -> Mapping[str, str]:
    return {
        "layers": f"{model.num_layers}, hidden size {model.hidden_size}",
        "attention": f"{model.num_attention_heads} heads of {model.head_dim}, queries and keys by localized filtering",
        "positions": f"rotary on {model.rotary_dim} channels of a head, base {model.rotary_base:g}"
        + (f", stretched {model.rotary_ntk_factor:g} times (NTK)" if model.rotary_ntk_factor != 1 else ""),
        "experts": f"{model.num_experts} SwiGLU of width {model.ffn_hidden_size}, "
        f"{model.moe_router_topk} a token, dropless",
        "vocabulary": f"{model.vocab_size:,} ids, "
        f"embedding {'apart from' if model.untie_embeddings_and_output_weights else 'tied to'} the head",
        "context": f"{model.max_position_embeddings:,} tokens",
    }


def _training(config: Config, step: int, samples: int, metrics: Metrics) -> Mapping[str, str]:
    optimizer, data = config.optimizer, config.data
    rows = {
        "steps": f"{step:,}",
        "tokens": f"{samples * data.seq_length:,}, in samples of {data.seq_length:,}",
        "optimizer": f"AdamW, beta {optimizer.adam_beta1:g} and {optimizer.adam_beta2:g}, "
        f"weight decay {optimizer.weight_decay:g}, gradient norm up to {optimizer.clip_grad:g}",
        "learning rate": f"{optimizer.lr:g} to {optimizer.min_lr:g}, {optimizer.lr_decay_style}",
        "precision": "bfloat16 with float32 master weights" if optimizer.bf16 else "float32",
    }
    if data.fim_rate:
        rows["fill-in-the-middle"] = f"{data.fim_rate:g} of whole documents, {data.fim_spm_rate:g} of them SPM"
    late = [record["loss"] for record in metrics.steps[-10:] if isinstance(record.get("loss"), float)]
    if late:
        rows["training loss"] = f"{sum(late) / len(late):.4f} (mean of the last {len(late)} steps)"
    return rows


def _losses(metrics: Metrics) -> str:
    if not metrics.evaluations:
        return ""
    last = metrics.evaluations[-1]
    losses = last.get("losses")
    if not isinstance(losses, dict) or not losses:
        return ""
    return ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()) + f" (step {last['step']:,})"


def _metrics(folder: RunFolder, step: int) -> Metrics:
    if not folder.metrics.is_file():
        return Metrics()
    found = read_metrics(folder.metrics)
    return Metrics(found.starts, _until(found.steps, step), _until(found.evaluations, step), _until(found.tests, step))


def _until(records: Iterable[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [record for record in records if record["step"] <= step]


def _environment(folder: RunFolder) -> str:
    if not folder.environment.is_file():
        return ""
    found = json.loads(folder.environment.read_text(encoding="utf-8"))
    commit = (found.get("git") or {}).get("commit")
    versions = {"megatron_yuan": found.get("megatron_yuan"), **(found.get("packages") or {})}
    named = [f"{name} {versions[name]}" for name in ("megatron_yuan", "torch", "megatron-core") if versions.get(name)]
    return ", ".join(named) + (f" (commit {commit[:12]})" if isinstance(commit, str) else "")


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items())])
