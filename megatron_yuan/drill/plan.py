"""Which faults come in which order: one endless list for each seed, of which any entry can be played by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

from megatron_yuan.config.schema import CheckpointConfig, Config
from megatron_yuan.drill import disks, kills, numbers, signals
from megatron_yuan.drill.kills import Stage
from megatron_yuan.drill.rig import LAYOUTS, Layout
from megatron_yuan.drill.trial import Trial

POINT_KIND = "kill at a write point"


@dataclass(frozen=True)
class Kind:
    """A way to break a run."""

    name: str
    play: Callable[[Trial, Stage], None]
    flags: tuple[str, ...] = ()
    """Further ones for the training program."""
    tries: int = 3
    """Faults in one trial."""
    share: int = 1
    """Trials in one round through all kinds."""
    layouts: tuple[Layout, ...] = LAYOUTS
    asynchronous: bool = False
    """Saves go on behind the training."""
    settings: tuple[str, ...] = field(default=(), repr=False)
    """What the training program must know for this to be tried at all."""

    @property
    def unsupported(self) -> str | None:
        """Why it cannot be played with this version of the training program; None: it can."""
        known = {each.name for section in fields(Config) for each in fields(section.default_factory())}  # type: ignore
        missing = [name for name in self.settings if name not in known]
        return f"there is no setting {', '.join(missing)}" if missing else None


_WATCHED = ("--liveness-timeout-in-secs", str(signals.LIVENESS_SECONDS))
_COMPARED = ("--check-weight-hash-across-dp-replicas-interval", "3")
_BEHIND = ("--async-save",)
_REPLICAS = tuple(layout for layout in LAYOUTS if layout.replicas > 1)

KINDS = (
    Kind("kill one rank", kills.kill_one),
    Kind("kill all ranks", kills.kill_all),
    Kind("kill ranks and launcher", kills.kill_job),
    Kind(POINT_KIND, kills.kill_at_points, tries=5, share=2),
    Kind("SIGTERM", signals.terminate),
    Kind("SIGTERM in a slow save", signals.terminate_slow_save),
    Kind("SIGSTOP of a rank", signals.freeze_one, _WATCHED, settings=("liveness_timeout_in_secs",)),
    Kind("disk full", disks.fill_disk),
    Kind("flipped byte", disks.flip_byte),
    Kind("truncated file", disks.truncate_file),
    Kind("missing file", disks.remove_file),
    Kind("NaN in a gradient", numbers.plant_nans, settings=("guard_max_skips",)),
    Kind(
        "flipped weight",
        numbers.flip_weights,
        _COMPARED,
        layouts=_REPLICAS,
        settings=("check_weight_hash_across_dp_replicas_interval",),
    ),
    Kind("async: kill one rank", kills.kill_one, _BEHIND, asynchronous=True),
    Kind("async: " + POINT_KIND, kills.kill_at_points, _BEHIND, tries=5, share=2, asynchronous=True),
    Kind("async: SIGTERM in a slow save", signals.terminate_slow_save, _BEHIND, asynchronous=True),
)
assert "async_save" in {each.name for each in fields(CheckpointConfig)}


@dataclass(frozen=True)
class Scene:
    """One trial that is to be played."""

    index: int
    kind: Kind
    layout: Layout
    number: int
    """Of this kind's trials, from 0."""
    seed: int

    def random(self) -> random.Random:
        """What all chance in it comes from."""
        return random.Random(f"{self.seed}/{self.index}")


def scenes(seed: int) -> Iterator[Scene]:
    """All of them, without end: rounds through all kinds, in each of which layouts move on by one."""
    one_round = [kind for turn in range(max(each.share for each in KINDS)) for kind in KINDS if turn < kind.share]
    numbers_of: dict[str, int] = {}
    index = 0
    while True:
        for kind in one_round:
            number = numbers_of.get(kind.name, 0)
            numbers_of[kind.name] = number + 1
            # Kinds begin at different layouts, so that one round sees all of them.
            layout = kind.layouts[(number + KINDS.index(kind) + seed) % len(kind.layouts)]
            yield Scene(index, kind, layout, number, seed)
            index += 1
