"""``python -m npu_lowering doctor``: what it finds, and what it says is to be done."""

import sys

import pytest

import npu_lowering
from npu_lowering.__main__ import main
from npu_lowering.errors import recipe, release
from npu_lowering.offdevice import OffDeviceError, doctor, probe
from npu_lowering.operators.grouped_matmul_finalize_routing import native


@pytest.mark.usefixtures("found")
def test_a_machine_without_cann(python, warm):
    output, errors = python("-m", "npu_lowering", "doctor")
    lines = dict(line.split(":", 1) for line in output.splitlines() if not line.startswith(" "))
    assert {name: value.strip() for name, value in lines.items()} == {
        "python": lines["python"].strip(),
        "torch": probe.versions()[0],
        "torch_npu": probe.versions()[1],
        "npu_lowering": doctor.__version__,
        "pair": "the tests are run with it",
        "recipe": recipe(".".join(map(str, release(probe.versions()[0])))),
        "stand-ins": lines["stand-ins"].strip(),
        "environment": "off the device: torch_npu on stand-ins for CANN",
        "registered": "",
        "result": "graphs can be lowered on this machine",
    }
    assert f"10 libraries, whole, in {warm}" in lines["stand-ins"]
    assert "npu_grouped_matmul_finalize_routing  upstream's  ours" in output
    assert "problem" not in errors


@pytest.mark.usefixtures("found")
def test_a_cache_that_cannot_be_used(python):
    output, _ = python("-m", "npu_lowering", "doctor", env={"XDG_CACHE_HOME": "/dev/null/none"})
    assert "written anew at every start: /dev/null/none/npu-lowering" in output


@pytest.mark.parametrize("installed", [True, False])
def test_a_problem_is_named_with_what_to_do(installed, monkeypatch, capsys):
    def find_wheels():
        raise OffDeviceError("something is missing; install it")

    monkeypatch.setattr(probe, "find_wheels", find_wheels)
    monkeypatch.setattr(probe, "real_cann", lambda: None)
    monkeypatch.setattr(probe, "versions", lambda: ("2.9.0", "2.9.0" if installed else None))
    assert doctor.main() == 1
    output, errors = capsys.readouterr()
    state = "torch_npu without CANN" if installed else "without torch_npu"
    assert f"environment:  {state}: operators run on CPU" in output
    assert f"recipe:       {recipe('2.9.0')}\n" in output
    assert ("pair:         the tests were never run with it\n" in output) == installed
    assert "npu_grouped_matmul_finalize_routing  " in output
    assert errors == "problem: something is missing; install it\n"


def test_on_a_device_that_does_not_come_up(monkeypatch, capsys):
    monkeypatch.setattr(probe, "real_cann", lambda: "libascendcl.so")
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    assert doctor.main() == 1
    output, errors = capsys.readouterr()
    assert "environment:  on the device: a real CANN is here (libascendcl.so loads)" in output
    assert errors.startswith("problem: torch_npu or TorchAIR cannot be imported (")


@pytest.mark.parametrize(
    ("installed", "real", "line"),
    [
        (True, None, "export TORCH_DEVICE_BACKEND_AUTOLOAD=0  # for torch_npu without CANN"),
        (True, "libascendcl.so", "# a real CANN is here: "),
        (False, None, "# torch_npu is not installed: "),
    ],
)
def test_what_a_shell_is_to_set(installed, real, line, monkeypatch, capsys):
    monkeypatch.setattr(doctor.environment, "is_installed", lambda: installed)
    monkeypatch.setattr(probe, "real_cann", lambda: real)
    assert main(["doctor", "--env"]) == 0
    assert capsys.readouterr().out.startswith(line)


@pytest.mark.usefixtures("found")
def test_a_shell_that_has_set_it_imports_torch(python):
    """What is printed is written into a file that a shell reads, and the next python is plain."""
    output, _ = python("-m", "npu_lowering", "doctor", "--env")
    name, _, value = output.split("#")[0].strip().removeprefix("export ").partition("=")
    python("-c", "import torch", env={name: value})
    _, errors = python("-c", "import torch", code=1)
    assert "Failed to load the backend extension" in errors


@pytest.fixture
def kernel(monkeypatch):
    """The line of status() about the kernel, where a variable has a value."""

    def kernel(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        native._kernel.cache_clear()
        return next(
            line for line in str(npu_lowering.status()).splitlines() if line.startswith("kernel ")
        )

    yield kernel
    native._kernel.cache_clear()


def test_the_path_of_the_kernel_is_said_and_why(kernel, monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)
    built = native._library() is not None
    said = kernel()
    assert said.startswith(f"kernel       {native.path()} (")
    assert said.endswith("(the best that this processor runs)") == built
    forced = kernel(NPU_LOWERING_KERNEL="torch")
    assert forced == "kernel       none (forced by NPU_LOWERING_KERNEL=torch)"
    monkeypatch.delenv(native.VARIABLE)
    monkeypatch.setattr(native, "_library", lambda: None)
    assert "where there is a C compiler at installation" in kernel()
    assert npu_lowering.status().kernel == "none"
