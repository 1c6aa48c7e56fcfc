# shellcheck shell=bash
# Sourced by the launch scripts: checks of what they are given, before any process starts.

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
