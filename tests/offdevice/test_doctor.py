"""``python -m npu_lowering doctor``: what it finds, and what it says is to be done."""

import pytest

from npu_lowering.offdevice import OffDeviceError, doctor, probe


@pytest.mark.usefixtures("found")
def test_a_machine_without_cann(python, warm):
    output, errors = python("-m", "npu_lowering", "doctor")
    lines = dict(line.split(":", 1) for line in output.splitlines() if not line.startswith(" "))
    assert {name: value.strip() for name, value in lines.items()} == {
        "python": lines["python"].strip(),
        "torch": probe.versions()[0],
        "torch_npu": probe.versions()[1],
        "npu_lowering": doctor.__version__,
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
    monkeypatch.setattr(probe, "versions", lambda: ("2.13.0", "2.13.0" if installed else None))
    assert doctor.main() == 1
    output, errors = capsys.readouterr()
    state = "torch_npu without CANN" if installed else "without torch_npu"
    assert f"environment:  {state}: the operator runs on CPU" in output
    assert "npu_grouped_matmul_finalize_routing  " in output
    assert errors == "problem: something is missing; install it\n"


def test_on_a_device_that_does_not_come_up(monkeypatch, capsys):
    monkeypatch.setattr(probe, "real_cann", lambda: "libascendcl.so")
    monkeypatch.setitem(__import__("sys").modules, "torch_npu", None)
    assert doctor.main() == 1
    output, errors = capsys.readouterr()
    assert "environment:  on the device: a real CANN is here (libascendcl.so loads)" in output
    assert errors.startswith("problem: torch_npu or TorchAIR cannot be imported (")
