"""The README's snippets run and print what they say, and its commands are those of CI."""

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
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
    return re.sub(r" *# (?!->).*", "", code)


def headings(text):
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"^#+", text, re.M)


def quoted_in_tables(text):
    """What stands between backticks in each row of each table."""
    return [re.findall(r"`[^`]+`", row) for row in text.splitlines() if row.startswith("|")]


def test_the_chinese_readme_is_equal():
    assert headings(CHINESE) == headings(README)
    assert blocks("sh", CHINESE) == blocks("sh")
    ours, theirs = (list(map(without_comments, blocks("python", t))) for t in (README, CHINESE))
    assert ours == theirs
    assert quoted_in_tables(CHINESE) == quoted_in_tables(README)
    assert len(quoted_in_tables(README)) > 10


def test_each_readme_links_the_other_at_the_top():
    assert "](README.zh-CN.md)" in README.splitlines()[2]
    assert "](README.md)" in CHINESE.splitlines()[2]


def test_lowering_has_its_chinese_name():
    """What sinks is a task, to the device; a graph is entered."""
    assert "下沉" not in CHINESE
    assert "入图" in CHINESE
    assert "Ascend IR" in CHINESE


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150


def test_every_public_function_has_a_row():
    rows = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in npu_lowering.__all__:
        if inspect.isfunction(getattr(npu_lowering, name)):
            assert re.search(rf"^\| .*`{name}\(", rows, re.M), name


COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def output_of(*arguments, cwd):
    """What python prints to standard output in a fresh shell."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={"HOME": str(cwd), "PATH": os.environ["PATH"], **COVERAGE},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


SNIPPETS = [code for code in blocks("python") if "def test_" not in code]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_print_what_they_say(snippet, tmp_path, request):
    """As a reader would: where torch_npu is installed without CANN, nothing helps torch to load."""
    if "offdevice" in snippet:
        request.getfixturevalue("found")
    output = output_of("-c", snippet, cwd=tmp_path)
    assert output.splitlines() == re.findall(r"^# -> (.*)", snippet, re.M)
    assert output


@pytest.mark.usefixtures("found")
def test_the_snippet_of_a_test_passes(tmp_path):
    (snippet,) = (code for code in blocks("python") if "def test_" in code)
    (tmp_path / "test_snippet.py").write_text(snippet)
    assert "1 passed" in output_of("-m", "pytest", "--npu-offdevice", "-q", cwd=tmp_path)


def test_there_are_two_commands_and_the_second_is_of_ci():
    setup, test = (block.strip() for block in blocks("sh"))
    assert "\n" not in setup + test
    assert test in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (example,) = re.findall(r"examples/\S+", setup)
    assert (ROOT / example).is_file()


def test_the_commands_leave_no_file_for_git():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git, and a clone")
    for file in ("graph.html", ".venv/bin/python", "build/lib/x.py"):
        done = subprocess.run([git, "check-ignore", "-q", file], cwd=ROOT, check=False)
        assert done.returncode == 0, file


def test_the_recipes_are_those_that_are_advised():
    advice = runpy.run_path(str(ROOT / "lowering" / "errors.py"))
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| (\S+) \| `(pip .*)` \|$", page, re.M)
    expected = [(torch, npu, advice["recipe"](torch)) for torch, npu in advice["PAIRS"].items()]
    assert rows == expected


def test_the_link_targets_are_in_the_sdist(tmp_path):
    """And the tests: who gets the package's source gets all of it."""
    setuptools = pytest.importorskip("setuptools", reason="needs setuptools, to make an sdist")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77, to make an sdist")
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "*cache*", "*.so"),
    )
    program = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    made = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    )
    archive = tmp_path / made.stdout.splitlines()[-1]
    shutil.unpack_archive(archive, tmp_path / "out")
    (root,) = (tmp_path / "out").iterdir()
    for text in (README, CHINESE):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (root / target).exists(), target
    for file in ("tests/offdevice/conftest.py", "tests/data", "lowering/csrc", ".ci/run"):
        assert (root / file).exists(), file
