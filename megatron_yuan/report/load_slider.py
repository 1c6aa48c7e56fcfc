"""The load heatmap that can be moved through time: its data, and the marks that the page's script fills."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from megatron_yuan.report.expert_figures import relative_load
from megatron_yuan.report.layer_grid import load_scale
from megatron_yuan.report.named_run import NamedRun
from megatron_yuan.report.panels import MOST_FRAMES
from megatron_yuan.report.series import Tables, tables_of

COLOUR_STEPS = 64


def load_slider(runs: Sequence[NamedRun]) -> str:
    """HTML: a heatmap for each run whose loads were counted, one slider for all, and their data."""
    counted = [(run, tables) for run in runs if (tables := tables_of(run.metrics, "expert_load", MOST_FRAMES))]
    if not counted:
        return ""
    highest = load_scale([each for _, tables in counted for each in tables])
    last = max(tables[-1].last for _, tables in counted)
    first = min(tables[0].last for _, tables in counted)
    data = {
        "highest": round(highest, 3),
        "colours": _cividis(),
        "runs": [{"name": run.name, "frames": [_frame(each) for each in tables]} for run, tables in counted],
    }
    heatmaps = "".join(
        f'<figure><figcaption>{escape(run.name)}: <span class="steps"></span></figcaption>'
        f'<canvas class="load" role="img" aria-label="expert load of {escape(run.name)}"></canvas></figure>'
        for run, _ in counted
    )
    return (
        f'<label>step <input type="range" id="load-step" min="{first}" max="{last}" value="{last}" step="1"></label>'
        f'<output id="load-cell">point at a cell for its figures</output>'
        f'<div class="scale"><span>0 (x: no token)</span><canvas id="load-scale"></canvas>'
        f"<span>{highest:.3g} x the mean; 1.0 = balanced</span></div>"
        f'<div class="row">{heatmaps}</div><script type="application/json" id="load-data">{_in_script(data)}</script>'
    )


def _frame(table: Tables) -> dict[str, Any]:
    relative_LE = np.nan_to_num(relative_load(table.sums))
    # Hundredths as whole numbers: half the size of the page. A load is not rounded to none.
    hundredths_LE = np.where(relative_LE > 0, np.maximum(1, np.rint(100 * relative_LE)), 0)
    return {"first": table.first, "last": table.last, "load": hundredths_LE.astype(int).tolist()}


def _cividis() -> list[str]:
    import matplotlib
    from matplotlib.colors import to_hex

    return [to_hex(matplotlib.colormaps["cividis"](i / (COLOUR_STEPS - 1))) for i in range(COLOUR_STEPS)]


def _in_script(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
