# shellcheck shell=bash
# Sourced by the launch scripts: checks of what they are given, before any process starts.

# What torchrun passes on to the training processes: each of them ends a run in good order, with a checkpoint.
# shellcheck disable=SC2034
SIGNALS=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
# Seconds that torchrun lets them finish their step and save before it kills them (torch 2.10 always gives 30).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

read_data_path() { # split "$1" into BLEND, and check that every prefix in it has its two files
    local part suffix
    [[ -n "$1" ]] ||
        fail "DATA_PATH is not set: give the prefixes that tools/preprocess_data.py wrote, such as" \
            "DATA_PATH='0.7 /data/zh_text_document 0.3 /data/en_text_document'."
    read -ra BLEND <<<"$1"
    for part in "${BLEND[@]}"; do
        [[ "$part" =~ ^[0-9.]+$ ]] && continue # a weight
        for suffix in bin idx; do
            [[ -f "$part.$suffix" ]] ||
                fail "DATA_PATH names $part, but there is no file $part.$suffix: give the prefix without .bin," \
                    "as written by tools/preprocess_data.py."
        done
    done
}

need_tokenizer() { # check that "$1" is a file
    [[ -f "$1" ]] || fail "TOKENIZER_MODEL='$1' is no file: give the SentencePiece model that made the data."
}

session_state() { # of the run folder "$1", by its status.json: done, requeue, failed; running: killed; none: it never began
    [[ -f "$1/status.json" ]] || { echo none && return; }
    sed -n 's/^{"state": "\([a-z]*\)".*/\1/p' "$1/status.json"
}

no_step() { # whether the last session of the run folder "$1" ended before its training began
    [[ ! -f "$1/status.json" ]] || grep -q '"reason": "starting"' "$1/status.json"
}
