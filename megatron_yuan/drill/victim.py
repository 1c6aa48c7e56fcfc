"""The training program with an accident waiting in it: `torchrun ... -m megatron_yuan.drill.victim ORDERS ENTRY ...`.

ORDERS is a JSON file: `root`, the folder whose write points are watched; `events`, the file to tell events in;
`launch`, a number told with each event; `orders`, a list of what shall happen. Each order has `do` and may have `rank`
and `attempt` (the launcher's count of restarts), and then holds for these alone. Points before the first durable
checkpoint do not count.

    list                             tell every write point
    die    point, when, whole        SIGKILL to this process, or with `whole` to all, when it first comes to that point
    slow   point, seconds            sleep there, once
    roomy                            claim endless free space
    nan    step, summed              a gradient that is not a number, in that step, as backward makes it or `summed`
    flip   step                      a bit of a weight turned, in that step
"""

from __future__ import annotations

import collections
import faulthandler
import json
import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_yuan.drill import sabotage
from megatron_yuan.drill.events import tell, told
from megatron_yuan.drill.points import When, WritePoints


class Victim:
    """This process, and the orders that concern it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.rank, self.attempt = int(os.environ["RANK"]), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self.events, self.launch = Path(settings["events"]), settings["launch"]
        self.orders = [
            order
            for order in settings["orders"]
            if order.get("rank", self.rank) == self.rank and order.get("attempt", self.attempt) == self.attempt
        ]
        self.root = Path(settings["root"])
        self.passed: collections.Counter[tuple[str, str]] = collections.Counter()

    def prepare(self) -> None:
        """Arrange for what is ordered."""
        self.tell("start", pid=os.getpid())
        faulthandler.register(signal.SIGUSR2, all_threads=True)  # the drill asks for it where a process does not end
        kinds = {order["do"] for order in self.orders}
        if kinds & {"list", "die", "slow"}:
            WritePoints(self.root, self.at_point).install()
        for order in self.orders:
            if order["do"] == "roomy":
                shutil.disk_usage = _claim_endless_space(shutil.disk_usage)
            if order["do"] == "nan" and order["summed"]:
                sabotage.before_gradient_norm(order["step"], sabotage.plant_nan)
            elif order["do"] == "nan":
                sabotage.spoil_backward(order["step"])
            if order["do"] == "flip":
                sabotage.before_gradient_norm(order["step"], self.flip)

    def at_point(self, when: When, point: str) -> None:
        """What happens at a write point."""
        if not (self.root / "latest").exists():
            return
        self.passed[when, point] += 1
        for order in self.orders:
            here = order.get("point") == point and order.get("when", "before") == when
            first = self.passed[when, point] == 1
            if order["do"] == "list" and first:
                self.tell("point", point=point, when=when)
            elif order["do"] == "slow" and here and first:
                self.tell("slow", point=point)
                time.sleep(order["seconds"])
            elif order["do"] == "die" and here and first:
                self.die(order.get("whole", False), point=point, when=when)

    def die(self, whole: bool, **what: str) -> None:
        """As if by the power cut of a process or of the machine."""
        self.tell("die", whole=whole, durable=(self.root / "latest").read_text().strip(), **what)
        others = told(self.events, "start", launch=self.launch, attempt=self.attempt) if whole else []
        for other in others:
            if other["pid"] != os.getpid():
                os.kill(other["pid"], signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def flip(self, optimizer: Any) -> None:
        """Turn a bit, and tell when."""
        self.tell("flip", tensor=sabotage.flip_weight(optimizer))

    def tell(self, event: str, **what: Any) -> None:
        """Tell with where it comes from."""
        tell(self.events, event, rank=self.rank, attempt=self.attempt, launch=self.launch, **what)


def _claim_endless_space(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path: real(path)._replace(free=1 << 50)


def main() -> None:
    """Prepare, then be the training program."""
    _, orders, entry, *flags = sys.argv
    Victim(json.loads(Path(orders).read_text())).prepare()
    sys.argv = [entry, *flags]
    runpy.run_path(entry, run_name="__main__")


if __name__ == "__main__":
    main()
