"""One start of a run by torchrun, every process in it a victim, and how to reach and end those processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_yuan.drill.events import told
from megatron_yuan.drill.rig import Layout

ENTRY = Path(__file__).resolve().parents[2] / "pretrain_yuan_moe.py"
SHUTDOWN_SECONDS = 600  # between SIGTERM and SIGKILL, as the launch scripts have it: more than a slow save takes
POLL_SECONDS = 0.05

Order = dict[str, Any]


@dataclass
class Session:
    """Made by `start`; ends when its launcher has, or with `end`."""

    folder: Path
    launch: int
    world_size: int
    launcher: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def start(
        cls, folder: Path, launch: int, layout: Layout, flags: Sequence[str], orders: Sequence[Order], restarts: int
    ) -> Session:
        """Start the run of RUN = folder/run; what it prints goes to folder/output.LAUNCH.txt."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "root": str(folder / "run" / "checkpoints"),
            "events": str(folder / "events.jsonl"),
            "launch": launch,
            "orders": list(orders),
        }
        told_to = folder / f"orders.{launch}.json"
        told_to.write_text(json.dumps(settings, indent=1))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.1"]
        command += ["--nproc-per-node", str(layout.world_size), "--max-restarts", str(restarts)]
        command += ["-m", "megatron_yuan.drill.victim"]
        with open(folder / f"output.{launch}.txt", "wb") as output:
            launcher = subprocess.Popen(
                [*command, str(told_to), str(ENTRY), *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS)},
                start_new_session=True,
            )
        return cls(folder, launch, layout.world_size, launcher)

    @property
    def output(self) -> str:
        """What launcher and processes have printed."""
        return (self.folder / f"output.{self.launch}.txt").read_text(errors="replace")

    @property
    def attempts(self) -> int:
        """How often all processes have been started."""
        attempt = 0
        while len(self.started(attempt)) == self.world_size:
            attempt += 1
        return attempt

    def started(self, attempt: int | None = None) -> list[dict[str, Any]]:
        """Start events, by rank: of one attempt, or of all."""
        where = {} if attempt is None else {"attempt": attempt}
        found = told(self.folder / "events.jsonl", "start", launch=self.launch, **where)
        return sorted(found, key=lambda each: (each["attempt"], each["rank"]))

    def alive(self, attempt: int | None = None) -> list[int]:
        """Processes of an attempt, or of all, that have not ended; the launcher is none of them."""
        return [each["pid"] for each in self.started(attempt) if _lives(each["pid"])]

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether `condition` came true within so many seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    @property
    def ended(self) -> bool:
        """Launcher and all processes are gone."""
        return self.launcher.poll() is not None and not self.alive()

    def end(self) -> None:
        """SIGKILL to whatever is left."""
        if self.launcher.poll() is None:
            self.launcher.kill()
        for pid in self.alive():
            signal_process(pid, signal.SIGKILL)
        self.launcher.wait()
        self.wait(lambda: not self.alive(), 10)


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _lives(pid: int) -> bool:
    """Whether it runs as a victim: a number may have been given to another process, and the dead may lie about."""
    try:
        return b"megatron_yuan.drill.victim" in Path(f"/proc/{pid}/cmdline").read_bytes()  # empty of a zombie
    except OSError:
        return False
