"""What a process says of its NPU: plain, after install(), under run, and in pytest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from versions import TORCH

from npu_lowering.offdevice.process import refusals

pytestmark = pytest.mark.usefixtures("found")

STATES = Path(__file__).parent / "states.py"
REFUSED = ["raised", "OffDeviceError", refusals.NO_DEVICE]


def gave(value):
    return ["gave", value]


def not_played(name):
    return ["raised", "OffDeviceError", refusals.NOT_PLAYED.format(name)]


# Question: after install(), and where an NPU is played (by run and by the pytest plugin).
TABLE = {
    "torch.npu.is_available()": (gave(False), gave(True)),
    "torch.npu.device_count()": (gave(0), gave(1)),
    "torch.accelerator.current_accelerator()": (gave("None"), gave("npu")),
    "torch.accelerator.is_available()": (gave(False), gave(True)),
    "x.npu()": (REFUSED, gave([1, 1])),
    "x.to('npu:0')": (REFUSED, gave([1, 1])),
    "x.to(0)": (REFUSED, gave([1, 1])),
    "module.npu()": (REFUSED, gave([1, 1])),
    "module.to('npu')": (REFUSED, gave([1, 1])),
    "torch.ones(2, device='npu')": (REFUSED, gave([1, 1])),
    "torch.tensor([1], device='npu')": (REFUSED, gave([1])),
    "torch.autocast('npu')": (REFUSED, gave("entered")),
    "current_device()": (REFUSED, gave(0)),
    "set_device(0)": (REFUSED, gave(None)),
    "synchronize()": (REFUSED, gave(None)),
    "Stream()": (REFUSED, gave(True)),
    "current_stream()": (REFUSED, gave(True)),
    "NPUGraph()": (REFUSED, gave([4, 4])),
    "hccl": (REFUSED, not_played("the backend hccl")),
    "get_soc_version()": (gave(223), gave(223)),
    "get_device_properties(0)": (REFUSED, gave(True)),
    "record_stream": (REFUSED, gave(None)),
    "is_bf16_supported()": (REFUSED, gave(True)),
    "torch_npu.profiler.profile": (REFUSED, gave(1)),
    "torch.accelerator": (REFUSED, gave([[1, 1], 0])),
    "random numbers": (REFUSED, gave(True)),
    "amp": (REFUSED, gave(["torch.bfloat16", True, 65536])),
    "traced": (gave([1]), gave([3])),
    "lowered": (gave([[2, 2], ["Add"]]), gave([[2, 2], ["Add"]])),
    "torch.load(map_location='npu')": (
        "torch.npu.is_available() is False",  # torch's own, which says what to do
        gave([1, 1]),
    ),
    # What Dynamo wraps is seen by what it has in it.
    "npugraph_ex": (refusals.NO_DEVICE, gave([2, 2])),
}
PROJECT = """
import json
import states

def test_it():
    json.dump(states.ask_all(), open({output!r}, "w"))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory, warm):
    """By state; the processes run at once."""
    folder = tmp_path_factory.mktemp("states")
    (folder / "test_it.py").write_text(PROJECT.format(output=str(folder / "answers.json")))
    commands = {
        "plain": [STATES],
        "install": [STATES],
        "run": ["-m", "npu_lowering", "run", STATES],
        "pytest": ["-m", "pytest", "-p", "no:cacheprovider", "--npu-offdevice", "test_it.py"],
    }
    running = {}
    for state, command in commands.items():
        passed = {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}
        running[state] = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={
                **passed,
                "HOME": str(folder),
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(STATES.parent),
                "STATE": state,
                "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
                "XDG_CACHE_HOME": str(warm),
            },
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ended = {state: process.communicate(timeout=300) for state, process in running.items()}
    found = {}
    for state, (output, errors) in ended.items():
        assert running[state].returncode == 0, f"{state}: {output}\n{errors}"
        if state == "pytest":
            output = (folder / "answers.json").read_text()
        found[state] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.parametrize("question", TABLE)
@pytest.mark.parametrize("state", ["install", "run", "pytest"])
def test_the_answer(question, state, answers):
    expected = TABLE[question][state != "install"]
    answer = answers[state][question]
    if question.startswith("torch.accelerator") and TORCH < (2, 6):
        assert answer[:2] == ["raised", "AttributeError"]  # this torch has none
    elif isinstance(expected, str):
        assert answer[0] == "raised"
        assert expected in answer[2]
    else:
        assert answer == expected


def test_every_question_has_an_answer(answers):
    assert all(set(here) == set(TABLE) for here in answers.values())


def test_plain_torch_knows_nothing_of_it(answers):
    plain = answers["plain"]
    assert plain["x.npu()"][1] == "AttributeError"
    assert plain["torch.ones(2, device='npu')"][1] == "RuntimeError"
    assert plain["torch.accelerator.is_available()"] == gave(False) or TORCH < (2, 6)


def test_the_sentence_is_one():
    assert "\n" not in refusals.NO_DEVICE
    for column in ("npu_lowering run SCRIPT", "pytest --npu-offdevice"):
        assert column in refusals.NO_DEVICE


KEPT = """
import os
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import importlib, multiprocessing.reduction, sys, warnings
from npu_lowering import offdevice
from npu_lowering.offdevice.process import plain
for name in plain._CHANGED:
    importlib.import_module(name)
import torch
sys.modules["torch.of_no_release"] = None
before = plain._snapshot()
state = lambda: (sys.excepthook, warnings.showwarning, list(warnings.filters))
rest, reducers = state(), dict(multiprocessing.reduction.ForkingPickler._extra_reducers)
offdevice.install()
import torch_npu
changed = [
    (getattr(owner, "__name__", owner), name)
    for owner, attributes in before
    for name, value in attributes.items()
    if plain._is_theirs(vars(owner).get(name)) and not plain._is_theirs(value)
]
assert changed == [], changed
assert state() == rest
now = multiprocessing.reduction.ForkingPickler._extra_reducers
assert {key: now[key] for key in reducers} == reducers
# Several kinds of what torch_npu puts there are known as such.
assert plain._is_theirs(torch.nn.Module.cast_weight) and plain._is_theirs(torch_npu.npu.Stream)
assert not plain._is_theirs(torch.nn.Module.to) and not plain._is_theirs(None)
"""


def test_torch_has_its_own_functions_back(python):
    python("-c", KEPT)
