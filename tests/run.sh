#!/usr/bin/env bash
# The test command: bash tests/run.sh [arguments for pytest]
# Uses the active virtual environment, else makes .venv; formats, lints, import floors, types, then the tests on 2 processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=examples/environment.sh
source examples/environment.sh

section "environment"
activate_environment
install_project "[test,dev]"

section "format and lint"
ruff format --check .
ruff check .

section "import floors"
lint-imports

section "types"
# pyright is a node program that its Python package downloads on first use.
if timeout 180 pyright --version >/dev/null 2>&1; then
    pyright
else
    echo "skipped: pyright could not start (it needs node, or the network to fetch it)"
fi

section "tests"
# One thread a process: two test processes, and those that they start, share the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest -n 2 --dist worksteal "$@" # pytest fails where it finds no test at all

section "all passed"
