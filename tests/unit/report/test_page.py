from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_yuan.config.schema import LoggingConfig
from megatron_yuan.errors import ConfigError, DataError
from megatron_yuan.report.named_run import open_runs, short_names
from megatron_yuan.report.page import write_page
from megatron_yuan.report.panels import MOST_FRAMES, panels
from megatron_yuan.report.result import EvalResult
from megatron_yuan.report.run_folder import open_run_folder
from megatron_yuan.report.series import tables_of
from megatron_yuan.report.telemetry import Telemetry
from tests.browser import BROWSER, browsed

TOOL = Path(__file__).resolve().parents[3] / "tools" / "plot_run.py"
KEYS = {panel.key for panel in panels()} | {"runs", "expert-load-slider"}


@pytest.fixture
def make_run(tmp_path, said, make_step, arithmetic) -> Callable[..., Path]:
    def make(name: str, steps: int = 4, layers: int = 2, experts: int = 4) -> Path:
        folder = open_run_folder(tmp_path / name, "")
        random = np.random.default_rng(0)
        with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=steps) as telemetry:
            for step in range(1, steps + 1):
                load = random.integers(0, 9, (layers, experts))
                pairs = np.minimum(load[:, :, None], load[:, None, :])
                routing = {"expert_load": load.tolist(), "coactivation": pairs.tolist()}
                routing |= {"top2_margin": [0.5] * layers, "balance_loss": [0.01] * layers}
                loss = math.nan if step == 2 else 5 / step
                telemetry.step(make_step(step, loss=loss, set_losses={"en": 2.0, "zh": 3.0}, **routing))
            telemetry.evaluation(EvalResult(steps, {"en": 2.0, "zh": 3.0}, 100))
        return folder.path

    return make


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made and not rendered, which takes most of the time."""

    def save(figure, path: Path) -> Path:
        path.write_bytes(b"PNG")
        return path

    monkeypatch.setattr("megatron_yuan.report.page.save_figure", save)


class Found(HTMLParser):
    """Panels by id, and everything that the page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.panels: list[str] = []
        self.images = 0
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if "data-panel" in known:
            assert known["id"] == known["data-panel"]
            self.panels.append(str(known["id"]))
        self.images += tag == "img"
        self.fetched += [value for name in ("src", "href") if (value := known.get(name)) and value[:5] != "data:"]


def drawn(tmp_path: Path, *folders: Path) -> tuple[str, list[Path]]:
    files = write_page(open_runs(folders), tmp_path / "out" / "page.html")
    return files[0].read_text(encoding="utf-8"), files[1:]


@pytest.mark.parametrize(("steps", "layers", "experts"), [(1, 1, 2), (40, 24, 32)])
def test_every_panel_is_there_at_any_shape(tmp_path, make_run, steps, layers, experts):
    folder = make_run("run", steps, layers, experts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page, pictures = drawn(tmp_path, folder)
    found = Found(page)
    assert set(found.panels) == KEYS
    assert len(found.panels) == len(KEYS)
    assert found.images == len(pictures) == len(KEYS) - 2
    assert "not in this run" not in page


def test_the_page_is_one_file_with_its_pictures_also_beside_it(tmp_path, make_run):
    page, pictures = drawn(tmp_path, make_run("run"))
    assert Found(page).fetched == []
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    for picture in pictures:
        assert picture.name.startswith("page.")
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 300
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_several_runs_have_a_picture_each_and_curves_together(tmp_path, make_run, unrendered):
    page, pictures = drawn(tmp_path, make_run("one"), make_run("two", steps=35, experts=8))
    names = {picture.name for picture in pictures}
    assert {"page.loss.png", "page.loss.1.png", "page.loss.2.png", "page.learning-rate.png"} <= names
    assert {"page.entropy.1.png", "page.entropy.2.png", "page.co-activation.2.png"} <= names
    assert "page.learning-rate.1.png" not in names
    assert set(Found(page).panels) == KEYS
    assert page.count("<figcaption>two</figcaption>") > 3


def test_metrics_of_an_earlier_version_are_drawn_as_far_as_they_go(tmp_path, make_run, unrendered):
    folder = make_run("run")
    path = folder / "metrics.jsonl"
    new = ("load_entropy", "dead_experts", "top2_margin", "balance_loss", "coactivation", "coactivation_steps")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k not in new}) + "\n" for line in lines))
    page, pictures = drawn(tmp_path, folder)
    assert set(Found(page).panels) == KEYS
    assert page.count("not in this run") == 3
    assert "page.entropy.png" in {picture.name for picture in pictures}, "it follows from the loads"


def test_a_run_without_counted_experts_is_drawn_as_far_as_it_goes(tmp_path, said, make_step, arithmetic, unrendered):
    folder = open_run_folder(tmp_path / "run", "")
    with Telemetry(LoggingConfig(), folder, arithmetic, total_steps=1) as telemetry:
        telemetry.step(make_step(1, expert_load=None))
    page, _ = drawn(tmp_path, folder.path)
    assert set(Found(page).panels) == KEYS
    assert "no expert load was counted" in page


def test_a_half_written_line_is_skipped_counted_and_said(tmp_path, make_run, said, unrendered):
    folder = make_run("run")
    said()
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + b'{"kind":"step","step":3,"lo\n' + b"".join(lines[3:]) + b'{"kind":"st')
    page, _ = drawn(tmp_path, folder)
    assert "2 line(s) skipped" in said()
    assert "run: 2 line(s) of metrics.jsonl skipped" in page


def test_fields_that_are_missing_or_damaged_are_gaps(tmp_path, make_run):
    folder = make_run("run")
    with (folder / "metrics.jsonl").open("a") as file:
        for fields in ({}, {"loss": "high", "expert_load": "x", "load_entropy": [1]}, {"expert_load": [[1], [2, 3]]}):
            file.write(json.dumps({"kind": "step", "step": 5, **fields}) + "\n")
    page, _ = drawn(tmp_path, folder)
    assert set(Found(page).panels) == KEYS


def test_a_name_cannot_break_the_page(tmp_path, make_run, unrendered):
    page, _ = drawn(tmp_path, make_run("a<b>&</script><i>"), make_run("b"))
    assert "<i>" not in page
    assert page.count("</script>") == 2


def test_names_are_as_long_as_needed(tmp_path):
    assert short_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert short_names([Path("x/run"), Path("y/run")]) == ["x/run", "y/run"]
    assert short_names([Path("runs/a"), Path("runs/a")]) == ["a (1)", "a (2)"]


def test_the_moments_of_a_long_run_are_few_and_hold_every_token(tmp_path, make_run):
    (run,) = open_runs([make_run("run", steps=130, layers=1)])
    tables = tables_of(run.metrics, "expert_load", MOST_FRAMES)
    assert len(tables) <= MOST_FRAMES
    assert (tables[0].first, tables[-1].last) == (1, 130)
    assert all(before.last + 1 == after.first for before, after in pairwise(tables))
    whole = sum(np.array(record["expert_load"]) for record in run.metrics.steps)
    np.testing.assert_array_equal(sum(table.sums for table in tables), whole)


def test_a_folder_without_metrics_or_without_a_step_is_refused(tmp_path, make_run):
    with pytest.raises(DataError, match=r"metrics\.jsonl does not exist: name a run folder"):
        open_runs([make_run("run"), tmp_path / "nothing"])
    open_run_folder(tmp_path / "empty", "")
    with pytest.raises(DataError, match="tells of no finished step"):
        open_runs([tmp_path / "empty"])


def test_an_output_that_cannot_be_written_is_refused(tmp_path, make_run):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output is .* cannot be written"):
        write_page(open_runs([make_run("run")]), tmp_path / "file" / "page.html")


def plot(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def test_the_command_line_draws_into_the_run_folder(tmp_path, make_run):
    folder = make_run("run")
    done = plot(folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}/run.html and {len(KEYS) - 2} pictures beside it\n"
    assert (folder / "run.loss.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere/metrics.jsonl does not exist"),
        (["nowhere", "--output", "x.png"], "output is x.png, but must be a page of HTML"),
    ],
)
def test_the_command_line_refuses_in_words(tmp_path, arguments, words):
    done = plot(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


ACT = """<script>
document.getElementById("load-step").value = 1;
document.getElementById("load-step").dispatchEvent(new Event("input"));
const place = new MouseEvent("mousemove");
Object.defineProperty(place, "offsetX", { value: 50 }); Object.defineProperty(place, "offsetY", { value: 2 });
document.querySelector("canvas.load").dispatchEvent(place);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome to open the page in")
def test_in_a_browser_the_page_has_no_error_and_every_panel_and_its_slider_moves(tmp_path, make_run):
    page, _ = drawn(tmp_path, make_run("one"), make_run("two", steps=35, layers=3, experts=8))
    path = tmp_path / "out" / "page.html"
    document, console = browsed(path, tmp_path / "profile")
    assert console == []
    assert set(Found(document).panels) == KEYS
    assert re.findall(r'class="steps">([^<]*)<', document) == ["step 4", "step 35"]

    path.write_text(page.replace("</body>", ACT + "</body>"), encoding="utf-8")
    document, console = browsed(path, tmp_path / "profile")
    assert console == []
    assert re.findall(r'class="steps">([^<]*)<', document) == ["step 1", "step 1"]
    assert re.search(r"one: layer 0, expert 0: \d\.\d\d x the mean, \d+\.\d\d% of the layer's load", document)

    path.write_text(page.replace("</body>", "<script>throw new Error('planted');</script></body>"), encoding="utf-8")
    assert "planted" in "".join(browsed(path, tmp_path / "profile")[1]), "an error would have been seen"
