"""A simulation of processes that compute, meet and wait, event by event. It knows no pipeline: step_time.py tells it.

Time passes only in work and in meetings. On a machine whose processes share cores (gloo), both take a core, and more of
them than cores slow each other down; on GPUs each process has its own device.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cores:
    """The cores that all processes share, each computing in one thread."""

    count: int
    together: float = 1.0
    """Speed of one process while all cores are busy, as a share of its speed alone."""

    def speed(self, running: int) -> float:
        """Of each of `running` threads."""
        if running <= 1 or self.count == 1:
            return 1.0 / max(1, running)
        crowded = min(1.0, (running - 1) / (self.count - 1))
        return (1.0 - crowded * (1.0 - self.together)) * min(1.0, self.count / running)


@dataclass(frozen=True)
class Work:
    """Computing for so many seconds of a core or device of one's own."""

    seconds: float
    label: str = ""


@dataclass(frozen=True)
class Join:
    """Take part in meetings; `waits`: go on only once they are over."""

    meetings: tuple[Hashable, ...]
    waits: bool = True


@dataclass(frozen=True)
class Await:
    """Go on once these meetings, joined before, are over."""

    meetings: tuple[Hashable, ...]


Step = Work | Join | Await


@dataclass(frozen=True)
class Meeting:
    """A message or a collective: it begins when its last party joins."""

    seconds: float
    parties: int
    queue: Hashable = None
    """Meetings of one queue come one after another; None: at any time."""
    threads: int = 0
    """Cores that it keeps busy, where cores are shared."""


@dataclass
class Timeline:
    """What came of it, in seconds from the start."""

    ends: list[float]
    """When each process was through."""
    spans: list[list[tuple[str, float, float]]]
    """Of each process: label, begin and end of each piece of work."""

    @property
    def seconds(self) -> float:
        """Until the last was through."""
        return max(self.ends)

    def busy(self, rank: int) -> float:
        """Seconds in which `rank` worked."""
        return sum(end - begin for _, begin, end in self.spans[rank])


@dataclass
class _Task:
    left: float
    threads: int
    rank: int | None = None
    label: str = ""
    begin: float = 0.0
    meeting: Hashable = None


@dataclass
class _State:
    now: float = 0.0
    running: list[_Task] = field(default_factory=list[_Task])
    over: set[Hashable] = field(default_factory=set[Hashable])
    joined: dict[Hashable, int] = field(default_factory=lambda: defaultdict(int))
    queues: dict[Hashable, deque[Hashable]] = field(default_factory=lambda: defaultdict(deque))


def simulate(
    programs: Sequence[Sequence[Step]], meetings: Mapping[Hashable, Meeting], cores: Cores | None = None
) -> Timeline:
    """Run every process's program to its end. An AssertionError is our bug: they wait for each other for ever."""
    state, count = _State(), len(programs)
    place, waits = [0] * count, [set[Hashable]() for _ in range(count)]
    line = Timeline([0.0] * count, [[] for _ in range(count)])
    waiting_for: dict[Hashable, list[int]] = defaultdict(list)

    def proceed(rank: int) -> None:
        program = programs[rank]
        while place[rank] < len(program):
            step = program[place[rank]]
            place[rank] += 1
            if isinstance(step, Work):
                if step.seconds > 0:
                    state.running.append(_Task(step.seconds, 1, rank, step.label, state.now))
                    return
                continue
            if isinstance(step, Join):
                for key in step.meetings:
                    _join(key, meetings[key], state)
            if isinstance(step, Join) and not step.waits:
                continue
            waits[rank] = {key for key in step.meetings if key not in state.over}
            if waits[rank]:
                for key in waits[rank]:
                    waiting_for[key].append(rank)
                return
        line.ends[rank] = state.now

    for rank in range(count):
        proceed(rank)
    while state.running:
        for task in _advance(state, cores):
            if task.rank is not None:
                line.spans[task.rank].append((task.label, task.begin, state.now))
                proceed(task.rank)
                continue
            _end_meeting(task.meeting, meetings, state)
            for rank in waiting_for.pop(task.meeting, ()):
                waits[rank].discard(task.meeting)
                if not waits[rank]:
                    proceed(rank)
    stuck = [rank for rank in range(count) if place[rank] < len(programs[rank]) or waits[rank]]
    assert not stuck, f"ranks {stuck} wait for ever"
    return line


def _join(key: Hashable, meeting: Meeting, state: _State) -> None:
    state.joined[key] += 1
    if state.joined[key] < meeting.parties:
        return
    if meeting.queue is not None:
        queue = state.queues[meeting.queue]
        queue.append(key)
        if len(queue) > 1:
            return
    state.running.append(_Task(meeting.seconds, meeting.threads, meeting=key))


def _end_meeting(key: Hashable, meetings: Mapping[Hashable, Meeting], state: _State) -> None:
    state.over.add(key)
    queue = state.queues.get(meetings[key].queue)
    if queue:
        queue.popleft()
        if queue:
            following = meetings[queue[0]]
            state.running.append(_Task(following.seconds, following.threads, meeting=queue[0]))


def _advance(state: _State, cores: Cores | None) -> list[_Task]:
    """Let time pass until something is through; returns it, taken out of what is running."""
    threads = sum(task.threads for task in state.running)
    crowd = cores.speed(threads) if cores is not None else 1.0
    speeds = [crowd if task.threads else 1.0 for task in state.running]
    passed = min(task.left / speed for task, speed in zip(state.running, speeds, strict=True))
    state.now += passed
    through, running = [], []
    for task, speed in zip(state.running, speeds, strict=True):
        task.left -= passed * speed
        (through if task.left <= 1e-12 else running).append(task)
    state.running = running
    return through
