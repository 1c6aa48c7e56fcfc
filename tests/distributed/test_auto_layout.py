"""The layout that a run settles by itself."""

from __future__ import annotations

from typing import Any

from megatron_yuan.config.fields import with_values
from megatron_yuan.config.presets import preset
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate
from megatron_yuan.config.yaml_file import read_yaml
from tests.distributed.training import train
from tests.indexed_data import EOD, counting_documents, write_indexed
from tests.processes import run_processes


def heavy_headed(folder: Any) -> Config:
    """Two stages of a small model whose head costs more than any of its ten layers."""
    values = {
        "num_layers": 10, "hidden_size": 64, "ffn_hidden_size": 64, "num_experts": 2, "vocab_size": 60_000,
        "data_path": ("1", write_indexed(folder / "zh", counting_documents(0))), "split": "1,0,0", "seq_length": 64,
        "max_position_embeddings": 64, "eod_id": EOD, "train_iters": 2, "micro_batch_size": 1, "global_batch_size": 2,
        "pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "auto", "peak_tflops": 1.0,
        "save": str(folder / "run"), "lr_warmup_iters": 1, "reset_attention_mask": False,
    }  # fmt: skip
    return with_values(preset("tiny"), values)


def placement(run: Any) -> list[int]:
    return [layer for chunk in run.model.chunks for layer in chunk.module.part.layer_ids]


def layers_of(run: Any) -> tuple[list[int], str]:
    return placement(run), run.config.parallel.pipeline_model_parallel_layout


def test_a_heavy_head_gets_fewer_layers_and_a_run_that_goes_on_keeps_its_split(tmp_path) -> None:
    config = heavy_headed(tmp_path)
    validate(config)
    (first, layout), (last, same) = (steps[-1] for steps in run_processes(train, 2, config, layers_of))
    assert layout == same
    assert [len(first), len(last)] == [int(size) for size in layout.split(",")]
    assert first + last == list(range(10)) and len(last) < len(first)
    assert read_yaml(tmp_path / "run" / "config.yaml").parallel.pipeline_model_parallel_layout == layout
    longer = with_values(config, {"train_iters": 3})
    assert all(steps[-1][1] == layout for steps in run_processes(train, 2, longer, layers_of))
