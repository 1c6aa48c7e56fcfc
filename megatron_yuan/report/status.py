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

from megatron_yuan.errors import will_recur
from megatron_yuan.log import logger

State = Literal["running", "done", "requeue", "failed"]


def write_status(path: Path, state: State, reason: str, step: int) -> None:
    """Replace the file `path` in one go; readers find the old status or the new."""
    record = {"state": state, "reason": reason, "step": step, "pid": os.getpid(), "host": os.uname().nodename}
    text = json.dumps({**record, "time": round(time.time(), 3)}) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        _write_over(path, text, error)


def _write_over(path: Path, text: str, why: OSError) -> None:
    """On a full disk the old status's own blocks hold the new one; without any, the run's end is not to be buried."""
    try:
        with open(path, "r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()
    except OSError:
        logger.warning("%s cannot be written (%s); launch scripts will take the session for killed", path, why.strerror)


def state_after(error: BaseException) -> State:
    """What a session that `error` ended is to be called."""
    return "failed" if will_recur(error) else "requeue"
