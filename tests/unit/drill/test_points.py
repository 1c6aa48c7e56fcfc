"""What a process does to the disk below a folder is seen, call by call, under names that every save shares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, sys
from pathlib import Path
from megatron_yuan.drill.points import WritePoints

root, seen = Path(sys.argv[1]), []
def act(when, point):
    seen.append(f"{when} {point}")
    if when == "midway":
        seen.append(f"{(root / 'iter_0000010.tmp-ab12/f').stat().st_size} bytes")
WritePoints(root, act).install()
folder = root / "iter_0000010.tmp-ab12"
folder.mkdir()
with open(folder / "f", "xb") as file:
    file.write(b"12345678")
    file.flush()
    os.fsync(file.fileno())
os.rename(folder, root / "iter_0000010")
descriptor = os.open(root, os.O_RDONLY)
os.fsync(descriptor)
(root / "iter_0000010" / "f").unlink()
(root.parent / "elsewhere").write_text("unseen")
open(root.parent / "elsewhere").close()
print("\\n".join(seen))
"""


def test_calls_are_seen_before_midway_and_after_and_elsewhere_is_not(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "before mkdir iter.tmp",
        "after mkdir iter.tmp",
        "before open iter.tmp/f",
        "after open iter.tmp/f",
        "midway write iter.tmp/f",
        "4 bytes",
        "before fsync iter.tmp/f",
        "after fsync iter.tmp/f",
        "before rename iter.tmp -> iter",
        "after rename iter.tmp -> iter",
        "before fsync . with rename iter.tmp -> iter",
        "after fsync . with rename iter.tmp -> iter",
        "before unlink iter/f",
        "after unlink iter/f",
    ]
