"""A headless browser, to open the pages that the project makes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def browsed(page: Path, profile: Path) -> tuple[str, list[str]]:
    """(the document once its scripts have run, what was said in the console) in a headless browser."""
    assert BROWSER is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    asked = ["--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *quiet, *asked, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
