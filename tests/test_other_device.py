"""The operators on a device that is neither CPU nor NPU: tests/other_device/device.cpp."""

import json
import subprocess
from pathlib import Path

import pytest
from operators import TESTED
from other_device import build
from versions import TORCH

# Its values are notes of storages, which stay where they were made.
NOTED = ("npu_format_cast.Tensor",)
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
