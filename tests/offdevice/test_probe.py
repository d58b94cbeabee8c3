"""What is installed, and the sentences for what does not fit."""

import dataclasses
import importlib.metadata
import platform
import sys

import pytest

from npu_lowering.offdevice import OffDeviceError, probe


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A torch and a torch_npu that are folders, of versions that a test sets."""

    def install(torch="2.13.0+cpu", torch_npu="2.13.0"):
        folders = {}
        for name, version in (("torch", torch), ("torch_npu", torch_npu)):
            if version is not None:
                folders[name] = tmp_path / name
                folders[name].mkdir()
        if torch is not None:
            (tmp_path / "torch" / "version.py").write_text(
                f"from typing import Optional\n__version__ = {torch!r}\n"
                "debug = False\ncuda: Optional[str] = None\n"
            )
        monkeypatch.setattr(probe, "package_folder", folders.get)
        monkeypatch.setattr(probe.importlib.metadata, "version", {"torch_npu": torch_npu}.get)
        return probe.find_wheels()

    return install


def test_finds_both(packages, tmp_path):
    assert packages() == probe.Wheels(
        tmp_path / "torch", tmp_path / "torch_npu", "2.13.0+cpu", "2.13.0"
    )


@pytest.mark.parametrize("release", ["2.1.0", "2.9.0", "2.13.0"])
def test_a_build_for_another_accelerator_will_do(packages, release):
    found = packages(torch=f"{release}+cu121", torch_npu=f"{release}.post17")
    assert found.torch_version == f"{release}+cu121"


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"torch": None}, "torch is not installed; run: pip install 'npu-lowering[offdevice]'"),
        (
            {"torch_npu": None},
            "torch_npu is not installed; run: pip install 'npu-lowering[offdevice]'",
        ),
        (
            {"torch": "2.12.1"},
            "torch_npu 2.13.0 is built for torch 2.13.0, but torch 2.12.1 is installed",
        ),
    ],
)
def test_what_does_not_fit_is_named(packages, versions, message):
    with pytest.raises(OffDeviceError) as raised:
        packages(**versions)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("module", ["google.protobuf", "packaging", "yaml"])
def test_what_torchair_lacks_is_named(packages, module, monkeypatch):
    monkeypatch.setattr(probe, "_is_installed", lambda name: name != module)
    name = {"google.protobuf": "protobuf", "packaging": "packaging", "yaml": "pyyaml"}[module]
    with pytest.raises(OffDeviceError, match=f"TorchAIR needs {name}, not installed here; run"):
        packages()


def test_a_missing_parent_package_is_a_missing_package():
    assert not probe._is_installed("no_such_package.child")
    assert probe._is_installed("importlib.metadata")


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_another_machine_is_refused(system, machine, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(OffDeviceError, match=f"this is {system} on {machine}"):
        probe.find_wheels()


def test_a_small_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
    with pytest.raises(OffDeviceError, match="needs a 64-bit Python, this one has 32 bits"):
        probe.find_wheels()


def test_a_package_without_metadata_is_named(packages, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    packages()
    monkeypatch.setattr(probe.importlib.metadata, "version", version)
    with pytest.raises(OffDeviceError, match="torch_npu is importable but has no metadata"):
        probe.find_wheels()


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("2.1.0.post17", (2, 1, 0)),
        ("2.1.0+cu121", (2, 1, 0)),
        ("2.14.0rc1", (2, 14, 0)),
        ("2.13.0a0+git12", (2, 13, 0)),
        ("2.7", (2, 7)),
        ("unknown", ()),
    ],
)
def test_release_of_a_version(version, numbers):
    assert probe.release(version) == numbers


def test_the_wheels_here(found):
    assert (found.torch / "lib" / "libc10.so").is_file()
    assert (found.torch_npu / "lib" / "libtorch_npu.so").is_file()
    assert probe.versions() == (found.torch_version, found.torch_npu_version)
    assert dataclasses.asdict(found)["torch_version"].startswith("2.")
