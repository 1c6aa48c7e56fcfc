"""What a run depended on: versions, machine, command, and the environment variables that matter."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from megatron_yuan.version import __version__

PACKAGES = (
    "torch",
    "megatron-core",
    "numpy",
    "sentencepiece",
    "safetensors",
    "triton",
    "apex",
    "deepspeed",
)
# Whole names or beginnings of names. A list of what to take, so that no secret is ever written.
VARIABLES = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "PYTORCH_",
    "CUDA_",
    "CUBLAS_",
    "NVIDIA_",
    "TRITON_",
    "MEGATRON_YUAN_",
    "WANDB_MODE",
)
VARIABLES += (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_",
    "SLURM_JOB_",
    "SLURM_NNODES",
    "SLURM_NTASKS",
)
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def describe_environment() -> dict[str, Any]:
    """Everything as plain JSON values; what is not there is null."""
    return {
        "argv": sys.argv,
        "megatron_yuan": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_commit(Path(__file__).parents[1]),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "variables": {name: value for name, value in sorted(os.environ.items()) if _matters(name)},
    }


def cpu_model() -> str:
    """The processor's name as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that tracks `folder`, and whether tracked files differ from it; None where none does."""
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # a venv inside another repository is not it
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no repository: the run does not depend on it
    return done.stdout.strip()


def _matters(name: str) -> bool:
    return name.startswith(VARIABLES) and not any(word in name for word in SECRET_WORDS)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
