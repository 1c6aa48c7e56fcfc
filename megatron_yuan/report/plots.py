"""The run's pictures, from its metrics.jsonl alone, so that they can be drawn again at any time.

matplotlib is imported where a picture is drawn, never at the start of a run, and figures are made without pyplot: no
display is needed. Colours are Okabe and Ito's, and the viridis family: the colour-blind can tell them apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_yuan.log import logger
from megatron_yuan.report.expert_plot import expert_load_figure
from megatron_yuan.report.loss_plot import loss_figure
from megatron_yuan.report.metrics import read_metrics
from megatron_yuan.report.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_run(folder: RunFolder) -> list[Path]:
    """Draw loss.png, and expert_load.png where loads were counted; returns the pictures made.

    A run without a finished step has no picture. Raises DataError where there is no metrics.jsonl.
    """
    metrics = read_metrics(folder.metrics)
    drawn: list[Path] = []
    if metrics.steps:
        drawn.append(save_figure(loss_figure(metrics), folder.loss_plot))
    if any(record.get("expert_load") for record in metrics.steps):
        drawn.append(save_figure(expert_load_figure(metrics), folder.expert_load_plot))
    if not drawn:
        logger.warning("%s tells of no finished step: there is nothing to draw.", folder.metrics)
    return drawn


def save_figure(figure: Figure, path: Path) -> Path:
    """Write `figure` as a PNG in one step: a reader sees the old picture or the new."""
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)
    return path
