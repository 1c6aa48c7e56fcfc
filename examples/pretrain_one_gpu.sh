#!/usr/bin/env bash
# Pretrain a Yuan MoE that fits one GPU (preset `ablation`: 826M parameters) on preprocessed data.
#
#   DATA_PATH="/data/en_text_document" TOKENIZER_MODEL=/data/tokenizer.model bash examples/pretrain_one_gpu.sh [flags]
#
# Any flag of pretrain_yuan_moe.py may follow; --dry-run shows what would run, and its memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/launch.sh
source examples/launch.sh

PRESET=${PRESET:-ablation}
DATA_PATH=${DATA_PATH:-}             # prefixes of .bin/.idx, optionally weighted: "0.7 /data/zh_text_document 0.3 /data/en_text_document"
TOKENIZER_MODEL=${TOKENIZER_MODEL:-} # the SentencePiece model that made the data
SAVE=${SAVE:-runs/$PRESET}           # the run folder; the same command resumes from it
MICRO_BATCH=${MICRO_BATCH:-2}

read_data_path "$DATA_PATH"
need_tokenizer "$TOKENIZER_MODEL"

exec python tools/launch.py --signals-to-handle "$SIGNALS" --standalone --local-addr localhost \
    --nproc-per-node 1 pretrain_yuan_moe.py \
    --preset "$PRESET" \
    --micro-batch-size "$MICRO_BATCH" \
    --data-path "${BLEND[@]}" --tokenizer-model "$TOKENIZER_MODEL" \
    --save "$SAVE" \
    "$@"
