"""status.json: how the newest session of a run stands or ended, for launch scripts to read.

running   at work; found after the processes ended, it says that they were killed
done      the last step of the run is saved: never start it again
requeue   stopped in good order, or by a fault that another start may not meet: the same command goes on
failed    by what another start would meet again: a setting, the data, a loss that is not finite; a human has to look
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Literal

from megatron_yuan.errors import ParallelError, YuanError

State = Literal["running", "done", "requeue", "failed"]


def write_status(path: Path, state: State, reason: str, step: int) -> None:
    """Replace the file `path` in one go; readers find the old status or the new."""
    record = {"state": state, "reason": reason, "step": step, "pid": os.getpid(), "host": os.uname().nodename}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps({**record, "time": round(time.time(), 3)}) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def state_after(error: BaseException) -> State:
    """What a session that `error` ended is to be called."""
    will_happen_again = isinstance(error, YuanError) and not isinstance(error, ParallelError)
    return "failed" if will_happen_again else "requeue"
