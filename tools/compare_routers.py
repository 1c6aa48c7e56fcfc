"""Compare routers, with and without shared experts, at several numbers of experts, over several seeds.

    python tools/compare_routers.py --routers attention,softmax,softmax+2shared,noisy-top-k --experts 8 --seeds 3 \\
        --output runs/routers --jobs 2 [any flag of pretrain_yuan_moe.py: the base of every cell]

Every cell (router x experts x seed) is a training run of the same data order, tokens, initial shared weights and, to
0.1%, parameters. A router may have +Nshared, +aux, +globalaux or +bias behind its name. Broken off, the same command
goes on; further ones add cells to the same folder. Writes OUTPUT/table.md, results.json, losses.png and cells/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from megatron_yuan.config.load import parse
from megatron_yuan.config.schema import Config
from megatron_yuan.config.validate import validate, validate_run
from megatron_yuan.errors import ConfigError, run_command_line
from megatron_yuan.log import console
from megatron_yuan.study.arrangement import parse_arrangement, plan_cells
from megatron_yuan.study.equality import check_equal_parameters
from megatron_yuan.study.running import CellRun, found_cells, open_cells, run_cells

ENTRY = Path(__file__).resolve().parents[1] / "pretrain_yuan_moe.py"


def main() -> None:
    """Plan, check, run, report."""
    arguments, flags = read_arguments()
    base = parse(flags).config
    validate_run(base)
    study = Path(arguments.output)
    if study.exists() and not study.is_dir():
        raise ConfigError(f"output is {study}, which is a file; name a folder, new or of this study.")
    arrangements = [parse_arrangement(name) for name in arguments.routers.split(",")]
    cells = plan_cells(
        arrangements, [_count(each, "experts") for each in arguments.experts.split(",")], arguments.seeds, base
    )
    check_equal_parameters([*cells, *(run.cell for run in found_cells(study))], base)
    check_measurable(base)
    runs = open_cells(cells, base, study)
    for run in runs:
        validate(run.config)
    if arguments.time_steps:
        time_in_turn(runs, study)
    else:
        train(runs, arguments.jobs)
    report(runs, study)


def read_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our own flags, and those of the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed is the training program's, not short for --seeds
    )
    parser.add_argument("--routers", required=True, help="routers to compare, by commas; the first is the reference")
    parser.add_argument("--experts", default="8", help="numbers of experts, by commas")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, from --seed on")
    parser.add_argument("--output", required=True, help="folder of the study")
    parser.add_argument("--jobs", type=int, default=1, help="cells trained at the same time; they share the cores")
    parser.add_argument("--time-steps", action="store_true", help="train nothing: time a step of each in turn, alone")
    arguments, flags = parser.parse_known_args()
    for name in ("seeds", "jobs"):
        _count(str(getattr(arguments, name)), name)
    return arguments, flags


def check_measurable(base: Config) -> None:
    """ConfigError, before a night's training, where at its end there would be no held-out loss."""
    from megatron_yuan.data.datasets import build_validation_samples, open_sources

    if base.training.exit_interval is not None:
        raise ConfigError("exit-interval would end cells before they are done; drop it.")
    sources = open_sources(base.data, base.model.vocab_size)
    if not build_validation_samples(sources, base.data, base.training.seed):
        raise ConfigError(
            f"split {base.data.split} leaves no set a validation part that fills a sample, but what is compared is the "
            "held-out loss;\ngive --split such as 95,5,0, or --valid-data-path."
        )


def train(runs: Sequence[CellRun], jobs: int) -> None:
    """Run what is not done, with a bar on a terminal and a line a cell elsewhere."""
    total = sum(run.config.training.train_iters for run in runs)
    announced: set[str] = set()
    with Progress(console=console(), disable=not console().is_terminal) as bar:
        task = bar.add_task("steps", total=total)

        def watch(running: Sequence[CellRun], waiting: int) -> None:
            for run in running:
                if run.cell.name not in announced:
                    announced.add(run.cell.name)
                    console().print(f"{run.cell.name}: training; {waiting} cells wait")
            bar.update(task, completed=sum(run.steps_done for run in runs))

        run_cells(runs, ENTRY, jobs, watch)


def time_in_turn(runs: Sequence[CellRun], study: Path) -> None:
    """Milliseconds of a training step of each arrangement, measured one after another in each of several rounds."""
    from megatron_yuan.benchmark.training import steps_in_turn
    from megatron_yuan.study.findings import row_name

    configs = {row_name(run.cell.arrangement.name, run.cell.experts): run.config for run in runs}
    seconds = steps_in_turn(configs, rounds=9)
    study.mkdir(parents=True, exist_ok=True)
    path = study / "milliseconds.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {name: 1000 * each for name, each in seconds.items()}, indent=1) + "\n")


def report(runs: Sequence[CellRun], study: Path) -> None:
    """Table, picture and JSON of all cells of the study that are done, `runs` first."""
    from megatron_yuan.study.findings import find
    from megatron_yuan.study.picture import draw_study
    from megatron_yuan.study.tables import as_json, tables

    timed = study / "milliseconds.json"
    names = {run.cell.name for run in runs}
    every = [*runs, *(run for run in found_cells(study) if run.cell.name not in names)]
    findings = find(every, json.loads(timed.read_text()) if timed.exists() else None)
    (study / "table.md").write_text(tables(findings))
    (study / "results.json").write_text(as_json(findings))
    draw_study(findings, study / "losses.png")
    print((study / "table.md").read_text())
    print(f"{study}/table.md, results.json, losses.png")


def _count(text: str, name: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit()) or int(text) < 1:
        raise ConfigError(f"{name} is {text!r}, but must be a whole number, at least 1.")
    return int(text)


if __name__ == "__main__":
    run_command_line(main)
