"""Shared by every test. npu_lowering comes first: without CANN, torch alone cannot be imported."""

import npu_lowering  # noqa: F401  isort: skip

import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

from npu_lowering.offdevice import OffDeviceError, probe

# Deterministic in the suite; the long profile looks elsewhere at each run.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "quick", max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW
)
settings.register_profile("long", max_examples=5000, deadline=None, suppress_health_check=SLOW)
settings.load_profile("quick")


# How coverage, where it runs, reaches the processes that tests start.
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core: more threads would only compete
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests that bring torch_npu into the process come last: nothing can take it out again."""
    items.sort(key=lambda item: ("torchair" in item.fixturenames, "offdevice" in item.path.parts))


# The one that Inductor takes.
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skip what needs Inductor's C++ where nothing compiles it; all else has to go without."""
    try:
        return (yield)
    except Exception as error:
        if COMPILER is None and "InvalidCxxCompiler" in f"{type(error).__name__}: {error}":
            pytest.skip("needs a C++ compiler, with which Inductor compiles for the CPU")
        raise


@pytest.fixture(autouse=True)
def _subnormals_count():
    """What Inductor of torch 2.5 compiles turns them off in the thread that loads it."""
    if sys.float_info.min / 2 == 0.0:
        torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def found():
    """The installed wheels; where they cannot be used off the device, its tests are skipped."""
    try:
        return probe.find_wheels()
    except OffDeviceError as error:
        pytest.skip(f"off-device lowering is not possible here: {error}")


@pytest.fixture
def op():
    """The operator as the dispatcher has it, looked up anew for each test."""
    return torch.ops.npu.npu_grouped_matmul_finalize_routing


@pytest.fixture
def run_python(tmp_path):
    """Runs a program in a process of its own, warnings as errors, and returns what it printed."""

    def run(program, *, env=None, code=0):
        environment = {
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "PYTHONWARNINGS": "error",
            **COVERAGE,
            **(env or {}),
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run
