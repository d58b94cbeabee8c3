"""Shared by the tests of what runs without a device."""

import os
import subprocess
import sys

import ge_models
import pytest

# What started processes get of this one's environment, besides PATH.
PASSED = ("PYTHONPATH", "COVERAGE_")


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """A cache that all tests which do not test the cache share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def torchair(found, warm):
    """TorchAIR in this process, from here on; the tests that ask for it come last."""
    del found
    return ge_models.install(warm)


@pytest.fixture
def start(tmp_path, warm):
    """Starts python with an environment of its own, and gives the process.

    The environment is minimal: nothing of the user's, and a home that is empty.
    """
    running = []

    def start(*arguments, env=None, cwd=tmp_path):
        environment = {
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "XDG_CACHE_HOME": str(warm),
            **{name: os.environ[name] for name in os.environ if name.startswith(PASSED)},
            **(env or {}),
        }
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def python(start):
    """Runs python to its end, expects an exit code, and gives its output and its errors."""

    def run(*arguments, code=0, stdin="", **kwargs):
        process = start(*arguments, **kwargs)
        output, errors = process.communicate(stdin, timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{output}\n{errors}"
        return output, errors

    return run
