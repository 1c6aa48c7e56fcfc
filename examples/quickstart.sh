#!/usr/bin/env bash
# From nothing to a small bilingual Yuan MoE that answers questions: bash examples/quickstart.sh
#
# Makes .venv unless a virtual environment is active, installs the project, writes the sample corpus, trains a tokenizer,
# preprocesses, pretrains `--preset tiny` on two pipeline stages, stops and resumes half-way, generates, and scores questions
# that the training text does not contain. About ten minutes on two CPU cores after downloads. It can be run again:
# an earlier run is kept beside the new one.
#
#   QUICKSTART_DIR=runs/quickstart   where everything goes
#   QUICKSTART_STEPS=800             optimizer steps in all
#   QUICKSTART_DOCUMENTS=32000       training documents in each language
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/environment.sh
source examples/environment.sh

DIR=${QUICKSTART_DIR:-runs/quickstart}
STEPS=${QUICKSTART_STEPS:-800}
DOCUMENTS=${QUICKSTART_DOCUMENTS:-32000}
STAGES=2
VOCAB_SIZE=1536
[[ "$STEPS" =~ ^[1-9][0-9]*$ ]] || fail "QUICKSTART_STEPS=$STEPS must be a whole number, at least 2."

section "environment"
activate_environment
install_project ""

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > STAGES ? cores / STAGES : 1))}
mkdir -p "$DIR"
if [[ -e "$DIR/run" ]]; then
    kept="$DIR/run-before-$(date +%Y%m%d-%H%M%S)"
    mv "$DIR/run" "$kept"
    echo "the earlier run is kept as $kept"
fi

section "sample corpus: Chinese and English questions, stories and Python functions"
rm -rf "$DIR/corpus" "$DIR/data"
mkdir -p "$DIR/data"
python examples/sample_corpus.py --output-dir "$DIR/corpus" --documents "$DOCUMENTS"

section "tokenizer of $VOCAB_SIZE pieces"
python tools/train_tokenizer.py --input "$DIR/corpus/en.jsonl" "$DIR/corpus/zh.jsonl" \
    --vocab-size "$VOCAB_SIZE" --output "$DIR/data/tokenizer.model"

section "preprocessing"
for language in en zh; do
    python tools/preprocess_data.py --input "$DIR/corpus/$language.jsonl" --output-prefix "$DIR/data/$language" \
        --tokenizer-model "$DIR/data/tokenizer.model" --append-eod --workers 2
done

pretrain() { # the same command starts the run and, while it is unfinished, resumes it
    torchrun --standalone --local-addr localhost --nproc-per-node "$STAGES" pretrain_yuan_moe.py --preset tiny \
        --pipeline-model-parallel-size "$STAGES" \
        --data-path 0.5 "$DIR/data/en_text_document" 0.5 "$DIR/data/zh_text_document" \
        --tokenizer-model "$DIR/data/tokenizer.model" --vocab-size "$VOCAB_SIZE" \
        --train-iters "$STEPS" --log-interval 20 --save "$DIR/run" "$@"
}

section "pretraining on $STAGES pipeline stages: the first half of $STEPS steps"
pretrain --exit-interval $((STEPS / 2))

section "pretraining: resumed from the checkpoint, the second half"
pretrain

section "generation"
for prompt in "Tom has 3 apples and buys 4 more. How many now?<sep>" '把八十九写成数字。<sep>' "Lina lives in"; do
    python tools/generate.py --load "$DIR/run" --prompt "$prompt" --max-new-tokens 24
done

section "held-out questions: exact match"
python examples/score_heldout.py --load "$DIR/run" --questions "$DIR/corpus/heldout.jsonl"

section "done"
echo "loss:          $DIR/run/loss.png"
echo "expert load:   $DIR/run/expert_load.png"
echo "log, metrics:  $DIR/run/log.txt, $DIR/run/metrics.jsonl"
echo "ask it more:   python tools/generate.py --load $DIR/run --prompt 'Which number is larger, 27 or 72?<sep>'"
