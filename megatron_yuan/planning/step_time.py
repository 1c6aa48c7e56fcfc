"""The time of a training step of a layout, by simulating the schedule that will run it.

A step: gradients cleared; microbatches through the pipeline; in the last one's backward pass, the all-reduce of each
bucket of gradients as it completes; the tied embedding's two gradients summed; sums and the norm, for which all wait;
the optimizer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from megatron_yuan.config.schema import Config
from megatron_yuan.parallel.stages import layers_of_chunks
from megatron_yuan.planning.accounting import count_parameters
from megatron_yuan.planning.costs import Costs, PassSeconds
from megatron_yuan.planning.memory import (
    GRADIENT_BYTES,
    edge_parameters,
    element_bytes,
    microbatches_of,
    recomputed_layers,
)
from megatron_yuan.planning.order import Pass
from megatron_yuan.planning.program import Compute, Exchange, Message, program
from megatron_yuan.planning.simulation import Await, Join, Meeting, Step, Timeline, Work, simulate

LEAST_BUCKET = 40_000_000
"""Parameters in a bucket of megatron-core's DDP, at the least; with more than 40 replicas, a million for each."""


@dataclass(frozen=True)
class StepTime:
    """What a step takes and where it goes."""

    seconds: float
    stages: list[PassSeconds]
    """Forward and backward seconds of one microbatch on each stage, all its chunks."""
    bubble: float
    """Share of the pipeline's time, microbatches in to gradients out, in which a stage did not compute."""
    ideal_bubble: float
    """The same for stages that are even and messages that cost nothing: (p - 1) / (m v + p - 1)."""
    message_bytes: int
    """Of one message between stages."""
    sent_bytes: int
    """By the busiest stage to its neighbours in a step."""
    reduced_bytes: int
    """Gradients that the largest stage all-reduces with its replicas."""
    reduce_seconds: float
    exposed_seconds: float
    """Of these, what is left after the pipeline has run dry: not hidden behind backward."""
    timeline: Timeline
    """Of all processes that were simulated, by replica, then by stage."""

    @property
    def slowest_share(self) -> float:
        """The slowest stage's share of all stages' time; 1 / stages where they are even."""
        each = [stage.forward + stage.backward for stage in self.stages]
        return max(each) / sum(each)


def step_time(config: Config, replicas: int, costs: Costs, microbatches: int | None = None) -> StepTime:
    """Simulate a step. `microbatches` of each replica; unset, those of the global batch."""
    plan = _Plan(config, replicas, costs, microbatches or microbatches_of(config, replicas))
    # Where every process has its own device, replicas are alike: one stands for all.
    shown = replicas if costs.cores is not None else 1
    programs = [list(plan.steps(replica, stage)) for replica in range(shown) for stage in range(plan.stages)]
    line = simulate(programs, plan.meetings(shown), costs.cores)
    return plan.result(line)


class _Plan:
    def __init__(self, config: Config, replicas: int, costs: Costs, microbatches: int) -> None:
        parallel, model = config.parallel, config.model
        self.config, self.replicas, self.costs, self.microbatches = config, replicas, costs, microbatches
        self.stages, self.virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
        self.layers = layers_of_chunks(
            model.num_layers, self.stages, self.virtual, parallel.pipeline_model_parallel_layout
        )
        self.counts = count_parameters(model)
        self.tied = self.stages > 1 and not model.untie_embeddings_and_output_weights
        tokens = config.training.micro_batch_size * config.data.seq_length
        self.message_bytes = tokens * model.hidden_size * element_bytes(config)

    def seconds(self, stage: int, chunk: int) -> PassSeconds:
        """Of one microbatch through a chunk; what is recomputed counts as backward."""
        costs, layers = self.costs, len(self.layers[stage][chunk])
        forward = costs.microbatch + layers * costs.layer.forward
        again = recomputed_layers(self.config, layers) * costs.layer.forward
        backward = layers * costs.layer.backward + again
        if self._is_first(stage, chunk):
            forward, backward = forward + costs.embedding.forward, backward + costs.embedding.backward
        if self._is_last(stage, chunk):
            forward, backward = forward + costs.head.forward, backward + costs.head.backward
        return PassSeconds(forward, backward)

    def parameters(self, stage: int) -> int:
        edges = edge_parameters(self.counts, stage == 0, stage == self.stages - 1)
        return sum(map(len, self.layers[stage])) * self.counts.layer.total + edges

    def steps(self, replica: int, stage: int) -> Iterator[Step]:
        costs, parameters = self.costs, self.parameters(stage)
        yield Work(costs.optimizer * parameters, "optimizer")
        yield Work(costs.zero * parameters, "clear gradients")
        for action in program(stage, self.stages, self.virtual, self.microbatches):
            if isinstance(action, Exchange):
                yield Join(tuple((replica, message) for message in action.messages), action.waits)
                continue
            yield from self._pass(replica, stage, action)
        reductions = [key for chunk in range(self.virtual) for key, _ in self._buckets(stage, chunk)]
        if self.replicas > 1:
            if not self.config.parallel.overlap_grad_reduce:
                yield Join(tuple(reductions), waits=False)
            yield Await(tuple(reductions))
        if self.tied and stage in (0, self.stages - 1):
            yield Join((("tied", replica),))
        yield Join(("sums",))
        yield Work(costs.norm * parameters, "norm")
        yield Join(("norm",))

    def _pass(self, replica: int, stage: int, action: Compute) -> Iterator[Step]:
        if action.needs is not None:
            yield Await(((replica, action.needs),))
        work = action.work
        seconds = self.seconds(stage, work.chunk)
        label = f"{'forward' if work.forward else 'backward'} {work.microbatch} chunk {work.chunk}"
        reduces = self.replicas > 1 and self.config.parallel.overlap_grad_reduce
        if work.forward or not reduces or work.microbatch < self.microbatches - 1:
            yield Work(seconds.forward if work.forward else seconds.backward, label)
            return
        done = 0.0
        for key, ready in self._buckets(stage, work.chunk):
            yield Work((ready - done) * seconds.backward, label)
            yield Join((key,), waits=False)
            done = ready
        yield Work((1 - done) * seconds.backward, label)

    def _buckets(self, stage: int, chunk: int) -> list[tuple[Hashable, float]]:
        """Key of each bucket's all-reduce, and the share of the chunk's backward pass after which it is complete."""
        layers = len(self.layers[stage][chunk])
        count = 1
        if chunk == 0:  # megatron-core buckets the first chunk alone
            least = self.config.parallel.ddp_bucket_size or max(LEAST_BUCKET, 1_000_000 * self.replicas)
            count = max(1, min(layers, self.parameters_of(stage, chunk) // least))
        return [(("reduce", stage, chunk, i), (i + 1) / count) for i in range(count)]

    def parameters_of(self, stage: int, chunk: int) -> int:
        edges = edge_parameters(self.counts, self._is_first(stage, chunk), self._is_last(stage, chunk))
        return len(self.layers[stage][chunk]) * self.counts.layer.total + edges

    def reduce_seconds(self, stage: int, chunk: int) -> list[float]:
        buckets = self._buckets(stage, chunk)
        size = self.parameters_of(stage, chunk) * GRADIENT_BYTES / len(buckets)
        return [self.costs.reduce_seconds(size, self.replicas) for _ in buckets]

    def meetings(self, shown: int) -> dict[Hashable, Meeting]:
        costs = self.costs
        threads = 1 if costs.cores is not None else 0
        found: dict[Hashable, Meeting] = {}
        message = Meeting(costs.message_seconds(self.message_bytes), 2, threads=threads)
        for replica in range(shown):
            for stage in range(self.stages):
                for chunk in range(self.virtual):
                    for microbatch in range(self.microbatches):
                        for forward in (True, False):
                            found[replica, Message(stage, Pass(forward, chunk, microbatch))] = message
            tied = self.counts.embedding * GRADIENT_BYTES * costs.tied
            found["tied", replica] = Meeting(costs.reduce_latency + tied, 2, threads=2 * threads)
        for stage in range(self.stages):
            for chunk in range(self.virtual):
                for (key, _), seconds in zip(
                    self._buckets(stage, chunk), self.reduce_seconds(stage, chunk), strict=True
                ):
                    found[key] = Meeting(seconds, shown, ("replicas", stage), threads * shown)
        several = self.stages * self.replicas > 1
        for name in ("sums", "norm"):
            found[name] = Meeting(2 * costs.reduce_latency if several else 0.0, shown * self.stages)
        return found

    def result(self, line: Timeline) -> StepTime:
        stages = [[self.seconds(s, c) for c in range(self.virtual)] for s in range(self.stages)]
        begin, ends, busy = _pipeline(line, self.stages)
        reduces = [sum(sum(self.reduce_seconds(s, c)) for c in range(self.virtual)) for s in range(self.stages)]
        dry = max(ends)
        over = max(line.ends) - dry - max(self.costs.norm * self.parameters(s) for s in range(self.stages))
        tied = self.counts.embedding * GRADIENT_BYTES * self.costs.tied if self.tied else 0.0
        p, mv = self.stages, self.microbatches * self.virtual
        # Of each chunk a stage sends hidden states on and gradients back, but none where the pipeline ends.
        messages = mv * 2 - (self.microbatches if p == 2 else 0) if p > 1 else 0
        return StepTime(
            seconds=line.seconds,
            stages=[PassSeconds(sum(c.forward for c in s), sum(c.backward for c in s)) for s in stages],
            bubble=1 - busy / (len(line.ends) * (dry - begin)),
            ideal_bubble=(p - 1) / (mv + p - 1),
            message_bytes=self.message_bytes if p > 1 else 0,
            sent_bytes=messages * self.message_bytes,
            reduced_bytes=max(self.parameters(s) for s in range(p)) * GRADIENT_BYTES if self.replicas > 1 else 0,
            reduce_seconds=max(reduces) if self.replicas > 1 else 0.0,
            exposed_seconds=min(max(reduces), max(0.0, over - tied)) if self.replicas > 1 else 0.0,
            timeline=line,
        )

    def _is_first(self, stage: int, chunk: int) -> bool:
        return stage == 0 and chunk == 0

    def _is_last(self, stage: int, chunk: int) -> bool:
        return stage == self.stages - 1 and chunk == self.virtual - 1


def _pipeline(line: Timeline, stages: int) -> tuple[float, list[float], float]:
    """When the first pass began, when each process was through its last, and the seconds of all passes together."""
    passes = [[span for span in spans if span[0].startswith(("forward", "backward"))] for spans in line.spans]
    begin = min(spans[0][1] for spans in passes)
    return begin, [spans[-1][2] for spans in passes], sum(e - b for spans in passes for _, b, e in spans)
