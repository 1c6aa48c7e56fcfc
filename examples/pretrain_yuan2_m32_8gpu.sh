#!/usr/bin/env bash
# Pretrain Yuan 2.0-M32 (40B parameters, 3.7B active) by the published recipe on the 8 GPUs of one machine: 8 pipeline stages.
#
#   DATA_PATH="1 /data/yuan_text_document" TOKENIZER_MODEL=/data/tokenizer.model bash examples/pretrain_yuan2_m32_8gpu.sh [flags]
#
# Memory: a stage holds up to 5.2B parameters at 18 bytes each (bf16 weight, fp32 gradient, master weight and two moments),
# 94 GB before activations. It does not fit 8 x 80 GB; it fits 8 x 141 GB (H200). --dry-run shows the sum stage by stage.
# The published run took 318,000 steps of 1536 x 4096 tokens, more than one machine does in reasonable time: for several
# machines see examples/pretrain_multi_node.sh, which adds replicas of these 8 stages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/launch.sh
source examples/launch.sh

DATA_PATH=${DATA_PATH:-}             # prefixes of .bin/.idx, optionally weighted
TOKENIZER_MODEL=${TOKENIZER_MODEL:-} # the published tokenizer.model
SAVE=${SAVE:-runs/yuan2-m32}         # the run folder; the same command resumes from it
GPUS=${GPUS:-8}
GLOBAL_BATCH=${GLOBAL_BATCH:-1536}

read_data_path "$DATA_PATH"
need_tokenizer "$TOKENIZER_MODEL"

# One hardware queue keeps the order in which kernels and communication were issued, as in the published script.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

exec python tools/launch.py --signals-to-handle "$SIGNALS" --standalone --local-addr localhost \
    --nproc-per-node "$GPUS" pretrain_yuan_moe.py \
    --preset yuan2-m32 \
    --pipeline-model-parallel-size 8 \
    --global-batch-size "$GLOBAL_BATCH" \
    --data-path "${BLEND[@]}" --tokenizer-model "$TOKENIZER_MODEL" \
    --save "$SAVE" \
    "$@"
