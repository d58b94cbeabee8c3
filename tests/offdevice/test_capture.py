"""Captures, streams and what is compiled by capturing, on a device that the CPU plays.

A device is played for the life of a process. So the tests are in files of ``played/``, each of
which runs in a process of its own, as ``pytest --npu-offdevice`` does for users.
"""

import signal
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "played").glob("capture_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_a_played_device(file, found, python):
    del found
    config = file.parents[3] / "pyproject.toml"
    python("-m", "pytest", "-q", "--npu-offdevice", "-p", "no:cacheprovider", "-c", config, file)


CACHED = """
import sys, torch, torch_npu
sizes = [int(size) for size in sys.argv[2:]]

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 8)
        self.cached = torch.npu.npugraph_ex.inference.cache_compile(
            self.inner, cache_dir=sys.argv[1], dynamic=len(set(sizes)) > 1)

    def inner(self, x):
        return torch.softmax(self.layer(x), -1)

model = Model()
with torch.no_grad():
    for size in sizes:
        x = torch.randn(size, 8)
        assert torch.equal(model.cached(x), model.inner(x))
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.parametrize("sizes", [[4, 4, 4], [4, 7, 2, 7]])
def test_what_was_compiled_is_taken_from_the_cache_in_another_process(
    sizes, found, python, tmp_path
):
    del found
    script, cache = tmp_path / "script.py", tmp_path / "compiled"
    script.write_text(CACHED)
    compiled = []
    for _ in range(2):
        output, _ = python("-W", "ignore", "-m", "npu_lowering", "run", script, cache, *sizes)
        compiled.append(int(output.split()[-1]))
    assert compiled == [1, 0]


def test_a_process_that_has_compiled_ends_at_a_signal(found, python, tmp_path):
    """Npugraph_ex takes signals for itself where it is imported, and then nothing ends it."""
    del found
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, torch\n"
        "print(torch.compile(lambda x: x + 1, backend='npugraph_ex')(torch.ones(2)).tolist())\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    python("-W", "ignore", "-m", "npu_lowering", "run", script, code=-signal.SIGTERM)
