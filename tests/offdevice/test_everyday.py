"""What people do with torch every day comes out the same in every state of the process.

The states are plain torch; after install(); under ``python -m npu_lowering run``; and in pytest
with ``--npu-offdevice``. Each is one process, which plays every snippet.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from versions import TORCH

pytestmark = pytest.mark.usefixtures("found")

FOLDER = Path(__file__).parent / "everyday"
PLAY = FOLDER / "play.py"
NAMES = re.findall(r"^@snippet\ndef (\w+)", (FOLDER / "snippets.py").read_text("utf-8"), re.M)
# What is to differ where an NPU is played.
OF_THE_DEVICE = {
    "accelerator": ["device(type='npu')", "True", "1"],
    "pinned_memory": "False",  # there is something to pin memory for, and a copy is what it gives
}
PROJECT = """
import json
import sys
from pathlib import Path

sys.path.insert(0, {folder!r})
sys.argv[1:] = []
import play

def test_everything():
    Path({output!r}).write_text(json.dumps(play.play(list(play.snippets.SNIPPETS))))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, warm):
    """By state, what each snippet came to, and how the process ended; all run at once."""
    folder = tmp_path_factory.mktemp("everyday")
    project = folder / "test_everything.py"
    project.write_text(PROJECT.format(folder=str(FOLDER), output=str(folder / "pytest.json")))
    commands = {
        "plain": [PLAY, "plain", folder / "plain.json"],
        "install": [PLAY, "install", folder / "install.json"],
        "run": ["-m", "npu_lowering", "run", PLAY, "run", folder / "run.json"],
        "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--npu-offdevice", project],
    }
    running = {}
    for state, command in commands.items():
        passed = {k: v for k, v in os.environ.items() if k.startswith(("PYTHONPATH", "COVERAGE_"))}
        environment = {
            **passed,
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "PATH": os.environ["PATH"],
            "TORCHINDUCTOR_CACHE_DIR": str(folder / f"compiled-{state}"),
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "XDG_CACHE_HOME": str(warm),
        }
        running[state] = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    found = {}
    try:
        for state, process in running.items():
            output, _ = process.communicate(timeout=900)
            assert process.returncode == 0, f"{state}: exit {process.returncode}\n{output}"
            found[state] = json.loads((folder / f"{state}.json").read_text())
    finally:
        for process in running.values():
            process.kill()
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", ["install", "run", "pytest"])
def test_as_in_plain_torch(name, state, outcomes):
    plain, here = outcomes["plain"][name], outcomes[state][name]
    if state != "install" and name in OF_THE_DEVICE:
        plain = {**plain, "outcome": OF_THE_DEVICE[name]}
    assert here["outcome"] == plain["outcome"]
    assert set(here["warnings"]) <= set(plain["warnings"])


def test_there_are_enough_of_them(outcomes):
    assert len(NAMES) >= 50
    assert list(outcomes["plain"]) == NAMES
    failed = [name for name, came in outcomes["plain"].items() if came["outcome"][:1] == ["raised"]]
    assert not failed or TORCH < (2, 13)  # which lacks what they show


ENDINGS = {
    "an error": "raise ValueError('mine')",
    "a warning": "import warnings; warnings.warn('mine', stacklevel=1)",
    "a code": "import sys; sys.exit(7)",
}


@pytest.mark.parametrize("text", ENDINGS.values(), ids=ENDINGS)
def test_a_process_ends_as_in_plain_torch(text, start):
    """Importing torch_npu alone adds a line to what an error prints."""
    seen = []
    for first in ("import torch", "from npu_lowering import offdevice; offdevice.install()"):
        process = start("-c", f"{first}\n{text}", env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
        seen.append((*process.communicate(timeout=120), process.returncode))
    assert seen[1] == seen[0]
