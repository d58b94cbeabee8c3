"""What is installed, and the sentences for what does not fit."""

import dataclasses
import importlib.metadata
import platform
import sys
import types
from unittest import mock

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
                (folders[name] / "lib").mkdir(parents=True)
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


@pytest.mark.parametrize("release", ["2.7.1", "2.9.0", "2.13.0"])
def test_a_build_for_another_accelerator_will_do(packages, release):
    found = packages(torch=f"{release}+cu121", torch_npu=f"{release}.post17")
    assert found.torch_version == f"{release}+cu121"


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (
            {"torch": None},
            "torch is not installed; run: pip install torch==2.13.0 && pip install --no-deps "
            "torch_npu==2.13.0 numpy packaging 'protobuf>=4' pyyaml",
        ),
        (
            {"torch_npu": None},
            "torch_npu is not installed; run: pip install --no-deps torch_npu==2.13.0",
        ),
        (
            {"torch": "2.9.0+cu128", "torch_npu": None},
            "torch_npu is not installed; run: pip install --no-deps torch_npu==2.9.0.post9",
        ),
        (
            {"torch": "2.15.0", "torch_npu": None},
            "torch_npu is not installed beside torch 2.15.0; no torch_npu is known to work beside "
            "that torch (one is for 2.1.0, 2.3.1, ",
        ),
        (
            {"torch": "2.12.0"},
            "torch_npu 2.13.0 is built for torch 2.13.0, but torch 2.12.0 is installed; run: pip "
            "install --no-deps torch_npu==2.12.0.post3",
        ),
        (
            {"torch": "2.12.1"},
            "torch_npu 2.13.0 is built for torch 2.13.0, but torch 2.12.1 is installed; no "
            "torch_npu is known to work beside that torch (one is for 2.1.0, 2.3.1, ",
        ),
    ],
)
def test_what_does_not_fit_is_named(packages, versions, message):
    with pytest.raises(OffDeviceError) as raised:
        packages(**versions)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("versions", "modules", "message"),
    [
        ({}, {"google.protobuf"}, "protobuf is not installed; run: pip install 'protobuf>=4'"),
        ({}, {"packaging"}, "packaging is not installed; run: pip install packaging"),
        (
            {},
            {"yaml", "numpy"},
            "numpy and pyyaml are not installed; run: pip install numpy pyyaml",
        ),
        (
            {"torch_npu": None},
            {"yaml"},
            "torch_npu and pyyaml are not installed; run: pip install --no-deps torch_npu==2.13.0 "
            "pyyaml",
        ),
        (
            {"torch": "2.1.0", "torch_npu": "2.1.0.post17"},
            {"pkg_resources", "numpy"},
            "numpy and setuptools are not installed; run: pip install 'numpy<2' 'setuptools<81'",
        ),
    ],
)
def test_what_torchair_lacks_is_named(packages, versions, modules, message, monkeypatch):
    monkeypatch.setattr(
        probe.environment, "find", lambda name: None if name in modules else "a file"
    )
    with pytest.raises(OffDeviceError) as raised:
        packages(**versions)
    assert str(raised.value) == message


def test_a_folder_that_hides_torch_npu_is_named(packages, tmp_path, monkeypatch):
    packages()
    (tmp_path / "torch_npu" / "lib").rmdir()
    message = f"{tmp_path}/torch_npu has the name of torch_npu and no library of it; "
    with pytest.raises(OffDeviceError) as raised:
        probe.find_wheels()
    assert str(raised.value) == (
        f"{message}it hides the one that is installed, since {tmp_path} comes first in sys.path. "
        "Rename that folder, or start elsewhere"
    )

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(probe.importlib.metadata, "version", version)
    with pytest.raises(OffDeviceError) as raised:
        probe.find_wheels()
    assert str(raised.value).startswith(f"{message}torch_npu itself is not installed")


@pytest.mark.parametrize("stub", [mock.MagicMock(), types.ModuleType("torch_npu")])
def test_a_stub_of_torch_npu_is_named(packages, stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", stub)
    with pytest.raises(OffDeviceError) as raised:
        packages()
    assert str(raised.value).startswith(f"torch_npu in this process is {stub!r}, put into sys.mod")


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
