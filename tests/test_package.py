"""The shape of the package: its arrows, its one schema, what it installs, what importing costs."""

import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import types
from pathlib import Path

import operators_page

import npu_lowering

ROOT = Path(npu_lowering.__file__).parent
REPOSITORY = Path(__file__).parent.parent


def folders():
    """The packages that the folders of the repository make, by their names."""
    places = {"npu_lowering": "lowering", "npu_lowering.converters": "converters"}
    found = {"npu_lowering_pytest"}
    for package, folder in places.items():
        for path in (REPOSITORY / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(REPOSITORY / folder).parts
            if "pytest_plugin" not in parts:
                found.add(".".join([package, *parts]))
    return found


def test_the_package_list_is_that_of_the_folders():
    """It is explicit in pyproject.toml: a forgotten folder would be missed only once installed."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^\[tool.setuptools\]\npackages = \[(.*?)\]", text, flags=re.M | re.S)
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == folders()


def test_every_installed_module_imports(run_python):
    """Each is there, and none needs anything but torch; TorchAIR's converters need TorchAIR."""
    plugin = Path(importlib.util.find_spec("npu_lowering_pytest").origin).parent
    assert (ROOT / "py.typed").is_file()
    assert (plugin / "py.typed").is_file()
    assert importlib.metadata.version("npu-lowering") == npu_lowering.__version__
    run_python("""
import importlib, pkgutil, npu_lowering
names = {name for _, name, _ in pkgutil.walk_packages(npu_lowering.__path__, "npu_lowering.")}
assert len(names) > 50, names
for name in sorted(names):
    if not name.startswith("npu_lowering.converters") and name != "npu_lowering.__main__":
        importlib.import_module(name)
""")


def test_no_module_hides_behind_a_function():
    """``import npu_lowering.X as m`` gives a module, and ``npu_lowering.X`` the same."""
    for _, name, _ in pkgutil.iter_modules([str(ROOT)]):
        found = getattr(npu_lowering, name, None)
        assert found is None or isinstance(found, types.ModuleType), name
    from npu_lowering import offdevice

    for _, name, _ in pkgutil.iter_modules(offdevice.__path__):
        found = vars(offdevice).get(name)
        assert found is None or isinstance(found, types.ModuleType), name


def test_the_page_of_operators_is_that_of_the_records():
    written = (REPOSITORY / "docs" / "operators.md").read_text(encoding="utf-8")
    assert written == operators_page.page(), (
        "run: python tests/operators_page.py > docs/operators.md"
    )


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
