"""What a pipeline stage does in a step: passes, and between them what it exchanges with its neighbours.

The exchanges are grouped as megatron-core groups them, and a message moves only when both ends are there: that is how
gloo sends and how NCCL's kernels meet. In 1F1B a stage waits until all it sends and receives at once is through. In the
interleaved schedule passes go on meanwhile: it waits before a pass for that pass's input alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_yuan.planning.order import Order, Pass, order_of


@dataclass(frozen=True)
class Message:
    """The hidden states, or their gradient, that the pass `of` of stage `to` needs."""

    to: int
    of: Pass


@dataclass(frozen=True)
class Exchange:
    """What is sent and received at once; `waits`: until all of it is through."""

    messages: tuple[Message, ...]
    waits: bool = True


@dataclass(frozen=True)
class Compute:
    """A pass, once its input is there."""

    work: Pass
    needs: Message | None


Action = Compute | Exchange


def program(stage: int, stages: int, virtual: int, microbatches: int) -> list[Action]:
    """The passes and exchanges of one stage in one step."""
    order = order_of(stage, stages, virtual, microbatches)
    place = _Place(stage, stages, virtual)
    if stages == 1:
        return [Compute(work, None) for work in order.passes]
    made = _interleaved(order, place) if virtual > 1 else _one_forward_one_backward(order, place)
    return [action for action in made if not isinstance(action, Exchange) or action.messages]


@dataclass(frozen=True)
class _Place:
    stage: int
    stages: int
    virtual: int

    def compute(self, work: Pass) -> Compute:
        return Compute(work, self.input_of(work))

    def input_of(self, work: Pass) -> Message | None:
        """None for the first pass of a microbatch, and for the one that begins its way back at the loss."""
        return None if self._is_end(work, first=work.forward) else Message(self.stage, work)

    def output_of(self, work: Pass) -> Message | None:
        if self._is_end(work, first=not work.forward):
            return None
        step = 1 if work.forward else -1
        run = work.chunk * self.stages + self.stage + step  # of the model's runs of layers, in a token's order
        return Message(run % self.stages, Pass(work.forward, run // self.stages, work.microbatch))

    def _is_end(self, work: Pass, first: bool) -> bool:
        run = work.chunk * self.stages + self.stage
        return run == (0 if first else self.stages * self.virtual - 1)


def _exchange(*messages: Message | None, waits: bool = True) -> Exchange:
    return Exchange(tuple(message for message in messages if message is not None), waits)


def _one_forward_one_backward(order: Order, place: _Place) -> Iterator[Action]:
    forwards, backwards, warmup = order.forwards, order.backwards, order.warmup
    for work in forwards[:warmup]:
        yield _exchange(place.input_of(work))
        yield place.compute(work)
        yield _exchange(place.output_of(work))
    steady = len(forwards) - warmup
    if steady:
        yield _exchange(place.input_of(forwards[warmup]))
    for i in range(steady):
        forward, backward = forwards[warmup + i], backwards[i]
        yield place.compute(forward)
        yield _exchange(place.output_of(forward), place.input_of(backward))
        yield place.compute(backward)
        following = place.input_of(forwards[warmup + i + 1]) if i + 1 < steady else None
        yield _exchange(place.output_of(backward), following)
    for work in backwards[steady:]:
        yield _exchange(place.input_of(work))
        yield place.compute(work)
        yield _exchange(place.output_of(work))


def _interleaved(order: Order, place: _Place) -> Iterator[Action]:
    """Inputs are received one pass ahead; the stage where a chunk's runs begin gets them `stages - 1` passes late.

    While a stage only goes forward or only back, it asks for the next input before the pass, unless it is that stage.
    """
    forwards, backwards, warmup = order.forwards, order.backwards, order.warmup
    total = len(forwards)
    steady = total - warmup
    yield _exchange(place.input_of(forwards[0]))
    for k in range(warmup):
        ahead = _arrival(forwards, k, place, place.stage == 0) if k < total - 1 else None
        yield from _ahead(place.compute(forwards[k]), place.output_of(forwards[k]), ahead, early=place.stage > 0)
    yield _exchange(place.input_of(backwards[0]), waits=not steady)
    for k in range(steady):
        forward, backward = forwards[warmup + k], backwards[k]
        ahead = _arrival(forwards, warmup + k, place, place.stage == 0) if k < steady - 1 else None
        yield from _ahead(place.compute(forward), place.output_of(forward), ahead)
        ahead = _arrival(backwards, k, place, place.stage == place.stages - 1)
        yield from _ahead(place.compute(backward), place.output_of(backward), ahead)
    for k in range(steady, total):
        ahead = _arrival(backwards, k, place, place.stage == place.stages - 1) if k < total - 1 else None
        early = place.stage < place.stages - 1
        yield from _ahead(place.compute(backwards[k]), place.output_of(backwards[k]), ahead, early)


def _ahead(work: Compute, sent: Message | None, ahead: Message | None, early: bool = False) -> Iterator[Action]:
    """A pass, what it made, and the input of a later one, asked for before it or behind it."""
    if early:
        yield _exchange(ahead, waits=False)
    yield work
    yield _exchange(sent, None if early else ahead, waits=False)


def _arrival(passes: tuple[Pass, ...], k: int, place: _Place, leading: bool) -> Message | None:
    """The input that is asked for after pass `k`."""
    if not leading:
        return Message(place.stage, passes[k + 1]) if k + 1 < len(passes) else None
    sent = k - (place.stages - 1)  # the pass that the other end has just done
    if sent < 0:
        return None
    work = passes[sent]
    chunk = work.chunk + (1 if work.forward else -1)
    return Message(place.stage, Pass(work.forward, chunk, work.microbatch)) if 0 <= chunk < place.virtual else None
