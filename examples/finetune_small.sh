#!/usr/bin/env bash
# Instruction tuning from nothing, small: bash examples/finetune_small.sh
#
# Writes text without questions and dialogues of word problems (a few sums each, in the manner of GSM8K), pretrains
# `--preset tiny` on the text, fine-tunes it with --sft on the dialogues, and asks it problems that these do not contain:
# exact match before and after. Minutes on two CPU cores. It can be run again; earlier runs are removed.
#
#   FINETUNE_DIR=runs/finetune   where everything goes
#   FINETUNE_BASE_STEPS=150      steps of pretraining
#   FINETUNE_STEPS=350           steps of fine-tuning
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/environment.sh
source examples/environment.sh

DIR=${FINETUNE_DIR:-runs/finetune}
BASE_STEPS=${FINETUNE_BASE_STEPS:-150}
STEPS=${FINETUNE_STEPS:-350}
STAGES=2
VOCAB_SIZE=1024

section "environment"
activate_environment
install_project ""
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > STAGES ? cores / STAGES : 1))}

section "text, dialogues, and problems to be asked"
rm -rf "$DIR/corpus" "$DIR/data" "$DIR/base" "$DIR/tuned"
mkdir -p "$DIR/data"
python examples/sample_dialogues.py --output-dir "$DIR/corpus"

section "tokenizer and preprocessing"
python tools/train_tokenizer.py --input "$DIR/corpus/text.jsonl" "$DIR/corpus/problems.txt" \
    --vocab-size "$VOCAB_SIZE" --output "$DIR/data/tokenizer.model"
for file in text.jsonl problems.txt; do
    python tools/preprocess_data.py --input "$DIR/corpus/$file" --output-prefix "$DIR/data/${file%.*}" \
        --tokenizer-model "$DIR/data/tokenizer.model" --append-eod --workers 2
done

train() {
    torchrun --standalone --local-addr localhost --nproc-per-node "$STAGES" pretrain_yuan_moe.py --preset tiny \
        --pipeline-model-parallel-size "$STAGES" --vocab-size "$VOCAB_SIZE" \
        --tokenizer-model "$DIR/data/tokenizer.model" --log-interval 25 "$@"
}

section "pretraining, $BASE_STEPS steps"
train --data-path "$DIR/data/text_text_document" --train-iters "$BASE_STEPS" --save "$DIR/base"

section "fine-tuning on the dialogues, $STEPS steps: loss on the answers alone"
train --sft --data-path "$DIR/data/problems_text_document" --train-iters "$STEPS" \
    --load "$DIR/base" --finetune --save "$DIR/tuned"

section "held-out problems: exact match before and after"
python examples/score_heldout.py --load "$DIR/tuned" --before "$DIR/base" --questions "$DIR/corpus/heldout.jsonl"
