"""The shape of the package: its arrows, its one schema, what it installs, what importing costs."""

import importlib.metadata
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

import npu_lowering
from npu_lowering import registration
from npu_lowering.operators import format_cast
from npu_lowering.operators.grouped_matmul_finalize_routing import contract, function, schema

ROOT = Path(npu_lowering.__file__).parent


def test_the_installed_package_is_whole():
    """The package list in pyproject.toml is explicit, so a forgotten folder shows here only."""
    found = {name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "npu_lowering.")}
    assert {"npu_lowering.converters", "npu_lowering.offdevice"} <= found
    plugin = Path(importlib.util.find_spec("npu_lowering_pytest").origin).parent
    assert (ROOT / "py.typed").is_file()
    assert (plugin / "py.typed").is_file()
    assert importlib.metadata.version("npu-lowering") == npu_lowering.__version__


def parameters(function):
    return [
        (p.name, p.kind is p.KEYWORD_ONLY, None if p.default is p.empty else p.default)
        for p in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize(
    "function",
    [contract.check, function.npu_grouped_matmul_finalize_routing],
    ids=["check", "public"],
)
def test_signatures_follow_the_schema(function):
    parsed = torch._C.parse_schema(f"{schema.NAMESPACE}::{schema.SCHEMA}")
    expected = [(a.name, a.kwarg_only, a.default_value) for a in parsed.arguments]
    assert parameters(function) == expected


@pytest.mark.parametrize("operator", registration.OPERATORS, ids=lambda operator: operator.name)
def test_every_operator_is_whole(operator):
    assert operator.schema.startswith(f"{operator.name}(")
    assert registration.op(operator.name).name() == operator.qualname
    assert "CPU" in operator.kernels
    assert operator.name in npu_lowering.__all__


def test_format_cast_follows_its_schema():
    parsed = torch._C.parse_schema(f"{schema.NAMESPACE}::{schema.FORMAT_CAST_SCHEMA}")
    assert [name for name, *_ in parameters(format_cast.run)] == [a.name for a in parsed.arguments]


def test_the_dispatcher_has_our_schema(op):
    if npu_lowering.status().schema == "ours":
        assert str(op.default._schema) == str(
            torch._C.parse_schema(f"{schema.NAMESPACE}::{schema.SCHEMA}")
        )
    names = [a.name for a in op.default._schema.arguments]
    assert names == [name for name in contract.ARGUMENTS if name in names]


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
