"""Killing the right process, or none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from megatron_yuan.parallel.watch.identity import Identity, _started


def test_a_process_is_killed_by_its_identity_and_not_one_that_got_its_number_later():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        identity = replace(Identity.here(), pid=sleeper.pid, started=_started(sleeper.pid))
        assert not replace(identity, started=str(int(identity.started) - 1)).kill()
        assert not replace(identity, started="").kill()
        assert sleeper.poll() is None
        assert identity.kill()
        assert sleeper.wait(10) == -9
        assert not identity.kill()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_processes_are_beside_each_other_on_one_boot_of_one_host_alone():
    here = Identity.here()
    assert here.beside(replace(here, pid=1))
    assert not here.beside(replace(here, host="elsewhere"))
    assert not here.beside(replace(here, place=("another boot", *here.place[1:])))
