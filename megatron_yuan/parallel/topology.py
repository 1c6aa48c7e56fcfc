"""Who this process is in the run: made once, passed down, never imported as a global."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_yuan.config.schema import Config, ParallelConfig
from megatron_yuan.errors import ConfigError, ParallelError
from megatron_yuan.parallel import launcher, meeting
from megatron_yuan.parallel.alike import check_alike
from megatron_yuan.parallel.host_memory import keep_freed_memory
from megatron_yuan.parallel.launcher import world_size
from megatron_yuan.parallel.watch.pulse import Pulse


@dataclass(frozen=True)
class Topology:
    """This process's place among pipeline stages and data-parallel replicas."""

    rank: int
    world_size: int
    local_rank: int
    pp_rank: int
    pp_size: int
    vp_size: int
    dp_rank: int
    dp_size: int
    device: torch.device
    pp_group: Any = field(repr=False, default=None)
    dp_group: Any = field(repr=False, default=None)
    pulse: Pulse = field(repr=False, compare=False, default_factory=Pulse)
    """Where this process's training thread is, for the watch."""
    meeting_seconds: float = field(repr=False, compare=False, default=0.0)
    """What it took to meet the other processes and make the groups."""

    @property
    def is_main(self) -> bool:
        """True for the one process that speaks for the run."""
        return self.rank == 0

    @property
    def is_first_stage(self) -> bool:
        """True where the embedding is."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """True where the loss is."""
        return self.pp_rank == self.pp_size - 1

    def barrier(self) -> None:
        """Wait for every process."""
        if self.world_size > 1:
            with self.pulse.waiting("barrier"):
                dist.barrier()

    def gather(self, value: Any, beats: bool = True) -> list[Any]:
        """One small picklable `value` from each rank, by rank, on every rank. Not `beats`: for who asks again and again
        how something else stands, which is not to be taken for work that goes on."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.pulse.waiting("gather") if beats else nullcontext():
            dist.all_gather_object(values, value)
        return values

    def broadcast_from_last_stage(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy `tensor` in place from the last stage to the whole pipeline; returns it."""
        if self.pp_size > 1:
            with self.pulse.waiting("broadcast"):
                dist.broadcast(tensor, group_src=self.pp_size - 1, group=self.pp_group)
        return tensor

    def sum_over_stages(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` in place over the stages of this pipeline; returns it."""
        if self.pp_size > 1:
            with self.pulse.waiting("sum over stages"):
                dist.all_reduce(tensor, group=self.pp_group)
        return tensor

    def sum_over_replicas(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` in place over the data-parallel replicas of this stage; returns it."""
        if self.dp_size > 1:
            with self.pulse.waiting("sum over replicas"):
                dist.all_reduce(tensor, group=self.dp_group)
        return tensor

    def of_main(self, values: Sequence[float]) -> list[float]:
        """Rank 0's `values`, to the bit, on every rank; nan in the place of one that is not finite on any rank."""
        if self.world_size == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        both = torch.stack((mine if self.is_main else torch.zeros_like(mine), (~mine.isfinite()).double()))
        with self.pulse.waiting("agreement"):
            dist.all_reduce(both)
        main, strange = both.tolist()
        return [math.nan if bad else value for value, bad in zip(main, strange, strict=True)]


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` means here; `auto` is a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU here. Fix: --device cpu, or a CUDA build of torch.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ParallelError(
            f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} here. "
            "Fix: torchrun --nproc-per-node with at most that many processes."
        )
    return torch.device("cuda", local_rank)


def start(config: Config) -> Topology:
    """Join the other processes and find this one's place. Ends with `stop`, on every path out."""
    from megatron_yuan.mcore import on_cpu
    from megatron_yuan.mcore.parallel import parallel_state

    parallel = config.parallel
    rank, local_rank = launcher.rank(), launcher.local_rank()
    device = choose_device(config.training.device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        on_cpu.use_cpu()
        keep_freed_memory()
    begun = time.monotonic()
    _join(parallel, device)
    check_alike(config)
    vp = parallel.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=vp if vp > 1 else None,
        distributed_timeout_minutes=parallel.distributed_timeout_minutes,  # type: ignore[arg-type]
        create_gloo_process_groups=False,
    )
    return Topology(
        rank=rank,
        world_size=world_size(),
        local_rank=local_rank,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=parallel.pipeline_model_parallel_size,
        vp_size=vp,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        device=device,
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(),
        meeting_seconds=time.monotonic() - begun,
    )


def _join(parallel: ParallelConfig, device: torch.device) -> None:
    backend = parallel.distributed_backend
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type == "cpu":
        raise ParallelError(
            "distributed-backend is nccl, which needs GPUs, but tensors are on the CPU;\n"
            "drop it (auto takes gloo here), or start where torch sees a GPU."
        )
    timeout = timedelta(minutes=parallel.distributed_timeout_minutes)
    settings: dict[str, Any] = {"backend": backend, "timeout": timeout}
    if backend == "nccl":
        settings["device_id"] = device
    rank, size = launcher.rank(), world_size()
    # With nobody to meet: a store in memory, no port.
    store = dist.HashStore() if size == 1 else meeting.meet(rank, size, timeout)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(**settings, store=store, rank=rank, world_size=size)


def stop() -> None:
    """Leave the process groups; safe to call when they were never made."""
    if dist.is_initialized():
        from megatron_yuan.mcore.parallel import parallel_state

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
