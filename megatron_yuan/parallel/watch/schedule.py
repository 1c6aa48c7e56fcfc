"""Beats from within megatron-core's schedules, which tell a `timers` object what they are about to do.

Handed to megatron as the field `timers` of its config. Their timers are called forward-compute, backward-compute,
forward-backward (a whole schedule), forward-recv and the like (exchange between stages), all-grads-sync and others
(collectives at the end); only the first three are known by name here, all others are waits. So is what lies between
passes, where there are several stages: the interleaved schedule waits there for what it asked for before.
"""

from __future__ import annotations

from megatron_yuan.parallel.watch.pulse import Pulse

_PASSES = {"forward-compute": "forward", "backward-compute": "backward"}


class ScheduleBeats:
    """What megatron takes for its timers. Passes are counted to tell the microbatch and the chunk."""

    def __init__(self, pulse: Pulse, stages: int, chunks: int) -> None:
        """`chunks`: of the model on each stage; above 1 the schedule is interleaved."""
        self.pulse, self.stages, self.chunks = pulse, stages, chunks
        self.counts = dict.fromkeys(_PASSES, 0)
        self._timers: dict[str, _Schedule | _Pass | _Wait] = {}

    def __call__(self, name: str, log_level: int | None = None) -> _Schedule | _Pass | _Wait:
        """The timer `name`."""
        timer = self._timers.get(name)
        if timer is None:
            kind = _Schedule if name == "forward-backward" else _Pass if name in _PASSES else _Wait
            timer = self._timers[name] = kind(self, name)
        return timer

    def next_pass(self, name: str) -> tuple[int, int | None]:
        """Microbatch and chunk of the next pass `name`, from 1; no chunk where a stage has one.

        An interleaved schedule sends a group of as many microbatches as stages through one chunk, then the same
        through the next chunk (backward through the one before); then comes the next group.
        """
        count = self.counts[name]
        self.counts[name] = count + 1
        if self.chunks == 1:
            return 1 + count, None
        group, within = divmod(count, self.stages * self.chunks)
        chunk, within = divmod(within, self.stages)
        return 1 + group * self.stages + within, self.chunks - chunk if name == "backward-compute" else 1 + chunk

    def between(self) -> None:
        """After a pass or a wait: a stage alone exchanges nothing, and waits for nobody."""
        pulse, several = self.pulse, self.stages > 1
        pulse.beat(f"{pulse.during}{'exchange' if several else 'schedule'}", pulse.position.microbatch, waits=several)


class _Schedule:
    def __init__(self, beats: ScheduleBeats, name: str) -> None:
        self.beats = beats

    def start(self, barrier: bool = False) -> None:
        self.beats.counts = dict.fromkeys(_PASSES, 0)
        self.stop()

    def stop(self, barrier: bool = False) -> None:
        self.beats.pulse.beat(f"{self.beats.pulse.during}schedule")


class _Pass:
    def __init__(self, beats: ScheduleBeats, name: str) -> None:
        self.beats, self.name = beats, name

    def start(self, barrier: bool = False) -> None:
        pulse = self.beats.pulse
        microbatch, chunk = self.beats.next_pass(self.name)
        pulse.beat(pulse.during + _PASSES[self.name], microbatch, chunk=chunk)

    def stop(self, barrier: bool = False) -> None:
        self.beats.between()


class _Wait:
    def __init__(self, beats: ScheduleBeats, name: str) -> None:
        self.beats, self.phase = beats, name.replace("-", " ")

    def start(self, barrier: bool = False) -> None:
        pulse = self.beats.pulse
        pulse.beat(pulse.during + self.phase, pulse.position.microbatch, waits=True)

    def stop(self, barrier: bool = False) -> None:
        self.beats.between()
