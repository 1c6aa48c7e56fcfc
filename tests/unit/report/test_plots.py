from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from megatron_yuan.config.schema import LoggingConfig
from megatron_yuan.errors import DataError
from megatron_yuan.report.curves import MOST_POINTS, running_mean, thinned
from megatron_yuan.report.expert_plot import expert_load_figure, recent_load
from megatron_yuan.report.loss_plot import loss_figure
from megatron_yuan.report.metrics import Metrics, read_metrics
from megatron_yuan.report.plots import draw_run
from megatron_yuan.report.result import EvalResult
from megatron_yuan.report.run_folder import RunFolder, open_run_folder
from megatron_yuan.report.telemetry import Telemetry


def metrics_of(tables: list[list[list[int]]]) -> Metrics:
    return Metrics(
        steps=[
            {
                "step": i + 1,
                "loss": 3.0,
                "tokens": 100,
                "expert_load": table,
                "load_max_over_mean": [max(layer) * len(layer) / max(1, sum(layer)) for layer in table],
            }
            for i, table in enumerate(tables)
        ]
    )


@pytest.mark.parametrize(("steps", "layers", "experts"), [(1, 1, 2), (3, 4, 8), (40, 24, 32)])
def test_pictures_are_drawn_at_any_shape(tmp_path, said, make_step, arithmetic, steps, layers, experts):
    folder = open_run_folder(tmp_path, "")
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=steps) as telemetry:
        for step in range(1, steps + 1):
            load = [[(step * i + j) % 7 for j in range(experts)] for i in range(layers)]
            telemetry.step(make_step(step, loss=math.nan if step == 2 else 5 / step, expert_load=load))
        telemetry.evaluation(EvalResult(steps, {"en": 2.0, "zh": 3.0}, 100))
    assert draw_run(folder) == [folder.loss_plot, folder.expert_load_plot]
    for picture in (folder.loss_plot, folder.expert_load_plot):
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 400
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_without_counted_loads_has_a_loss_alone(tmp_path, said, make_step, arithmetic):
    folder = open_run_folder(tmp_path, "")
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=1) as telemetry:
        telemetry.step(make_step(1, expert_load=None))
    assert draw_run(folder) == [folder.loss_plot]


def test_a_run_without_a_step_is_said_to_have_nothing_to_draw(tmp_path, said):
    folder = open_run_folder(tmp_path, "")
    assert draw_run(folder) == []
    assert "nothing to draw" in said()


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        draw_run(RunFolder(tmp_path))


def test_the_heatmap_shows_recent_steps_alone():
    load_LE, first, last = recent_load(metrics_of([[[9, 0]]] * 30 + [[[1, 3]]] * 10))
    assert (first, last) == (31, 40)
    np.testing.assert_allclose(load_LE, [[0.5, 1.5]])


def test_the_heatmap_has_a_cell_for_each_expert_and_a_line_for_each_layer():
    figure = expert_load_figure(metrics_of([[[1, 2, 3], [3, 2, 1]]] * 4))
    heatmap, curves = figure.axes[:2]
    assert heatmap.get_images()[0].get_array().shape == (2, 3)
    assert {line.get_label() for line in curves.get_lines()} >= {"layer 0", "layer 1"}


def test_a_step_whose_loss_is_not_finite_is_marked():
    metrics = metrics_of([[[1, 1]]] * 5)
    metrics.steps[2]["loss"] = math.nan
    (axes,) = loss_figure(metrics).axes[:1]
    assert "loss not finite (1 step)" in axes.get_legend_handles_labels()[1]


def test_nothing_overlaps_the_legend():
    metrics = metrics_of([[[1, 1]]] * 50)
    metrics.evaluations.extend(
        {"step": step, "losses": {f"a_rather_long_name_{i}_text_document": 3.0 + i for i in range(7)}}
        for step in (10, 50)
    )
    figure = loss_figure(metrics)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 < figure.axes[0].get_tightbbox().y0 + 1
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.width


def test_the_running_mean_is_centred_and_leaves_nan_out():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    np.testing.assert_allclose(running_mean(values, 3), [1.5, 1.5, 3.0, 5.0, 5.0])
    np.testing.assert_allclose(running_mean(np.array([np.nan, np.nan]), 3), [np.nan, np.nan])


def test_long_runs_are_thinned_and_keep_their_last_step():
    places = thinned(100_001)
    assert len(places) <= MOST_POINTS
    assert places[-1] == 100_000


def test_a_run_starts_without_loading_matplotlib():
    code = "import sys, megatron_yuan.report.plots, megatron_yuan.report.telemetry; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_resumed_run_is_not_drawn_double(tmp_path, said, make_step, arithmetic):
    folder = open_run_folder(tmp_path, "")
    for start in (0, 3):
        with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=6, start_step=start) as telemetry:
            for step in range(start + 1, start + 4):
                telemetry.step(make_step(step))
    assert [r["step"] for r in read_metrics(folder.metrics).steps] == [1, 2, 3, 4, 5, 6]
