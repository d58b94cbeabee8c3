"""Captures, streams and what is compiled by capturing, on a device that the CPU plays.

A device is played for the life of a process. So the tests are in files of ``played/``, each of
which runs in a process of its own, as ``pytest --npu-offdevice`` does for users.
"""

from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "played").glob("capture_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_a_played_device(file, found, python):
    del found
    config = file.parents[3] / "pyproject.toml"
    python("-m", "pytest", "-q", "--npu-offdevice", "-p", "no:cacheprovider", "-c", config, file)
