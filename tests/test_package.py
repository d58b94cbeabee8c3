"""The shape of the package: its arrows, its one schema, what it installs, what importing costs."""

import ast
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

import npu_lowering
from npu_lowering import checks, format_cast, ops, register, schema

ROOT = Path(npu_lowering.__file__).parent
# Each module, and what of ours it may import; offdevice and converters may import from lowering.
ARROWS = {
    "version": set(),
    "schema": set(),
    "environment": set(),
    "fractal_nz": set(),
    "checks": {"schema", "fractal_nz"},
    "fake": {"checks"},
    "exact": set(),
    "native": set(),
    "cpu": {"checks", "exact", "fractal_nz", "native"},
    "decomposition": {"checks", "exact", "fractal_nz", "schema"},
    "format_cast": {"schema"},
    "ops": {"schema"},
    "autograd": {"checks", "decomposition"},
    "routing": {"schema"},
    "terms": {"checks", "fractal_nz", "ops"},
    "causes": {"fractal_nz", "schema", "terms"},
    "compare": {"causes", "checks", "terms"},
    "register": {
        "environment",
        "schema",
        "checks",
        "fake",
        "cpu",
        "decomposition",
        "autograd",
        "format_cast",
    },
    "status": {"environment", "register", "version"},
}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(node.module)
    return found


def ours(names):
    return {name.split(".")[1] for name in names if name.startswith("npu_lowering.")}


@pytest.mark.parametrize("module", ARROWS)
def test_arrows_run_one_way(module):
    assert ours(imports(ROOT / f"{module}.py")) <= ARROWS[module]


def test_every_module_has_its_arrows():
    found = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert found == set(ARROWS)


def test_nothing_in_lowering_imports_upwards():
    for path in ROOT.glob("*.py"):
        if path.stem != "__main__":
            assert not ours(imports(path)) & {"offdevice", "converters"}, path
            assert not any(name.split(".")[0] == "torchair" for name in imports(path)), path


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
    "function", [checks.check, ops.npu_grouped_matmul_finalize_routing], ids=["check", "public"]
)
def test_signatures_follow_the_schema(function):
    parsed = torch._C.parse_schema(f"{schema.NAMESPACE}::{schema.SCHEMA}")
    expected = [(a.name, a.kwarg_only, a.default_value) for a in parsed.arguments]
    assert parameters(function) == expected


@pytest.mark.parametrize("operator", register.OPERATORS, ids=lambda operator: operator.name)
def test_every_operator_is_whole(operator):
    assert operator.schema.startswith(f"{operator.name}(")
    assert register.op(operator.name).name() == operator.qualname
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
    assert names == [name for name in checks.ARGUMENTS if name in names]


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
