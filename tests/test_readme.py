"""The README's snippets run, and its commands are those of CI."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_snippets_run(run_python):
    assert blocks("python")
    for snippet in blocks("python"):
        # torch comes first in a user's file; here torch_npu is installed and CANN is not.
        run_python(snippet, env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})


def test_ci_runs_the_test_command():
    setup, test = blocks("sh")[0].strip().splitlines()
    assert test in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "examples/" in setup
