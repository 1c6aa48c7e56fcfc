from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_yuan.config.fields import as_flag, differences, settings, value_of
from megatron_yuan.config.load import load_config, parse
from megatron_yuan.config.presets import PRESETS
from megatron_yuan.config.published import MEGATRON, PUBLISHED, TABLE, Accepted, Refused
from megatron_yuan.errors import ConfigError

PRETRAINING = """
--nproc_per_node 8 --nnodes 1 --node_rank 0 --master_addr localhost --master_port 6000
--tensor-model-parallel-size 1 --pipeline-model-parallel-size 8 --timing-log-level 2 --num-workers 2 --num-layers 24
--hidden-size 2048 --num-attention-heads 16 --kv-channels 256 --use-lf-gate --lf-conv2d-group 1 --lf-conv2d-num-pad 1
--position-embedding-type rope --no-embedding-dropout --flash-attn-drop 0.1 --fim-rate 0.5 --fim-spm-rate 0.5
--norm-dtype RMSNorm --attention-dropout 0 --hidden-dropout 0 --disable-bias-linear --reset-position-ids
--use-flash-attn --swiglu --adam-beta1 0.9 --adam-beta2 0.95 --seq-length 4096 --max-position-embeddings 4096
--micro-batch-size 2 --global-batch-size 1536 --lr 0.0001 --train-iters 318000 --lr-decay-iters 318000
--lr-decay-style cosine --min-lr 1.0e-5 --weight-decay 1e-1 --lr-warmup-iters 6400 --clip-grad 1.0
--recompute-method block --recompute-granularity full --recompute-num-layers 1 --bf16 --rotary-percent 0.5
--use-attention-router --no-masked-softmax-fusion --use-fp32-router --num-experts 32
--moe-router-load-balancing-type none --moe-router-topk 2 --moe-grouped-gemm --data-path data
--tokenizer-type YuanTokenizer --tokenizer-model-path tokenizer.model --data-impl mmap --split 10,0,0 --log-interval 1
--save-interval 10000 --eval-interval 1000000 --eval-iters 10 --tensorboard-dir logs --tensorboard-log-interval 1
--tensorboard-queue-size 1000 --log-timers-to-tensorboard --log-batch-size-to-tensorboard --log-memory-to-tensorboard
--log-world-size-to-tensorboard --distributed-backend nccl --save run --load run
"""
FINE_TUNING = """
--nproc_per_node 8 --nnodes 1 --node_rank 0 --master_addr localhost --master_port 6000
--tensor-model-parallel-size 1 --pipeline-model-parallel-size 8 --timing-log-level 2 --num-workers 2 --num-layers 24
--hidden-size 2048 --num-attention-heads 16 --kv-channels 256 --use-lf-gate --lf-conv2d-group 1 --lf-conv2d-num-pad 1
--rotary-base 40890 --position-embedding-type rope --no-embedding-dropout --flash-attn-drop 0.1 --fim-rate 0.0
--fim-spm-rate 0.0 --norm-dtype RMSNorm --attention-dropout 0 --hidden-dropout 0 --disable-bias-linear
--reset-position-ids --use-flash-attn --swiglu --use-distributed-optimizer --adam-beta1 0.9 --adam-beta2 0.95
--seq-length 16384 --max-position-embeddings 16384 --micro-batch-size 1 --global-batch-size 1152 --lr 8.0e-5
--train-iters 4220 --lr-decay-style constant --min-lr 8.0e-5 --weight-decay 1e-1 --clip-grad 1.0
--recompute-method uniform --recompute-granularity full --recompute-num-layers 1 --bf16 --rotary-percent 0.5
--use-attention-router --num-attention-router-heads 16384 --num-experts 32 --no-masked-softmax-fusion
--use-fp32-router --moe-router-load-balancing-type none --moe-router-topk 2 --moe-grouped-gemm --sft-stage
--override-opt-param-scheduler --train-reset --data-path data --tokenizer-type YuanTokenizer
--tokenizer-model-path tokenizer.model --data-impl mmap --split 10,0,0 --log-interval 1 --save-interval 10000
--eval-interval 1000000 --eval-iters 10 --tensorboard-dir logs --tensorboard-log-interval 1
--tensorboard-queue-size 1000 --log-timers-to-tensorboard --log-batch-size-to-tensorboard --log-memory-to-tensorboard
--log-world-size-to-tensorboard --distributed-backend nccl --save run --load run
"""


def flags_of(script: str) -> list[list[str]]:
    """One list a flag: its name and its value, if any."""
    return [flag.split() for flag in re.split(r"\s+(?=--)", script.strip())]


def hyphened(flag: str) -> str:
    return flag.replace("_", "-")


def accepted(script: str) -> list[str]:
    kept = [flag for flag in flags_of(script) if not isinstance(TABLE.get(hyphened(flag[0])), Refused)]
    return [token for flag in kept for token in flag]


def test_the_published_pretraining_flags_are_the_m32_preset() -> None:
    config = load_config(accepted(PRETRAINING))
    unlike = {name for name, _, _ in differences(config, PRESETS["yuan2-m32"])}
    assert unlike == {"data_path", "tokenizer_model", "tensorboard_dir", "distributed_backend", "save", "load"}
    assert config.model.attention_dropout == 0.1


def test_the_published_fine_tuning_flags_keep_their_meaning() -> None:
    config = load_config(accepted(FINE_TUNING))
    assert (config.model.rotary_base, config.data.seq_length) == (40_890.0, 16_384)
    assert (config.optimizer.lr_decay_style, config.optimizer.lr) == ("constant", 8e-5)
    assert config.checkpoint.finetune  # --train-reset
    assert config.data.sft and config.data.fim_rate == 0
    assert (config.parallel.recompute_granularity, config.parallel.recompute_num_layers) == ("full", None)  # uniform


def test_each_published_flag_is_accepted_or_refused_in_one_sentence() -> None:
    names = {hyphened(flag[0]) for script in (PRETRAINING, FINE_TUNING) for flag in flags_of(script)}
    own = {as_flag(name) for name in settings()}
    assert names - own == set(PUBLISHED)
    for flag in (flag for script in (PRETRAINING, FINE_TUNING) for flag in flags_of(script)):
        rule = TABLE.get(hyphened(flag[0]))
        context = ["--preset", "yuan2-m32"]
        if flag[0] == "--train-reset":
            context += ["--load", "run"]
        if flag[0] == "--sft-stage":
            context += ["--fim-rate", "0"]
        if flag[0] in ("--seq-length", "--max-position-embeddings"):
            context += ["--max-position-embeddings", "16384"]
        if flag[0] == "--train-iters":
            context += ["--lr-warmup-iters", "0"]
        if isinstance(rule, Refused):
            with pytest.raises(ConfigError, match="is refused") as caught:
                parse([*context, *flag])
            assert "\n" not in str(caught.value)
        else:
            remarks = parse([*context, *flag]).remarks
            assert not isinstance(rule, Accepted) or flag[0] in remarks[-1]


def test_no_published_or_megatron_flag_hides_a_setting() -> None:
    assert not set(TABLE) & {as_flag(name) for name in settings()}
    assert not set(PUBLISHED) & set(MEGATRON)


@pytest.mark.parametrize(
    ("argv", "setting", "value"),
    [
        ("--use-attention-router", "moe_router", "attention"),
        ("--moe-grouped-gemm", "moe_experts", "grouped"),
        ("--flash-attn-drop 0.3", "attention_dropout", 0.3),
        ("--flash-attn-drop 0.3 --attention-dropout 0", "attention_dropout", 0.3),
        ("--attention-dropout 0 --flash-attn-drop 0.3", "attention_dropout", 0.3),
        ("--attention-dropout 0.2", "attention_dropout", 0.2),
        ("--tokenizer-model-path t.model", "tokenizer_model", "t.model"),
        ("--train-reset --load run", "finetune", True),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 2", "recompute_num_layers", 2),
        ("--preset yuan2-m32 --recompute-method uniform", "recompute_num_layers", None),
        (
            "--recompute-granularity selective --recompute-modules moe_act layernorm",
            "recompute_granularity",
            "selective",
        ),
        ("--untie-embeddings-and-output-weights", "untie_embeddings_and_output_weights", True),
        ("--no-load-optim", "load_optim", False),
        ("--moe-ffn-hidden-size 64", "ffn_hidden_size", 64),
        (
            "--num-layers 7 --pipeline-model-parallel-size 3 --pipeline-model-parallel-method block "
            "--pipeline-model-parallel-blocks 2,3,2",
            "pipeline_model_parallel_layout",
            "2,3,2",
        ),
        (
            "--num-layers 7 --pipeline-model-parallel-size 3 --pipeline-model-parallel-blocks 2 3 2",
            "pipeline_model_parallel_layout",
            "2,3,2",
        ),
        (
            "--num-layers 8 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2",
            "virtual_pipeline_model_parallel_size",
            2,
        ),
        (
            "--num-layers 8 --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 4",
            "virtual_pipeline_model_parallel_size",
            4,
        ),
    ],
)
def test_a_flag_of_another_name_reaches_its_setting(argv: str, setting: str, value: object) -> None:
    assert value_of(load_config(argv.split()), setting) == value


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--tensor-model-parallel-size 2", "only 1 is accepted.*--pipeline-model-parallel-size"),
        ("--use-distributed-optimizer", "not sharded"),
        ("--nproc_per_node 8", "torchrun"),
        ("--fp16", "--bf16"),
        ("--norm-dtype LayerNorm", "only RMSNorm"),
        ("--lf-conv2d-num-pad 0", "only 1"),
        ("--tokenizer-type GPT2BPETokenizer", "--tokenizer-model"),
        ("--moe-shared-expert-intermediate-size 8", "--num-shared-experts"),
        ("--flash-attn-drop 0.1 --attention-dropout 0.2", "contradict"),
        ("--pipeline-model-parallel-method block", "--pipeline-model-parallel-layout"),
        ("--num-layers-per-virtual-pipeline-stage 5", "num-layers 24"),
        ("--num-layers-per-virtual-pipeline-stage two", "whole number"),
        ("--swiglu yes", "takes no value"),
        ("--use-lf-gates", "perhaps you meant --use-lf-gate"),
        ("--train-samples 5", "--train-iters"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_replaces_it(argv: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(argv.split())


def test_a_tokenizer_folder_means_the_model_in_it(tmp_path: Path) -> None:
    config = load_config(["--tokenizer-model-path", str(tmp_path)])
    assert config.data.tokenizer_model == str(tmp_path / "tokenizer.model")


def test_every_refusal_reads_as_one_sentence() -> None:
    for flag, rule in TABLE.items():
        if isinstance(rule, Accepted | Refused):
            assert rule.why and not rule.why.endswith(".") and "\n" not in rule.why and ". " not in rule.why, flag
