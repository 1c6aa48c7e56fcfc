#!/usr/bin/env bash
# Pretrain Yuan 2.0-M32 on several machines: 8 pipeline stages x as many replicas as there are machines of 8 GPUs.
# Run the same line on every machine; torchrun's c10d rendezvous numbers them.
#
#   NODES=4 RENDEZVOUS=node0:29400 DATA_PATH="1 /data/yuan_text_document" TOKENIZER_MODEL=/data/tokenizer.model \
#       bash examples/pretrain_multi_node.sh [flags]
#
# Neighbouring ranks are replicas of one stage (megatron-core's order), so that gradients are averaged inside a machine as far
# as possible, and what crosses between machines is the hidden states between stages. Data and the run folder must be on
# storage that all machines share. With --config PLAN.yaml of tools/plan_cluster.py among the flags the stages are the plan's;
# one that uses part of a machine starts with another GPUS there: 52 processes are GPUS=8 on six machines and GPUS=4 on one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/launch.sh
source examples/launch.sh

PRESET=${PRESET:-yuan2-m32}
NODES=${NODES:-}                     # number of machines
GPUS=${GPUS:-8}                      # processes on each machine
STAGES=${STAGES:-}                   # pipeline stages, of which NODES x GPUS must be a multiple; unset: 8, or those of --config
RENDEZVOUS=${RENDEZVOUS:-}           # host:port of one of the machines, reachable from all
RUN_ID=${RUN_ID:-$PRESET}            # the same on all machines of one run, different between runs
JOIN_SECONDS=${JOIN_SECONDS:-600}    # how long to wait for the other machines before giving up, in words
MAX_RESTARTS=${MAX_RESTARTS:-0}      # restart all processes from the newest checkpoint this many times after a failure
DATA_PATH=${DATA_PATH:-}             # prefixes of .bin/.idx, optionally weighted
TOKENIZER_MODEL=${TOKENIZER_MODEL:-} # the SentencePiece model that made the data
SAVE=${SAVE:-runs/$PRESET}           # the run folder; the same command resumes from it
LOGS=${LOGS:-}                       # a folder for what each process says, beside the console; empty: the console alone

[[ "$NODES" =~ ^[1-9][0-9]*$ ]] || fail "NODES='$NODES' must be the number of machines, such as NODES=4."
[[ "$GPUS" =~ ^[1-9][0-9]*$ ]] || fail "GPUS='$GPUS' must be the number of processes on each machine, such as GPUS=8."
[[ -n "$STAGES" || " $* " == *" --config"[=\ ]* ]] || STAGES=8
[[ -z "$STAGES" || "$STAGES" =~ ^[1-9][0-9]*$ ]] || fail "STAGES='$STAGES' must be the number of pipeline stages, such as STAGES=8."
[[ "$RENDEZVOUS" == *:* ]] || fail "RENDEZVOUS='$RENDEZVOUS' must be host:port of one of the machines, such as node0:29400."
[[ -z "$STAGES" ]] || ((NODES * GPUS % STAGES == 0)) || fail "NODES x GPUS = $((NODES * GPUS)) processes are no multiple of STAGES=$STAGES."
read_data_path "$DATA_PATH"
need_tokenizer "$TOKENIZER_MODEL"
stages=()
[[ -z "$STAGES" ]] || stages=(--pipeline-model-parallel-size "$STAGES")
logs=()
[[ -z "$LOGS" ]] || logs=(--log-dir "$LOGS/$(hostname -s)" --tee 3)

export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

exec python tools/launch.py --signals-to-handle "$SIGNALS" --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "$MAX_RESTARTS" \
    --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$RUN_ID" \
    --rdzv-conf join_timeout="$JOIN_SECONDS" "${logs[@]}" \
    pretrain_yuan_moe.py \
    --preset "$PRESET" \
    "${stages[@]}" \
    --data-path "${BLEND[@]}" --tokenizer-model "$TOKENIZER_MODEL" \
    --save "$SAVE" \
    "$@"
