"""A run: the model in training, its data and its place in time, with what the loop does to it, one method each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from megatron_yuan.checkpoint.commit import Retention
from megatron_yuan.checkpoint.saver import CheckpointSaver
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.config.schema import Config
from megatron_yuan.config.spans import parse_spans
from megatron_yuan.config.yaml_file import to_yaml
from megatron_yuan.data.sampler import Microbatches
from megatron_yuan.errors import TrainingError
from megatron_yuan.parallel.replica_check import check_replicas
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.pulse import Pulse
from megatron_yuan.parallel.watch.start import unwatched
from megatron_yuan.parallel.watch.watch import Watch
from megatron_yuan.report.lock import FolderLock
from megatron_yuan.report.plots import draw_run
from megatron_yuan.report.result import StepResult, TaskScores, evaluation_of
from megatron_yuan.report.run_folder import RunFolder
from megatron_yuan.report.telemetry import Telemetry
from megatron_yuan.training.diagnosis import diagnose
from megatron_yuan.training.guard import Guard
from megatron_yuan.training.lr_schedule import learning_rate
from megatron_yuan.training.memory import peak_memory_bytes
from megatron_yuan.training.origin import branch_of
from megatron_yuan.training.outcome import Outcome
from megatron_yuan.training.setup import TrainingModel
from megatron_yuan.training.start_up import StartUp
from megatron_yuan.training.step import Sums, run_batch
from megatron_yuan.training.stopping import Stopping
from megatron_yuan.training.tracing import Tracer

TaskMeasure = Callable[[Mapping[str, Tensor], Topology], TaskScores]
"""This process's weights by global name, and its place -> scores, the same on all. Called by all ranks together."""


@dataclass
class Run:
    """Everything that changes while training, and what it changes by."""

    config: Config
    topology: Topology
    model: TrainingModel
    microbatches: Microbatches
    set_names: Sequence[str]
    """Of the training blend's sets, in its order."""
    validation: Mapping[str, Microbatches]
    telemetry: Telemetry
    test: Mapping[str, Microbatches] = field(default_factory=dict)
    """What is measured once, at the end."""
    task_measure: TaskMeasure | None = None
    """How the model does on tasks that the settings name; given, because training knows nothing of tasks."""
    languages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of the sets for "validation" and for "test", by name, where the blend tells."""
    data_record: Mapping[str, Any] = field(default_factory=dict)
    """What the training data are, for checkpoints."""
    stopping: Stopping = field(default_factory=Stopping)
    watch: Watch = field(default_factory=unwatched)
    outcome: Outcome = field(default_factory=lambda: Outcome(None))
    start_up: StartUp | None = None
    """Until the first step is done."""
    lock: FolderLock | None = None
    """On the run folder, held by the main rank."""
    guard: Guard = field(init=False)
    stop_reason: str | None = None
    """Why the session should end now, known to all ranks alike; None: it goes on."""
    began_at: int = field(init=False)
    """The step that this session goes on from."""
    step: int = 0
    """Optimizer steps done."""
    consumed_samples: int = 0
    """Training samples seen: the whole position in the data."""
    tokens: int = 0
    """Training tokens that had a loss."""
    saver: CheckpointSaver = field(init=False)
    """Of the run folder."""

    tracer: Tracer = field(init=False)

    def __post_init__(self) -> None:
        self.began_at = self.step
        self.tracer = Tracer(self.config, self.topology, len(self.microbatches))
        self.guard = Guard(self.config.guard)
        self.steps_to_skip = parse_spans("iterations_to_skip", self.config.guard.iterations_to_skip)
        settings, tokenizer = self.config.checkpoint, self.config.data.tokenizer_model
        self.saver = CheckpointSaver(
            Path(settings.save) if settings.save is not None else None,
            self.topology,
            to_yaml(self.config),
            Path(tokenizer) if tokenizer else None,
            Retention(settings.save_retain, settings.save_retain_interval),
            background=settings.async_save,
            beat=self.pulse.beat,
        )

    @property
    def pulse(self) -> Pulse:
        """Where this process's training thread is, for the watch."""
        return self.topology.pulse

    @property
    def samples_per_step(self) -> int:
        """The global batch."""
        size = self.config.training.global_batch_size
        assert size is not None, "resolved by validate_world"
        return size

    @property
    def last_step(self) -> int:
        """Where this process stops: the end of the run, or the next multiple of the exit interval."""
        training = self.config.training
        if training.exit_interval is None:
            return training.train_iters
        return min(training.train_iters, (self.began_at // training.exit_interval + 1) * training.exit_interval)

    def train_step(self, step: int) -> StepResult:
        """Forward and backward over one global batch, then the optimizer."""
        started = time.perf_counter()
        self.pulse.enter_step(step)
        if step in self.steps_to_skip:
            return self._pass_over(step, started)
        sums = self.forward_backward(step)
        self.stop_reason = self.stopping.verdict(sums.votes)
        self.pulse.beat("gradient norm")
        lr = learning_rate(step, self.config.optimizer, self.config.training.train_iters)
        loss = sums.loss_sum / max(1, sums.tokens)
        loss, grad_norm = self.topology.of_main([loss, self.model.optimizer.gradient_norm(self.topology, sums.tokens)])
        skipped = self.guard.judge(loss, grad_norm)
        if skipped is None:
            self.pulse.beat("optimizer")
            self.model.optimizer.step(lr, grad_norm, sums.tokens)
            self.model.move_expert_biases(sums.routing.load_E)
            self.tokens += sums.tokens
        else:
            self._report_skip(step, skipped)
        self._advance(step)
        positions = self.samples_per_step * self.config.data.seq_length
        return StepResult(
            step=step,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            tokens=sums.tokens,
            positions=positions,
            seconds=time.perf_counter() - started,
            samples=self.consumed_samples,
            expert_load=sums.routing.load_E.long().tolist(),
            coactivation=sums.routing.coactivation_EE.long().numpy(),
            top2_margin=(sums.routing.margin / positions).tolist(),
            balance_loss=(sums.routing.balance_loss / max(1, sums.tokens)).tolist(),
            set_losses={
                name: total / tokens
                for name, total, tokens in zip(self.set_names, sums.loss_sum_D, sums.tokens_D, strict=True)
                if tokens
            },
            memory_bytes=peak_memory_bytes(self.topology.device),
            skipped=skipped,
        )

    def forward_backward(self, step: int) -> Sums:
        """The gradients of one global batch, into buffers that were zeroed before."""
        chunks, names = self.model.chunks, self.set_names
        for chunk in chunks:
            chunk.zero_grad_buffer()
        batches = self.microbatches.step(self.consumed_samples)
        votes = self.stopping.votes()
        return run_batch(chunks, batches, len(self.microbatches), self.config, self.topology, step, len(names), votes)

    def say_start_up(self) -> None:
        """How long all took up to the first step, once."""
        if self.start_up is not None:
            self.telemetry.message(self.start_up.line())
            self.start_up = None

    def _advance(self, step: int) -> None:
        self.step, self.consumed_samples = step, self.microbatches.after(self.consumed_samples)

    def _pass_over(self, step: int, started: float) -> StepResult:
        """Leave a step out that the settings name."""
        self._advance(step)
        self.telemetry.message(f"step {step} is left out (iterations-to-skip); the data go on")
        return StepResult(
            step=step,
            loss=math.nan,
            grad_norm=math.nan,
            lr=learning_rate(step, self.config.optimizer, self.config.training.train_iters),
            tokens=0,
            seconds=time.perf_counter() - started,
            samples=self.consumed_samples,
            expert_load=None,
            memory_bytes=peak_memory_bytes(self.topology.device),
            skipped="iterations-to-skip",
        )

    def _report_skip(self, step: int, reason: str) -> None:
        """Say it; raises TrainingError with a diagnosis where it was one skip too many."""
        in_a_row = f"{self.guard.in_a_row} in a row, {self.guard.skipped} in all"
        self.telemetry.message(f"warning: step {step} is skipped, weights stay as they were: {reason} ({in_a_row})")
        if self.guard.is_exhausted:
            raise TrainingError(diagnose(self, step, reason))

    def validate(self, step: int) -> None:
        """Loss of each validation set, over the same samples every time; broken off where the session should end."""
        self._evaluate(step, self.validation, "validation")

    def measure_test(self) -> None:
        """Loss of each test set."""
        self._evaluate(self.step, self.test, "test")

    def measure_tasks(self, step: int) -> None:
        """How the model does on tasks, where there are any to measure; changes nothing of the run."""
        if self.task_measure is None:
            return
        self.pulse.enter_step(step, during="tasks ")
        weights = {name: parameter.detach() for name, parameter in self.model.parameters.items()}
        self.telemetry.tasks(step, self.task_measure(weights, self.topology))

    def _evaluate(self, step: int, sets: Mapping[str, Microbatches], kind: Literal["validation", "test"]) -> None:
        sums: dict[str, tuple[float, int]] = {}
        self.pulse.enter_step(step, during=f"{kind} ")
        for name, microbatches in sets.items():
            loss_sum = counted = 0
            for i in range(self.config.training.eval_iters):
                batches = microbatches.step(i * self.samples_per_step)
                found = run_batch(
                    self.model.chunks,
                    batches,
                    len(microbatches),
                    self.config,
                    self.topology,
                    step=None,
                    votes=self.stopping.votes(),
                )
                self.stop_reason = self.stopping.verdict(found.votes)
                if self.stop_reason is not None:
                    return
                loss_sum, counted = loss_sum + found.loss_sum, counted + found.tokens
            sums[name] = loss_sum, counted
        if sums:
            self.telemetry.evaluation(evaluation_of(step, sums, self.languages.get(kind, {}), kind))

    def save(self) -> None:
        """Write a checkpoint into the run folder, if there is one; with --async-save, it is written behind.

        Whoever was asked to stop meanwhile is heard here, so that no further step and save follow.
        """
        self.pulse.beat("save")
        self.check_replicas()
        self.saver.save(
            RunState(
                self.step,
                self.consumed_samples,
                self.model.optimizer.steps,
                self.tokens,
                extra={
                    "guard": self.guard.state(),
                    "branch": branch_of(self.config.checkpoint),
                    "data": dict(self.data_record),
                },
            ),
            {name: p.detach() for name, p in self.model.parameters.items()},
            self.model.optimizer.state(),
        )
        if self.stop_reason is None and self.saver.folder is not None:
            votes = self.topology.gather(self.stopping.votes())
            self.stop_reason = self.stopping.verdict([sum(each) for each in zip(*votes, strict=True)])

    def check_replicas(self) -> None:
        """ReplicaError where replicas are not the same to the bit; nothing unless the settings ask for it."""
        if self.config.guard.check_weight_hash_across_dp_replicas_interval is None:
            return
        self.pulse.beat("replica check")
        state = self.model.optimizer.state()
        tensors = {name: p.detach() for name, p in self.model.parameters.items()}
        tensors |= {f"{name}.{slot}": each for name, slots in state.items() for slot, each in slots.items()}
        check_replicas(tensors, self.topology)

    def draw(self) -> None:
        """Draw the run's pictures into its folder, once, where there is one."""
        self.pulse.beat("pictures")
        if self.config.checkpoint.save is not None and self.topology.is_main:
            for picture in draw_run(RunFolder(Path(self.config.checkpoint.save))):
                self.telemetry.message(f"drew {picture}")

    def release(self) -> None:
        """End the data workers, and let another run into the run folder."""
        self.pulse.beat("end")
        for microbatches in (self.microbatches, *self.validation.values(), *self.test.values()):
            microbatches.close()
        if self.lock is not None:
            self.lock.release()
