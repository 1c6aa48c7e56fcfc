"""One page of HTML about one run or several, complete in itself, and its pictures as PNGs beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from megatron_yuan.errors import ConfigError
from megatron_yuan.report.curves import Floats
from megatron_yuan.report.load_slider import load_slider
from megatron_yuan.report.named_run import NamedRun
from megatron_yuan.report.page_assets import SCRIPT, STYLE
from megatron_yuan.report.panels import Panel, panels
from megatron_yuan.report.plots import save_figure
from megatron_yuan.report.series import layers_of, losses_of, number_or_nan, values_of

NARROW = ("learning-rate", "gradient-norm", "throughput", "mfu")  # two panels a row
WIDE_INCHES = 9.5  # a figure of more than this would be illegible at half the page's width
SLIDER_NOTE = (
    "Move the slider through the run; each cell is an expert's load over the mean of its layer, summed over the steps "
    "named above the heatmap: 1.0 = balanced."
)


def write_page(runs: Sequence[NamedRun], path: Path) -> list[Path]:
    """Write `path` and its PNGs (PATH without .html, then .PANEL.png); returns all files, the page first.

    Raises ConfigError where they cannot be written.
    """
    pictures: list[Path] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [_section("runs", "Runs", "Figures of the last step, unless they say otherwise.", _table(runs))]
        narrow: list[str] = []
        for panel in panels():
            body = _pictures(panel, runs, path, pictures)
            section = _section(panel.key, panel.title, panel.note, body)
            if panel.key in NARROW:
                narrow.append(section)
                continue
            if narrow:
                parts.append(f'<div class="pair">{"".join(narrow)}</div>')
                narrow = []
            parts.append(section)
            if panel.key == "expert-load":
                slider = load_slider(runs) or '<p class="missing">no expert load was counted</p>'
                parts.append(_section("expert-load-slider", "Expert load at any time", SLIDER_NOTE, slider))
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(_html(runs, parts), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"output is {path}, which cannot be written ({error.strerror or error}): name another with --output."
        ) from None
    return [path, *pictures]


def _html(runs: Sequence[NamedRun], parts: Sequence[str]) -> str:
    names = ", ".join(run.name for run in runs)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>Training: {escape(names)}</title><style>{STYLE}</style></head>\n"
        f'<body class="{"several" if len(runs) > 1 else "one"}">'
        f"<h1>Training: loss, speed and expert load of {escape(names)}</h1>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def _section(key: str, title: str, note: str, body: str) -> str:
    return (
        f'<section id="{key}" data-panel="{key}"><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f"{body}</section>"
    )


def _pictures(panel: Panel, runs: Sequence[NamedRun], page: Path, written: list[Path]) -> str:
    """The panel's figures, saved and embedded."""
    parts = []
    number = 0
    for picture in panel.draw(runs):
        number += bool(picture.caption)
        caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption and len(runs) > 1 else ""
        if picture.figure is None:
            parts.append(f'<figure>{caption}<p class="missing">not in this run\'s metrics</p></figure>')
            continue
        of_run = f".{number}" if picture.caption and len(runs) > 1 else ""
        path = save_figure(picture.figure, page.with_name(f"{page.stem}.{panel.key}{of_run}.png"))
        written.append(path)
        encoded = base64.b64encode(path.read_bytes()).decode()
        alt = escape(f"{panel.title} {picture.caption}".strip())
        wide = ' class="wide"' if picture.figure.get_figwidth() > WIDE_INCHES else ""
        parts.append(f'<figure{wide}>{caption}<img alt="{alt}" src="data:image/png;base64,{encoded}"></figure>')
    together = parts.pop(0) if not number or len(parts) > number else ""
    return f'{together}<div class="row">{"".join(parts)}</div>'


COLUMNS = (
    "run",
    "steps",
    "tokens in all",
    "loss",
    "validation loss",
    "tokens / s, median",
    "MFU, median",
    "lowest entropy",
    "dead experts",
    "lines skipped",
)


def _table(runs: Sequence[NamedRun]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _row(run))}</tr>" for run in runs)
    skipped = "".join(
        f'<p class="skipped">{escape(run.name)}: {run.metrics.skipped} line(s) of metrics.jsonl skipped that are not '
        "whole records (a crash, or a run still writing, can leave one).</p>"
        for run in runs
        if run.metrics.skipped
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{skipped}'


def _row(run: NamedRun) -> list[str]:
    steps = run.metrics.steps
    last = steps[-1]
    tokens = float(np.nansum(values_of(steps, "tokens")))
    evaluations = run.metrics.evaluations[-1:]
    validation = ", ".join(f"{name} {loss:.4f}" for each in evaluations for name, loss in losses_of(each).items())
    entropies, dead = layers_of(run.metrics, "load_entropy"), layers_of(run.metrics, "dead_experts")
    worst = "" if entropies is None or np.isnan(entropies[1][-1]).all() else int(np.nanargmin(entropies[1][-1]))
    return [
        run.name,
        f"{last['step']:,}",
        f"{tokens:,.0f}",
        f"{number_or_nan(last.get('loss')):.4f}",
        validation or "none",
        f"{_median(values_of(steps, 'tokens_per_second')):,.0f}",
        f"{100 * _median(values_of(steps, 'mfu')):.1f}%",
        f"{entropies[1][-1][worst]:.3f} (layer {worst})" if entropies is not None and worst != "" else "not counted",
        f"{dead[1][-1].sum():.0f}" if dead is not None else "not counted",
        str(run.metrics.skipped),
    ]


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else np.nan
