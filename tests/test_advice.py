"""What this package advises to install: for the torch that is here, and never another torch."""

import importlib.metadata
import re
import runpy
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from npu_lowering import environment, errors

ROOT = Path(__file__).parent.parent
REQUIRED = [Requirement(text) for text in importlib.metadata.requires("npu-lowering")]
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64"}
ELSEWHERE = ({"sys_platform": "darwin"}, {"sys_platform": "win32"})


def extra(name, system=LINUX):
    """What an extra installs, and nothing else does."""
    found = set()
    for each in REQUIRED:
        without = each.marker is None or each.marker.evaluate({**system, "extra": ""})
        if not without and each.marker.evaluate({**system, "extra": name}):
            found.add(f"{each.name}{each.specifier}")
    return found


def test_extras_are_flat():
    """The pips of 2023 cannot resolve an extra that names another of the same project."""
    assert not [
        str(each) for each in REQUIRED if re.sub("[-_.]+", "-", each.name) == "npu-lowering"
    ]
    assert extra("offdevice") | extra("graph") < extra("test")


def test_extras_bring_what_is_advised():
    main = errors.MAIN
    advised = {f"torch=={main}", errors.torch_npu_for(main), *errors.requirements(main).values()}
    assert extra("offdevice") == advised


@pytest.mark.parametrize("system", ELSEWHERE)
@pytest.mark.parametrize("name", ["offdevice", "test"])
def test_without_linux_there_is_no_torch_npu(name, system):
    assert extra(name) - extra(name, system) == {
        f"torch=={errors.MAIN}",
        errors.torch_npu_for(errors.MAIN),
    }


def test_torch_is_required_everywhere():
    assert [each for each in REQUIRED if each.marker is None] == [Requirement("torch>=2.1")]


@pytest.mark.parametrize("torch", errors.PAIRS)
def test_no_advice_moves_torch(torch):
    """torch_npu comes without what it declares; what comes with it declares nothing."""
    for said in (
        errors.missing(["torch_npu", *errors.requirements(torch)], f"{torch}+cu130"),
        errors.missing(["yaml"], torch),
        errors.mismatch(torch, "2.0.1"),
    ):
        _, _, command = said.rpartition("run: ")
        words = shlex.split(command)
        assert words[:2] == ["pip", "install"]
        assert ("--no-deps" in words) == (f"torch_npu=={errors.PAIRS[torch]}" in words)
        named = [Requirement(word).name for word in words[2:] if not word.startswith("--")]
        assert "torch" not in named, said


def test_a_recipe_is_of_its_torch():
    assert errors.recipe("2.9.0") == (
        "pip install torch==2.9.0 && pip install --no-deps torch_npu==2.9.0.post9 numpy packaging "
        "'protobuf>=4' pyyaml"
    )
    assert errors.recipe("2.5.1").endswith("numpy packaging 'protobuf>=4' pyyaml 'setuptools<81'")
    assert "'numpy<2'" in errors.recipe("2.1.0")


@pytest.mark.parametrize(
    ("torch", "torch_npu", "known"),
    [("2.13.0+cpu", "2.13.0", True), ("2.9.0", "2.9.0", False), ("2.15.0", "2.15.0", False)],
)
def test_pairs_that_are_known(torch, torch_npu, known):
    assert errors.is_known(torch, torch_npu) == known


def test_a_torch_that_has_no_torch_npu_is_left_alone():
    for said in (errors.missing(["torch_npu"], "2.15.0"), errors.mismatch("2.15.0", "2.14.0")):
        assert "in an environment of its own run: pip install torch==2.13.0 && " in said


def test_what_is_imported_is_what_is_advised():
    """Each module is here, or in none of the distributions that are."""
    for module in errors.requirements(errors.MAIN):
        assert environment.find(module) is not None, module


def test_nobody_is_told_to_install_a_project_that_is_not_there():
    """An unclaimed name in a command is an invitation to whoever claims it."""
    files = [
        path
        for pattern in ("*.md", "docs/*.md", "lowering/**/*.py", "converters/*.py")
        for path in ROOT.glob(pattern)
    ]
    assert len(files) > 50
    for path in files:
        text = path.read_text("utf-8")
        assert not re.search(r"npu-lowering\[|pip install (-\S+ )*.?npu[-_]lowering", text), path


def test_errors_is_plain_python():
    """noxfile.py runs it without the package, and so without torch."""
    assert runpy.run_path(str(ROOT / "lowering" / "errors.py"))["PAIRS"] == errors.PAIRS
