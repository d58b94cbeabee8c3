"""The README's snippets run, and its commands are those of CI."""

import inspect
import re
from pathlib import Path

import pytest

import npu_lowering

ROOT = Path(__file__).parent.parent
README, CHINESE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
)


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def without_comments(code):
    return re.sub(r" *#.*", "", code)


def test_the_chinese_readme_has_the_same_commands_and_names():
    assert blocks("sh", CHINESE) == blocks("sh")
    chinese = {without_comments(code) for code in blocks("python", CHINESE)}
    assert chinese <= {without_comments(code) for code in blocks("python")}
    assert len(chinese) == 2
    # The first column of each table: what is called, accepted, or run.
    cells = [
        {row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| `")}
        for text in (README, CHINESE)
    ]
    assert {cell.replace("、", ", ") for cell in cells[1]} == cells[0]


def test_every_public_function_has_a_row():
    for name in npu_lowering.__all__:
        if inspect.isfunction(getattr(npu_lowering, name)):
            assert re.search(rf"^\| .*`{name}\(", README, re.M), name


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_snippets_run(run_python, number, request):
    snippet = blocks("python")[number]
    if "offdevice" in snippet:
        request.getfixturevalue("found")
    # As a reader would: where torch_npu is installed and CANN is not, nothing helps torch to load.
    run_python(snippet, env={"PYTHONWARNINGS": "ignore"})


def test_ci_runs_the_test_command():
    setup, test = blocks("sh")[0].strip().splitlines()
    assert test in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "examples/" in setup
