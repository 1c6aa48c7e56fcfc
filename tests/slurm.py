"""A Slurm cluster of this one machine: munged, slurmctld and slurmd with folders and ports of their own. Needs root."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
PATH = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
GPUS = 2
"""Nodes have so many; nothing here is one, but jobs ask for them as on a real cluster."""


def why_not() -> str | None:
    """Why there can be no Slurm here; None where there can."""
    if os.geteuid() != 0:
        return "slurmd needs root"
    missing = [name for name in (*DAEMONS, *COMMANDS) if shutil.which(name, path=PATH) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: slurm-wlm, munge)"
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return f"this host's own name, {socket.gethostname()}, is unknown to it"
    return None


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """For Slurm's commands."""
        return {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """What a command answers."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.told())
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job."""
        words = self.ask("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def told(self) -> str:
        """The ends of the daemons' logs, for who has to find out."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Started, and gone at the end with all that its jobs left. `folder` holds all, a socket too: a short path."""
    folder.mkdir(mode=0o700)
    cluster, daemons = Slurm(folder), []
    _configure(folder)
    munged = f"""munged --foreground --force --key-file {folder}/munge.key --socket {folder}/munge.socket
        --pid-file {folder}/munged.pid --log-file {folder}/munged.log --seed-file {folder}/munged.seed
        --num-threads 1"""
    try:
        for command in (munged, "slurmctld -D -i", "slurmd -D"):
            with open(folder / f"{command.split()[0]}-said.log", "w") as log:
                daemons.append(subprocess.Popen(command.split(), env=cluster.environment, stdout=log, stderr=log))
        _await_idle(cluster)
        yield cluster
    finally:
        subprocess.run(
            ["scancel", "--quiet", "--user=root", "--signal=KILL", "--full"], env=cluster.environment, timeout=30
        )
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in _left_of(folder):
            os.kill(process, 9)


def _configure(folder: Path) -> None:
    host = socket.gethostname().split(".")[0]
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    # Where Slurm cannot do without (before 23.11) its oldest plugin is the one that looks for nothing at the start.
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if _version() >= (23, 11) else 'cgroup/v1'}\n")
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "slurm.conf").write_text(f"""\
ClusterName=test{os.getpid()}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=30
MinJobAge=600
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} Gres=gpu:{GPUS} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")


def _version() -> tuple[int, ...]:
    said = subprocess.run(["slurmd", "-V"], env={"PATH": PATH}, capture_output=True, text=True).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said)[:2])


def _await_idle(cluster: Slurm) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=cluster.environment, capture_output=True, text=True, timeout=60
        )
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise AssertionError(f"no idle node within 30 s\n{cluster.told()}")


def _left_of(folder: Path) -> list[int]:
    """Processes whose environment names this cluster: what jobs, or slurmstepd, left behind."""
    mark, left = f"SLURM_CONF={folder / 'slurm.conf'}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                left.append(int(process.name))
        except OSError:
            continue
    return left
