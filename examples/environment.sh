# shellcheck shell=bash
# Sourced by examples/quickstart.sh, tests/run.sh and .ci/run: one place that finds a Python, makes .venv and installs.
# Nothing here runs on its own; each function says in words what it could not do.

fail() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

section() { # a heading with the time since the script began
    printf '\n==== [%dm%02ds] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

supported_python() { # is $1 a Python that the project runs on?
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

find_python() { # print the interpreter to build an environment with: $PYTHON if set, else the first that fits
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if supported_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if [[ -n "${PYTHON:-}" ]]; then
        fail "PYTHON=$PYTHON is not a Python from 3.10 to 3.13: set PYTHON to one that is, or unset it."
    fi
    fail "no Python from 3.10 to 3.13 found (python3 is $(python3 --version 2>&1 || true)):" \
        "install one (Debian, Ubuntu: apt install python3 python3-venv) or set PYTHON=/path/to/python3.12."
}

make_environment() { # a virtual environment in folder $1, unless a working one is there
    local folder=$1 python
    if "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        supported_python "$folder/bin/python" ||
            fail "$folder has $("$folder/bin/python" --version), the project runs on 3.10 to 3.13: remove $folder and run this again."
        return
    fi
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$python cannot make virtual environments because its venv package is missing:" \
            "apt install python3-venv (with sudo where you are not root), then run this again."
    echo "making a virtual environment in $folder with $("$python" --version)"
    "$python" -m venv --clear "$folder" ||
        fail "could not make the virtual environment $folder: see the lines above (Debian, Ubuntu: apt install python3-venv)."
}

activate_environment() { # the active virtual environment, else .venv in the current folder, made if missing
    if [[ -n "${VIRTUAL_ENV:-}" ]]; then
        supported_python python ||
            fail "the active environment $VIRTUAL_ENV has $(python --version 2>&1), the project runs on Python 3.10 to 3.13."
        echo "using the active environment $VIRTUAL_ENV"
        return
    fi
    make_environment .venv
    # shellcheck disable=SC1091
    source .venv/bin/activate
    echo "using $VIRTUAL_ENV"
}

install_torch() { # only where torch is missing; says beforehand when that may be a large download
    python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' && return
    command -v nvidia-smi >/dev/null && return # a machine with a GPU gets the default build with the project
    cat <<'WORDS'
This machine shows no NVIDIA GPU (no nvidia-smi). The default torch wheel for Linux brings gigabytes of CUDA libraries
that are of no use here. pip takes a CPU build where one is offered to it; to choose one yourself, stop now with Ctrl-C,
pick 'CPU' under 'Get Started' on pytorch.org, run the command shown there inside this environment, then run this again.
WORDS
    python -m pip install --disable-pip-version-check 'torch==2.13.0'
}

install_project() { # install this clone, editable, with the extras "$1"; nothing to do where that was done before
    local extras=$1 state stamp
    state="$PWD $extras $(python -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')"
    stamp="$(python -c 'import sys; print(sys.prefix)')/.megatron_yuan_installed"
    if [[ -f "$stamp" ]] && grep -qxF "$state" "$stamp" && (cd / && python -c 'import megatron_yuan') 2>/dev/null; then
        echo "already installed"
        return
    fi
    install_torch
    python -m pip install --disable-pip-version-check --quiet --editable ".$extras"
    echo "$state" >>"$stamp"
}
