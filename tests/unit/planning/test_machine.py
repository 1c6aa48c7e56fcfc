from __future__ import annotations

from pathlib import Path

import pytest

from megatron_yuan.errors import ConfigError
from megatron_yuan.planning.machine import FIGURES, known_machines, read_machine


@pytest.mark.parametrize("name", known_machines())
def test_every_figure_of_a_shipped_gpu_says_where_it_comes_from(name: str) -> None:
    for figure, given in read_machine(name).figures():
        assert given.source and not given.source.startswith("given in"), figure


def written(folder: Path, **changes: str | None) -> str:
    figures = {name: str(figure.value) for name, figure in read_machine("h100-80gb").figures()} | changes
    path = folder / "mine.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in figures.items() if value is not None))
    return str(path)


def test_a_bare_number_comes_from_its_file(tmp_path: Path) -> None:
    machine = read_machine(written(tmp_path, memory_gb="96"))
    assert (machine.memory_gb.value, machine.memory_gb.source) == (96, "given in mine")


@pytest.mark.parametrize("name", FIGURES)
def test_a_missing_figure_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"lacks {name};"):
        read_machine(written(tmp_path, **{name: None}))


def test_a_misspelt_figure_is_named_and_corrected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown figure 'latncy_us'; perhaps you meant latency_us"):
        read_machine(written(tmp_path, latency_us=None, latncy_us="20"))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("value", ["-1", "1e30", ".nan", ".inf", "fast", "true", "[1]", "", "{source: me}"])
def test_an_absurd_figure_is_refused_in_a_sentence(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        read_machine(written(tmp_path, **{name: value}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no figures"), ("- 1\n", "no figures"), ("memory_gb: 80\nmemory_gb: 90\n", "twice"), ("a: [", "not YAML")],
)
def test_what_is_no_table_of_figures_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "gpu.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_machine(str(tmp_path / "gpu.yaml"))


def test_a_misspelt_figure_and_a_misspelt_gpu_are_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="perhaps you meant memory_gb_per_s"):
        read_machine(written(tmp_path, memory_gb_per_sec="3000"))
    with pytest.raises(ConfigError, match="perhaps you meant h100-80gb"):
        read_machine("h100-80")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_machine(str(tmp_path / "none.yaml"))


def test_a_reserve_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leaves nothing"):
        read_machine(written(tmp_path, reserve_gb="90"))
