"""Draw runs: one page of HTML, complete in itself, and its pictures as PNGs beside it.

    python tools/plot_run.py runs/mine
    python tools/plot_run.py runs/attention runs/softmax --output compared.html

Loss, learning rate, gradient norm, throughput, and the experts' load of each layer over time; several runs side by
side. Reads metrics.jsonl alone, also while a run goes on, and of earlier versions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_yuan import log
from megatron_yuan.errors import ConfigError, run_command_line
from megatron_yuan.report.named_run import open_runs
from megatron_yuan.report.page import write_page


def main() -> None:
    """Read, draw, and say where the page is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders: what --save named")
    parser.add_argument("--output", help="page to write (RUN/run.html; of several runs, runs.html here)")
    arguments = parser.parse_args()
    page = Path(arguments.output or (Path(arguments.runs[0]) / "run.html" if len(arguments.runs) == 1 else "runs.html"))
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"output is {page}, but must be a page of HTML: give a name that ends in .html.")
    log.configure()
    files = write_page(open_runs([Path(run) for run in arguments.runs]), page)
    print(f"{files[0]} and {len(files) - 1} pictures beside it")


if __name__ == "__main__":
    run_command_line(main)
