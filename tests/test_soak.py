"""The soak's parts work; how long it runs is for whoever runs it."""

import subprocess
import sys
from pathlib import Path


def test_a_short_one():
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--minutes", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    calls, compilations = done.stdout.splitlines()[-2:]
    assert "; grown by " in calls
    assert "KiB left by one: plain " in compilations
    assert "compilations" in done.stderr  # progress
