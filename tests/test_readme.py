"""The README's snippets run, and its commands are those of CI."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_snippets_run(run_python, number):
    snippet = blocks("python")[number]
    if "offdevice" in snippet:
        pytest.importorskip("google.protobuf", reason="needs the extra offdevice")
    # torch comes first in a user's file; here torch_npu is installed and CANN is not.
    run_python(snippet, env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONWARNINGS": "ignore"})


def test_ci_runs_the_test_command():
    setup, test = blocks("sh")[0].strip().splitlines()
    assert test in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "examples/" in setup
