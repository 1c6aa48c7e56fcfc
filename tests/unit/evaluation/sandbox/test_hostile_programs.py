"""Programs that a model wrote are failed samples and no more, whatever they try."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from megatron_yuan.evaluation.sandbox import pool
from megatron_yuan.evaluation.sandbox.limits import Isolation, Limits, Verdict
from megatron_yuan.evaluation.sandbox.pool import HARMLESS
from tests.unit.evaluation.sandbox.hostile import HOSTILE

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's means of isolation")
LIMITS = Limits(seconds=2.0)
NEED_FILES = ("outside", "shell", "shared memory", "reads the tests")
NEED_NAMES = ("socket", "home", "mount", "read-only", "no limit counts")
PROCESSES = [
    name for name in HOSTILE if any(w in name for w in ("fork", "daemon", "thread", "kills", "loops", "clone"))
]


class Round(NamedTuple):
    verdicts: dict[str, Verdict]
    seconds: float
    outside: Path
    calls: int


def left_over(folder: Path) -> list[bytes]:
    """Processes whose home is a folder in `folder`."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdigit() and f"HOME={folder}".encode() in (each / "environ").read_bytes():
                found.append((each / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def tried(names: list[str], outside: Path, isolation: Isolation) -> Round:
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with socket.socket() as home:
        home.bind(("127.0.0.1", 0))
        home.listen()
        home.settimeout(0.1)
        port = str(home.getsockname()[1])
        started = time.monotonic()
        texts = [HOSTILE[name].replace("OUTSIDE", str(outside)).replace("PORT", port) for name in names]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(outside.parent))
            verdicts, _ = pool.run_all([HARMLESS._replace(program=text) for text in texts], LIMITS, isolation)
        seconds = time.monotonic() - started
        try:
            home.accept()[0].close()
            calls = 1
        except TimeoutError:
            calls = 0
    return Round(dict(zip(names, verdicts, strict=True)), seconds, outside, calls)


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    return pool.strictest()


@pytest.fixture
def everything(tmp_path: Path, isolation: Isolation) -> Round:
    return tried(list(HOSTILE), tmp_path / "outside", isolation)


def test_there_are_many() -> None:
    assert len(HOSTILE) >= 40


def test_each_fails_and_none_hangs_stays_or_reaches_out(everything: Round, isolation: Isolation) -> None:
    needs = {NEED_FILES: isolation.landlock, NEED_NAMES: isolation.seccomp}
    beyond = [word for words, had in needs.items() if not had for word in words]
    judged = {name: each for name, each in everything.verdicts.items() if not any(word in name for word in beyond)}
    assert {name: each for name, each in judged.items() if each.passed or "isolation" in each.reason} == {}
    workers = max(1, (os.cpu_count() or 2) // 2)
    assert everything.seconds < len(HOSTILE) * (LIMITS.seconds + 3) / workers
    assert left_over(everything.outside.parent) == []
    if isolation.landlock or isolation.namespaces:
        assert [each.name for each in everything.outside.iterdir()] == ["kept"]
        assert (everything.outside / "kept").read_text() == "kept"
        assert (everything.outside / "kept").stat().st_mode & 0o777
        assert not Path("/dev/shm/MARK").exists()
    if isolation.seccomp or isolation.namespaces:
        assert everything.calls == 0
    # A report that holds the reasons can be written, and their folders are gone.
    assert all(each.reason.encode() for each in everything.verdicts.values())
    assert list(everything.outside.parent.iterdir()) == [everything.outside]
    # The next program finds everything as it was.
    assert pool.run(HARMLESS, LIMITS, isolation) == Verdict(True, "passed")


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["namespaces", "seccomp"])
def test_one_layer_is_enough_against_processes(layer: str, isolation: Isolation, tmp_path: Path) -> None:
    if not getattr(isolation, layer):
        pytest.skip(f"no {layer} here")
    alone = Isolation(layer == "namespaces", isolation.user, False, layer == "seccomp")
    # Of root, whom no limit counts, namespaces alone end a bomb only when its time is over: thousands of processes.
    counted = alone.seccomp or alone.user or os.getuid() != 0
    names = [name for name in PROCESSES if counted or "without end" not in name]
    found = tried(names, tmp_path / "outside", alone)
    assert not [name for name, verdict in found.verdicts.items() if verdict.passed]
    assert left_over(tmp_path) == []


def test_where_there_are_no_namespaces_no_folder_is_too_deep_and_no_signal_leaves(tmp_path: Path) -> None:
    alone = Isolation(False, False, False, True)
    if not pool.run(HARMLESS, LIMITS, alone).passed:
        pytest.skip("no seccomp here")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with subprocess.Popen(["sleep", "60"]) as neighbour:
        signal_it = HOSTILE["has a pipe signal its parent"].replace("os.getppid()", str(neighbour.pid))
        link = HOSTILE["a link in the place of its folder"].replace("OUTSIDE", str(outside))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(tmp_path))
            for program in (signal_it, link, HOSTILE["folders deeper than recursion"]):
                assert not pool.run(HARMLESS._replace(program=program), LIMITS, alone).passed
        assert neighbour.poll() is None
        neighbour.kill()
    assert [each.name for each in tmp_path.rglob("*")] == ["outside", "kept"]


def test_values_that_are_plain_come_back_as_they_are(isolation: Isolation) -> None:
    values = "[1, -2.5, 'a\\u0101', None, True, (1, [2]), {1: 'x', (1, 2): {3}}, {1, 2}, b'x', 1e300, -0.0, 10**500]"
    echo = HARMLESS._replace(
        program="def double(x, times=1):\n    return x\n",
        test=f"def check(c):\n    v = {values}\n    assert c(v) == v\n"
        "    assert [type(x) for x in c(v)] == [type(x) for x in v]\n"
        "    assert c(float('inf')) == float('inf') and c(x=3, times=2) == 3 and c(2.0) is not None\n",
    )
    assert pool.run(echo, LIMITS, isolation) == Verdict(True, "passed")


def test_classes_of_a_program_are_found_by_their_modules_name(isolation: Isolation) -> None:
    text = (
        "import pickle\nfrom dataclasses import dataclass\nfrom typing import get_type_hints\n"
        "@dataclass\nclass Pair:\n    first: 'int'\n    second: 'Pair | None' = None\n"
        "def double(x):\n    assert get_type_hints(Pair)\n    return 2 * pickle.loads(pickle.dumps(Pair(x))).first\n"
    )
    assert pool.run(HARMLESS._replace(program=text), LIMITS, isolation) == Verdict(True, "passed")


def test_the_reason_says_what_went_wrong(isolation: Isolation) -> None:
    reasons = {
        "def double(x):\n    return x\n": "wrong answer",
        "def double(x):\n    return 1 / 0\n": "it raised ZeroDivisionError",
        "def double(x:\n": "it raised SyntaxError",
        "import os\nos._exit(0)\n": "it ended early",
        "def double(x):\n    return object()\n": "it raised TypeError: a object is no plain value",
    }
    found, said = pool.run_all([HARMLESS._replace(program=text) for text in reasons], LIMITS, isolation)
    assert [each.reason for each in found] == list(reasons.values())
    assert "limits of time" in said
