"""What is said before the model is built, of ranks drawn by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_yuan.config.presets import preset
from megatron_yuan.errors import ParallelError
from megatron_yuan.parallel.alike import first_difference, hash_of
from megatron_yuan.parallel.links import Link, in_words
from megatron_yuan.parallel.watch.stacks import Stacks
from megatron_yuan.training.preflight import Seen, _check_data, short_of_space, table

ONE = Seen("node-a", {"zh": "passport of 9 tokens, sha256 aa"}, 5 * 10**9, 1000.0, "CPU", {})


def test_data_that_differ_stop_the_run_with_ranks_and_hosts() -> None:
    other = replace(ONE, host="node-b", data={"zh": "passport of 9 tokens, sha256 bb"})
    with pytest.raises(
        ParallelError, match=r"data zh .*aa on ranks 0, 1 \(host node-a\); .*bb on rank 2 \(host node-b\)"
    ):
        _check_data([ONE, ONE, other])
    _check_data([ONE, ONE])


def test_the_table_has_a_row_a_host_and_warns_of_clocks_and_of_nccls_variables() -> None:
    late = replace(ONE, host="node-b", clock=1007.0, free=None, nccl={"NCCL_IB_HCA": "mlx5"})
    lines = table([ONE, ONE, late])
    assert "node-a" in lines[1] and "0-1" in lines[1] and "5.0" in lines[1]
    assert "node-b" in lines[2] and lines[2].endswith("-")
    assert "warning: the clock of node-b is +7.0 s beside rank 0's" in lines[3]
    assert (
        "warning: NCCL's variables differ: none set on ranks 0, 1 (host node-a); NCCL_IB_HCA=mlx5 on rank 2" in lines[4]
    )
    same = replace(ONE, nccl={"NCCL_DEBUG": "WARN"})
    assert table([same, same])[-1] == "NCCL: NCCL_DEBUG=WARN"


def test_the_first_setting_or_version_that_differs_is_named() -> None:
    base = {"torch": "2.13.0", "seed": "1"}
    assert first_difference([base, base], ["a", "a"]) is None
    told = first_difference([base, base | {"torch": "2.12.0"}], ["a", "b"])
    assert told is not None and "the version of torch: 2.13.0 on rank 0 (host a); 2.12.0 on rank 1 (host b)" in told
    told = first_difference([base, base | {"seed": "2"}], ["a", "b"])
    assert told is not None and told.startswith("ranks differ in seed: 1 on rank 0") and "same flags" in told
    assert hash_of(base) == hash_of(dict(reversed(base.items()))) != hash_of(base | {"seed": "2"})


def test_the_slowest_and_the_latest_link_are_named() -> None:
    links = [Link("stages", 0, 1, 1e-4, 2e9), Link("stages", 1, 2, 3e-4, 1e9), Link("stages", 2, 3, 1e-4, 2e9)]
    assert in_words(links) == [
        "links between stages: 2.00 GB/s, 100 us; slowest 1.00 GB/s (rank 1 to 2), latest 300 us (rank 1 to 2)"
    ]


def test_a_disk_that_a_checkpoint_does_not_fit_on_is_warned_of() -> None:
    told = short_of_space(preset("yuan2-m32"), 40 * 10**9)
    assert told is not None and "a checkpoint needs 559 GB" in told and "has 40 GB free" in told
    assert short_of_space(preset("yuan2-m32"), 600 * 10**9) is None
    assert short_of_space(preset("yuan2-m32"), None) is None  # nothing is saved


def test_stacks_of_what_another_start_would_meet_again_stay_off_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stacks").write_text("no folder, so that no file can be made in it")
    Stacks(tmp_path, 0).dump("a full disk", "Traceback", aloud=False)
    assert capsys.readouterr().err == ""
