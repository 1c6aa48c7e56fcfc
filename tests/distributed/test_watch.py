"""One rank of a job meets with something: all end, the culprit is named, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_yuan.errors import PeerError
from tests.processes import free_port

LIVENESS, HANG = 4, 3
LIMIT_SECONDS = 60
OFF = 0


@dataclass
class End:
    """How a job ended."""

    codes: list[int]
    said: list[str]
    folder: Path

    def stacks(self, rank: int) -> str:
        file = self.folder / "stacks" / f"rank_{rank:05d}.txt"
        return file.read_text() if file.exists() else ""


def start(command: list, **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(str(token) for token in command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def job(
    folder: Path,
    ranks: int,
    fault: str,
    culprit: int,
    liveness: float = LIVENESS,
    hang: float = OFF,
    patience: float = LIMIT_SECONDS,
    meanwhile: Callable[[list[int]], None] = lambda pids: None,
) -> End:
    """As plain processes: there is no launcher that would end the rest. `patience` is that of collectives."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": ranks}
    command = ["-m", "tests.distributed.watched", folder, fault, culprit, liveness, hang, patience]
    processes = [start(command, RANK=rank, LOCAL_RANK=rank, **world) for rank in range(ranks)]
    try:
        meanwhile([process.pid for process in processes])
        deadline = time.monotonic() + LIMIT_SECONDS
        said = [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[0] for process in processes]
        return End([process.returncode for process in processes], said, folder)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def says(text: str, *words: str) -> bool:
    return any(all(word in line for word in words) for line in text.splitlines())


def test_a_job_without_a_fault_ends_with_0_and_says_nothing(tmp_path):
    end = job(tmp_path, 2, "none", 0, LIVENESS, HANG)
    assert end.codes == [0, 0] and not any("rank" in text for text in end.said), end
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize(("ranks", "culprit"), [(2, 1), (3, 0)])
def test_a_frozen_rank_is_named_and_killed_and_the_others_end(tmp_path, ranks, culprit):
    end = job(tmp_path, ranks, "stop", culprit)
    survivors = [rank for rank in range(ranks) if rank != culprit]
    assert end.codes[culprit] == -9 and {end.codes[rank] for rank in survivors} == {PeerError.exit_code}, end
    speaker = end.said[survivors[0]]
    assert says(speaker, f"rank {culprit} (host ", "does not answer", "step 3, forward of microbatch 2"), speaker
    for rank in survivors:
        assert "in sum_over_replicas" in end.stacks(rank) and f"rank {culprit}" in end.stacks(rank)


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_stands_still_is_named_with_the_stacks_of_all(tmp_path, culprit):
    end = job(tmp_path, 2, "sleep", culprit, LIVENESS, HANG)
    assert end.codes == [PeerError.exit_code] * 2, end
    assert says(
        end.said[0], f"rank {culprit} (host ", "stands still", "step 3, forward of microbatch 2", "1 other waits"
    )
    assert "in train" in end.stacks(culprit) and "sum_over_replicas" not in end.stacks(culprit)
    assert "in sum_over_replicas" in end.stacks(1 - culprit)


def test_a_rank_whose_extension_never_lets_go_of_the_interpreter_is_named_and_gives_its_stack(tmp_path):
    end = job(tmp_path, 2, "hold the interpreter", 1)
    assert end.codes == [PeerError.exit_code, -9], end
    assert says(end.said[0], "rank 1 (host ", "does not answer", "step 3, forward of microbatch 2")
    assert "in <lambda>" in end.said[1]


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_killed_rank_is_named_where_the_others_met_only_a_closed_connection(tmp_path, culprit):
    end = job(tmp_path, 2, "kill", culprit)
    assert end.codes[culprit] == -9 and end.codes[1 - culprit] == PeerError.exit_code, end
    said = end.said[1 - culprit]
    assert says(said, "error: ", f"rank {culprit} (host ", "is dead", "step 3, forward of microbatch 2"), said
    assert "Traceback" not in said
    assert "sum_over_replicas" in end.stacks(1 - culprit)


def test_an_error_of_one_rank_keeps_its_traceback_there_and_is_named_elsewhere(tmp_path):
    end = job(tmp_path, 2, "bug", 1)
    assert end.codes == [PeerError.exit_code, 1], end
    assert "ZeroDivisionError" in end.said[1] and "Traceback" in end.said[1]
    assert says(end.said[0], "rank 1 (host ", "ended by an error", "forward of microbatch 2", "ZeroDivisionError")


def test_a_mistake_of_the_user_keeps_its_words_and_gives_all_ranks_its_exit_code(tmp_path):
    end = job(tmp_path, 2, "mistake", 1)
    assert end.codes == [2, 2], end  # another start would meet it again, whichever rank the launcher looks at
    assert end.said[1].splitlines()[-1] == "error: that cannot work"


def test_when_collectives_give_up_first_the_rank_they_waited_for_is_named(tmp_path):
    end = job(tmp_path, 2, "sleep", 1, patience=4)
    assert end.codes == [PeerError.exit_code] * 2, end
    assert says(end.said[0], "rank 1 (host ", "stands still", "step 3, forward of microbatch 2"), end


def test_a_job_that_is_suspended_as_a_whole_goes_on_when_it_is_resumed(tmp_path):
    def suspend(pids: list[int]) -> None:
        while not (tmp_path / "step_2").exists():
            time.sleep(0.05)
        for number, seconds in ((signal.SIGSTOP, LIVENESS + 2), (signal.SIGCONT, 0)):
            for pid in pids:
                os.kill(pid, number)
            time.sleep(seconds)

    end = job(tmp_path, 2, "linger", 0, hang=20, meanwhile=suspend)
    assert end.codes == [0, 0] and not any("rank" in text for text in end.said), end


def test_under_torchrun_a_frozen_rank_leaves_nothing_running(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()]
    run = start([*launcher, "-m", "tests.distributed.watched", tmp_path, "stop", 0, LIVENESS, OFF, LIMIT_SECONDS])
    try:
        said = run.communicate(timeout=LIMIT_SECONDS)[0]
    finally:
        run.kill()
    assert says(said, "rank 0 (host ", "does not answer", "step 3, forward of microbatch 2"), said
    commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    assert not [command for command in commands if str(tmp_path).encode() in command]
