"""The pages quote messages that exist, and snippets and links that hold."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest
from errors import ERRORS, VALUE_ERRORS
from versions import TORCH

import npu_lowering

ROOT = Path(__file__).parent.parent
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), flags=re.M)
OURS = ("From the operator", "From lowering", "From the environment")
# Messages of torch, torch_npu and TorchAIR, which are quoted as they print them.
THEIRS = ("(TorchAIR)", "(torch_npu)", "Failed to load the backend", "libhccl.so", "anything else")


def quoted():
    for section in SECTIONS[1:]:
        if section.startswith(OURS):
            for line in section.splitlines():
                if line.startswith("| ") and not any(text in line for text in THEIRS):
                    yield from re.findall(r"`([^`]+)`", line.split("|")[1])


@functools.cache
def sources():
    """Every message, as it is written: adjacent literals joined."""
    files = [path for f in ("lowering", "converters") for path in (ROOT / f).rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    messages = [bad.message for bad in {**ERRORS, **VALUE_ERRORS}.values()]
    return re.sub(r'"\s*\n\s*f?"', "", text) + "\n".join(messages)


@pytest.mark.parametrize("text", [*quoted()])
def test_quoted_messages_exist(text):
    for part in text.split("..."):
        assert part.strip() in sources(), part


def test_there_are_messages_to_check():
    assert len([*quoted()]) > 15


@pytest.mark.parametrize(
    "page",
    [
        "CHANGELOG.md",
        "README.md",
        "README.zh-CN.md",
        "docs/CONTRIBUTING.md",
        "docs/capture.md",
        "docs/errors.md",
        "docs/numerics.md",
        "docs/reference.md",
        "docs/speed.md",
        "docs/versions.md",
    ],
)
def test_links_hold(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


# The guide for a second operator: what it names between backticks is there.

GUIDE = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", GUIDE, flags=re.S)
NAMED = sorted(set(re.findall(r"`([^`]+)`", PROSE)))
# A variable that torch reads.
ELSEWHERE = ("TORCH_DEVICE_BACKEND_AUTOLOAD",)
# Where the guide's bare names are defined: the record, the list, what tests have, the converters.
HOMES = ("operator", "__init__", "operators", "conftest")


@functools.cache
def defined():
    """What Python files define, by stem: functions, classes, arguments, constants, fields."""
    found = {}
    for folder in ("lowering", "converters", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            names = found.setdefault(path.stem, set())
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    names.add(node.name)
                elif isinstance(node, ast.arg):
                    names.add(node.arg)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.add(node.id)
    return found


def exists(name):
    """A command's file; a file or folder; module.name of a file here; or a name of the homes."""
    name = name.removeprefix("python ")
    if "/" in name or name.endswith((".md", ".toml")):
        path = ROOT / name
        return (path.parent if path.stem == "NAME" else path).exists()
    if "." in name:
        module, _, attribute = name.removesuffix("()").rpartition(".")
        return attribute in (defined().get(module, ()) or vars(npu_lowering))
    return any(name in defined().get(home, ()) for home in HOMES)


@pytest.mark.parametrize("name", [n for n in NAMED if not n.startswith("torch_npu/")])
def test_what_the_guide_names_exists(name):
    assert exists(name) or name in ELSEWHERE, name


@pytest.mark.parametrize("name", [n for n in NAMED if n.startswith("torch_npu/")])
def test_the_files_of_torch_npu_that_the_guide_names_exist(name):
    spec = importlib.util.find_spec("torch_npu")
    if spec is None or TORCH < (2, 13):
        pytest.skip("needs torch_npu 2.13.0, whose files the guide names")
    (folder,) = spec.submodule_search_locations
    assert (Path(folder).parent / name).exists()


def test_the_guide_names_enough_and_its_commands_name_files():
    assert len(NAMED) > 30
    commands = "".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.S))
    files = re.findall(r"tests/\S+", commands)
    assert files
    assert all((ROOT / file).is_file() for file in files)
