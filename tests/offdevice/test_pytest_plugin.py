"""The pytest plugin, in a project that is not this one."""

import importlib.metadata
import re

import pytest
from processes import LIGHT
from versions import TORCH

CONFTEST = """
import torch_npu
import torchair
"""
MODEL = """
import warnings

import pytest
import torch
import torch_npu
import torchair


def model(rows):
    return torch_npu.npu_grouped_matmul_finalize_routing(
        torch.ones(rows, 64, dtype=torch.int8),
        torch.ones(1, 64, 32, dtype=torch.int8),
        torch.tensor([rows]),
        scale=torch.ones(1, 32),
        row_index=torch.arange(rows),
    )


@pytest.mark.parametrize("rows", [2, 3])
def test_lowered(npu_backend, lowered_graph, rows):
    out = torch.compile(model, backend=npu_backend)(rows)
    assert torch.equal(out, torch.full((rows, 32), 64.0))
    (node,) = lowered_graph().nodes_of("GroupedMatmulFinalizeRouting")
    assert node.outputs[0].shape == (rows, 32)
    assert len(lowered_graph.graphs) == 1


def test_a_backend_of_its_own(lowered_graph):
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.ones(3))
    assert lowered_graph().nodes_of("Add")


def test_what_is_not_lowered_is_not_seen(lowered_graph):
    with pytest.raises(RuntimeError, match="no graph was lowered here yet: call a model"):
        lowered_graph()


def test_eager():
    assert model(2)[1, 31] == 64


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_what_torch_says_of_torch(category):
    warnings.warn("`torch.jit.script_method` is deprecated.", category)
"""
PROJECT = {"conftest.py": CONFTEST, "test_model.py": MODEL}
# The first test alone, which is two: one for each of two workers.
SMALL = {"conftest.py": CONFTEST, "test_model.py": MODEL[: MODEL.index("\n\ndef test_a_backend")]}
DEVICE = """
import multiprocessing

import pytest
import torch
import torch.utils.data


@pytest.fixture
def device():
    return torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else "npu"


def test_a_model_learns_on_the_device(device):
    model = torch.nn.Linear(2, 1).to(device)
    step = torch.optim.AdamW(model.parameters())
    data = torch.utils.data.TensorDataset(torch.ones(4, 2))
    for (rows,) in torch.utils.data.DataLoader(data, batch_size=2, num_workers=1):
        model(rows.npu(non_blocking=True)).sum().backward()
        step.step()
    torch.npu.synchronize()
    assert torch.npu.is_available()
    assert model.weight.grad.cpu().tolist() == [[4, 4]]


def child(queue):
    queue.put(torch.ones(2, device="npu").tolist())


def test_a_process_that_is_started_has_the_device(device):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    assert queue.get(timeout=120) == [1, 1]
    process.join()
    assert process.exitcode == 0


def test_tensorflow_is_not_stood_in_for():
    with pytest.raises(ImportError):
        import tensorflow
"""
LIGHT_TEST = """
import sys

def test_light():
    packages = {name.split(".")[0] for name in sys.modules}
    assert "npu_lowering_pytest" in packages
    assert not packages & {"npu_lowering", "torch", "torch_npu", "torchair", "numpy"}
"""
STRICT = """
[pytest]
filterwarnings =
    error
    ignore:npu_grouped_matmul_finalize_routing
"""
# Plugins of the project, loaded before ours is asked for anything.
NO_TORCH_NPU = f"""{LIGHT}
from npu_lowering.offdevice import probe
probe.package_folder = lambda name: None
"""
ON_A_DEVICE = f"""{LIGHT}
from npu_lowering.offdevice import probe
probe.real_cann = lambda: "libascendcl.so"
"""
# What is installed there is CANN's; here it is not, so the backend is another.
DEVICE_TESTS = """
import pytest

@pytest.fixture
def npu_backend():
    return "eager"

def test_backend(npu_backend):
    pass

def test_graph(lowered_graph):
    raise AssertionError("never comes here")
"""


@pytest.fixture
def run_pytest(tmp_path, python):
    """Writes a project of these files, runs pytest in it, and gives its output and its errors."""

    def run(files, *arguments, code=0, options=()):
        folder = tmp_path / "project"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        arguments = (*options, "-m", "pytest", "-p", "no:cacheprovider", *arguments)
        return python(*arguments, cwd=folder, code=code)

    return run


@pytest.mark.usefixtures("found")
def test_a_project_runs_without_a_device(run_pytest):
    settings = STRICT + "addopts = --npu-offdevice\n"
    output, _ = run_pytest({**PROJECT, "pytest.ini": settings})
    assert "7 passed" in output
    assert "warning" not in output or TORCH < (2, 6)  # of older TorchAIR itself
    assert "npu_lowering: off the device" in output


@pytest.mark.usefixtures("found")
def test_its_workers_run_without_a_device(run_pytest):
    pytest.importorskip("xdist")
    output, _ = run_pytest({**SMALL, "pytest.ini": STRICT}, "--npu-offdevice", "-n", "2")
    assert "2 passed" in output
    assert "warning" not in output or TORCH < (2, 6)  # of older TorchAIR itself


@pytest.mark.usefixtures("found")
def test_its_tests_find_a_device(run_pytest):
    settings = "[pytest]\nfilterwarnings = error\n"
    output, _ = run_pytest({"test_device.py": DEVICE, "pytest.ini": settings}, "--npu-offdevice")
    assert "3 passed" in output
    assert "off the device: the CPU plays an NPU" in output


@pytest.mark.usefixtures("found")
def test_a_project_that_installs_by_itself_has_the_fixtures(run_pytest):
    conftest = f"from npu_lowering import offdevice\noffdevice.install()\n{CONFTEST}"
    output, _ = run_pytest({**SMALL, "conftest.py": conftest})
    assert "2 passed" in output


@pytest.mark.usefixtures("found")
def test_a_test_that_lowers_nothing_fails_at_its_own_line(run_pytest):
    text = "def test(lowered_graph): lowered_graph()\n"
    files = {"test_it.py": text, "pytest.ini": STRICT}
    output, _ = run_pytest(files, "--npu-offdevice", code=1)
    assert "test_it.py:1: GraphError" in output
    assert "lowered.py" not in output


def test_without_the_option_it_costs_nothing(run_pytest):
    run_pytest({"test_it.py": LIGHT_TEST, "pytest.ini": STRICT})


def test_without_the_option_its_fixtures_name_it(run_pytest):
    text = "def test_1(npu_backend): pass\ndef test_2(lowered_graph): pass\n"
    files = {"test_it.py": text, "early.py": LIGHT, "pytest.ini": STRICT}
    output, _ = run_pytest(files, "-p", "early", code=1)
    assert "2 errors" in output
    assert output.count("needs an NPU, or pytest --npu-offdevice, which makes") == 2


def test_where_it_is_impossible_no_test_is_run(run_pytest):
    files = {"test_it.py": "def test(): pass", "early.py": NO_TORCH_NPU, "pytest.ini": STRICT}
    output, errors = run_pytest(files, "-p", "early", "--npu-offdevice", code=4)
    assert output == ""
    assert re.fullmatch(
        r"ERROR: --npu-offdevice: torch is not installed; run: pip install .*\s*", errors
    )


def test_on_a_device_tests_run_as_they_are(run_pytest):
    files = {"early.py": ON_A_DEVICE, "pytest.ini": STRICT, "test_it.py": DEVICE_TESTS}
    output, _ = run_pytest(files, "-p", "early", "--npu-offdevice", "-rs")
    assert "npu_lowering: a real CANN is here, so tests run on the device" in output
    assert "1 passed, 1 skipped" in output
    assert "lowered_graph shows what is lowered off the device" in output


def test_pytest_may_start_where_the_package_is_imported(run_pytest, python, tmp_path):
    run_pytest({"test_it.py": "def test(): pass", "pytest.ini": STRICT})
    program = "import npu_lowering, pytest, sys; sys.exit(pytest.main([]))"
    output, _ = python("-c", program, cwd=tmp_path / "project")
    assert "1 passed" in output


def test_the_entry_point_is_installed():
    points = importlib.metadata.distribution("npu-lowering").entry_points
    assert [(p.group, p.value) for p in points] == [("pytest11", "npu_lowering_pytest")]
