#!/usr/bin/env bash
# Fine-tune Yuan 2.0-M32 on instruction data by the published recipe, on the 8 GPUs of one machine: 16K tokens, rotary base
# 40890 (NTK by 4), constant learning rate 8e-5, no FIM, 4220 steps of 1152 rows, loss on the answers alone.
#
#   LOAD=/models/yuan2-m32 DATA_PATH=/data/instructions_text_document TOKENIZER_MODEL=/data/tokenizer.model \
#       bash examples/finetune_yuan2_m32_16k.sh [flags]
#
# LOAD is a run folder, a checkpoint or a Hugging Face folder; step and optimizer start anew from its weights. The data are
# dialogues, 'question<sep>answer' and any number of '<sep>question<sep>answer' more, made into PREFIX.bin and PREFIX.idx
# by tools/preprocess_data.py --append-eod. The same command, run again, goes on from the newest checkpoint in SAVE.
# Memory: every layer is recomputed, as published; the optimizer's state is divided by the stages alone, so the fullest
# stage needs 103 GB (--dry-run shows the sum). It fits 8 x 141 GB (H200), not 8 x 80 GB. For several machines see
# examples/pretrain_multi_node.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/launch.sh
source examples/launch.sh

LOAD=${LOAD:-}                       # the pretrained model
DATA_PATH=${DATA_PATH:-}             # prefixes of .bin/.idx, optionally weighted
TOKENIZER_MODEL=${TOKENIZER_MODEL:-} # the published tokenizer.model
SAVE=${SAVE:-runs/yuan2-m32-16k}     # the run folder; the same command resumes from it
GPUS=${GPUS:-8}
GLOBAL_BATCH=${GLOBAL_BATCH:-1152}

[[ -e "$LOAD" ]] || fail "LOAD='$LOAD' is nothing to start from: give a run folder, a checkpoint or a Hugging Face folder."
read_data_path "$DATA_PATH"
need_tokenizer "$TOKENIZER_MODEL"

# One hardware queue keeps the order in which kernels and communication were issued, as in the published script.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

exec python tools/launch.py --signals-to-handle "$SIGNALS" --standalone --local-addr localhost \
    --nproc-per-node "$GPUS" pretrain_yuan_moe.py \
    --preset yuan2-m32 \
    --pipeline-model-parallel-size 8 \
    --sft --fim-rate 0 \
    --seq-length 16384 --max-position-embeddings 16384 --rotary-base 40890 \
    --micro-batch-size 1 --global-batch-size "$GLOBAL_BATCH" --train-iters 4220 \
    --lr 8e-5 --min-lr 8e-5 --lr-decay-style constant --lr-warmup-iters 0 \
    --recompute-granularity full --recompute-num-layers None \
    --data-path "${BLEND[@]}" --tokenizer-model "$TOKENIZER_MODEL" \
    --load "$LOAD" --finetune --save "$SAVE" \
    "$@"
