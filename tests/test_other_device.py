"""The operators on a device that is neither CPU nor NPU: tests/other_device/device.cpp."""

import json
import subprocess
from pathlib import Path

import pytest
from operators import TESTED
from other_device import build, where
from versions import TORCH

# Its values are notes of storages, which stay where they were made.
NOTED = ("npu_format_cast.Tensor",)
needs_export = pytest.mark.skipif(TORCH < (2, 6), reason="torch.export is tested from torch 2.6")
PLAY = Path(build.__file__).with_name("play.py")
PORTABLE = {name for name, record in TESTED.items() if record.operator.portable is not None}
WITH_VALUES = {name for name in PORTABLE if TESTED[name].value_errors and name not in NOTED}


@pytest.fixture(scope="session")
def library(request):
    if build.compiler() is None:
        pytest.skip("a device of C++ needs a C++ compiler, and there is none here")
    if TORCH < (2, 6):
        pytest.skip("the C++ of this device is that of torch 2.6 and newer")
    try:
        return build.library(request.config.cache.mkdir("other_device"))
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error}\n{error.stderr}")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("eager", PORTABLE),
        ("inference_mode", PORTABLE),
        ("autocast", PORTABLE),
        ("gradients", PORTABLE),
        ("values", WITH_VALUES),
        ("devices", PORTABLE),
        ("unchecked", PORTABLE),
        ("compile_eager", PORTABLE),
        ("compile_eager_dynamic", PORTABLE),
        ("compile_aot_eager", PORTABLE),
        ("compile_aot_eager_dynamic", PORTABLE),
    ],
)
def test_every_operator(library, run_python, kind, expected):
    program = f"import runpy, sys; sys.argv = ['play', {str(library)!r}, {kind!r}]; "
    program += f"runpy.run_path({str(PLAY)!r}, run_name='__main__')"
    printed = run_python(program, env={"PYTHONWARNINGS": "ignore"})
    found = json.loads(printed.splitlines()[-1])
    assert found["problems"] == {}
    assert set(found["ran"]) == expected


def test_every_operator_has_a_portable_kernel():
    assert set(TESTED) == PORTABLE


# The table of what runs where


def table():
    """Of docs/reference.md: a row a device, a cell a kind."""
    text = (Path(__file__).parent.parent / "docs" / "reference.md").read_text(encoding="utf-8")
    section = text.split("## Where the operators run")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert rows[0][1:] == list(where.KINDS)
    return {row[0]: dict(zip(where.KINDS, row[1:])) for row in rows[2:]}


def test_the_table_has_every_device():
    assert [*table()] == ["CPU", "meta", "any other (CUDA, XPU, PrivateUse1)"]


@needs_export
@pytest.mark.parametrize("device", ["CPU", "meta"])
def test_the_table_of_what_runs_where(device):
    assert where.row(device.lower()) == table()[device]


@needs_export
def test_the_table_of_what_runs_on_another_device(library, run_python):
    program = f"import runpy, sys; sys.argv = ['play', {str(library)!r}, 'where']; "
    program += f"runpy.run_path({str(PLAY)!r}, run_name='__main__')"
    printed = run_python(program, env={"PYTHONWARNINGS": "ignore"})
    (other,) = (row for device, row in table().items() if device.startswith("any other"))
    assert json.loads(printed.splitlines()[-1]) == other
