#!/usr/bin/env bash
# The whole way of a small model: bash examples/from_text_to_transformers.sh
#
# Writes text and dialogues of word problems, trains a tokenizer, pretrains `--preset tiny`, fine-tunes it with --sft while
# it is measured on held-out problems, evaluates it before and after through lm-evaluation-harness, exports it with code,
# and asks the exported folder in transformers. About a quarter of an hour on two CPU cores after downloads. It can be run
# again; earlier runs are removed.
#
#   EXAMPLE_DIR=runs/example     where everything goes
#   EXAMPLE_BASE_STEPS=150       steps of pretraining
#   EXAMPLE_STEPS=350            steps of fine-tuning
#   EXAMPLE_DOCUMENTS=20000      texts, and as many dialogues
#   EXAMPLE_QUESTIONS=240        held-out problems to ask
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/environment.sh
source examples/environment.sh

DIR=${EXAMPLE_DIR:-runs/example}
BASE_STEPS=${EXAMPLE_BASE_STEPS:-150}
STEPS=${EXAMPLE_STEPS:-350}
DOCUMENTS=${EXAMPLE_DOCUMENTS:-20000}
QUESTIONS=${EXAMPLE_QUESTIONS:-240}
STAGES=2
VOCAB_SIZE=1024
ASKED=("Nina has 5 cakes, buys 4 more and gives 3 to David. How many cakes has Nina now?"
    "Anna has 8 stones, buys 5 more and gives 8 to Rosa. How many stones has Anna now?")

section "environment"
activate_environment
if (cd / && python -c 'import megatron_yuan, lm_eval, transformers') 2>/dev/null; then
    echo "all that is needed is installed"
else
    install_project "[eval,transformers]"
fi
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > STAGES ? cores / STAGES : 1))}

section "text, dialogues, and problems to be asked"
rm -rf "$DIR/corpus" "$DIR/data" "$DIR/base" "$DIR/tuned" "$DIR/exported" "$DIR/evaluated"
mkdir -p "$DIR/data" "$DIR/evaluated"
python examples/sample_dialogues.py --output-dir "$DIR/corpus" --documents "$DOCUMENTS" --dialogues "$DOCUMENTS"
# Held-out problems are in the form of GSM8K: lines of {"question", "answer"} whose answer ends with '#### NUMBER'.
cp "$DIR/corpus/heldout.jsonl" "$DIR/evaluated/gsm8k.jsonl"

section "tokenizer and preprocessing"
python tools/train_tokenizer.py --input "$DIR/corpus/text.jsonl" "$DIR/corpus/problems.txt" \
    --vocab-size "$VOCAB_SIZE" --output "$DIR/data/tokenizer.model"
for file in text.jsonl problems.txt; do
    python tools/preprocess_data.py --input "$DIR/corpus/$file" --output-prefix "$DIR/data/${file%.*}" \
        --tokenizer-model "$DIR/data/tokenizer.model" --append-eod --workers 2
done

train() {
    python -m torch.distributed.run --standalone --local-addr localhost \
        --nproc-per-node "$STAGES" pretrain_yuan_moe.py --preset tiny \
        --pipeline-model-parallel-size "$STAGES" --vocab-size "$VOCAB_SIZE" \
        --tokenizer-model "$DIR/data/tokenizer.model" --log-interval 25 "$@"
}

section "pretraining, $BASE_STEPS steps"
train --data-path "$DIR/data/text_text_document" --train-iters "$BASE_STEPS" --save "$DIR/base"

section "fine-tuning on the dialogues, $STEPS steps, measured on 40 of the problems on the way"
train --sft --data-path "$DIR/data/problems_text_document" --train-iters "$STEPS" \
    --load "$DIR/base" --finetune --save "$DIR/tuned" \
    --eval-tasks gsm8k --eval-tasks-interval 100 --eval-tasks-limit 40 --eval-tasks-num-fewshot 0 \
    --task-data "$DIR/evaluated"

evaluate() { # $1: run or exported folder, $2: its name
    python tools/evaluate.py --load "$1" --tasks gsm8k --task-data "$DIR/evaluated" --num-fewshot 0 \
        --max-new-tokens 64 --batch-size 32 --limit "$QUESTIONS" --output "$DIR/evaluated/$2"
}

section "evaluation on $QUESTIONS held-out problems: before fine-tuning, and after"
evaluate "$DIR/base" base
evaluate "$DIR/tuned" tuned

section "export for transformers"
python tools/convert_checkpoint.py --load "$DIR/tuned" --save "$DIR/exported" --to hf --with-code
evaluate "$DIR/exported" exported

section "two problems: asked here, and in transformers"
python tools/generate.py --load "$DIR/tuned" --prompt "${ASKED[0]}<sep>" --prompt "${ASKED[1]}<sep>" \
    --max-new-tokens 64 --stop '<sep>'
python examples/ask_in_transformers.py --model "$DIR/exported" --question "${ASKED[0]}" --question "${ASKED[1]}"

section "done"
echo "model card:    $DIR/exported/README.md"
echo "results:       $DIR/evaluated/tuned/results.json"
echo "loss, log:     $DIR/tuned/loss.png, $DIR/tuned/log.txt"
