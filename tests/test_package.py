"""The shape of the package: its arrows, its one schema, what it installs, what importing costs."""

import importlib.metadata
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import npu_lowering

ROOT = Path(npu_lowering.__file__).parent


def test_the_installed_package_is_whole():
    """The package list in pyproject.toml is explicit, so a forgotten folder shows here only."""
    found = {name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "npu_lowering.")}
    assert {"npu_lowering.converters", "npu_lowering.offdevice"} <= found
    plugin = Path(importlib.util.find_spec("npu_lowering_pytest").origin).parent
    assert (ROOT / "py.typed").is_file()
    assert (plugin / "py.typed").is_file()
    assert importlib.metadata.version("npu-lowering") == npu_lowering.__version__


def test_public_names_are_documented():
    for name in npu_lowering.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(npu_lowering, name)), name


def test_importing_is_light(run_python):
    program = """
import os, sys
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch
before = set(sys.modules)
import npu_lowering
added = {name.split(".")[0] for name in set(sys.modules) - before}
heavy = added & {"torch_npu", "torchair", "numpy", "scipy", "google", "packaging"}
assert not heavy, heavy
assert not any(name.startswith("npu_lowering.offdevice") for name in sys.modules)
"""
    run_python(program)
