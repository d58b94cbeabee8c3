"""torch_npu beside a torch built for an accelerator, which a small library stands in for."""

import dataclasses
import shutil
import signal
import subprocess

import pytest
from versions import TORCH

from npu_lowering.offdevice.standins import allocator, elf
from npu_lowering.offdevice.standins import load as standins

# Enters an option that libtorch_npu enters as well, as libc10_cuda does when torch is imported.
ACCELERATOR = """
#include <functional>
#include <string>
#include <unordered_set>
namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig {
  static std::unordered_set<std::string>& getMutableKeys();
  static std::function<void(const std::string&)>& getConfigParserHook();
};
using Config = AcceleratorAllocatorConfig;
static int parsed = 0;
static const bool entered = [] {
  Config::getConfigParserHook() = [](const std::string&) { ++parsed; };
  return Config::getMutableKeys().insert("pinned_reserve_segment_size_mb").second;
}();
extern "C" bool has_entered() { return entered; }
extern "C" int times_parsed() { return parsed; }
extern "C" int options() { return Config::getMutableKeys().size(); }
}
"""
PROGRAM = """
import ctypes
from pathlib import Path
from npu_lowering import offdevice
from npu_lowering.offdevice.standins import allocator
import torch
library = ctypes.CDLL({library!r})
assert library.has_entered()
options = library.options()
allocator.accelerators = lambda wheels: {accelerators}
offdevice.install()
assert library.options() == options  # torch's set has nothing of torch_npu's,
torch._C._accelerator_setAllocatorSettings("max_split_size_mb:64")
assert library.times_parsed() == 1  # and what torch is told goes where it went
import torchair
backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
assert torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2)).tolist() == [2, 2]
torch.npu.memory._set_allocator_settings("max_split_size_mb:64")  # torch_npu's set has its own
"""


@pytest.fixture
def accelerator(found, tmp_path):
    """The library of an accelerator, as a build of torch for one has it."""
    if TORCH < (2, 10):
        pytest.skip("libc10 keeps the options of one accelerator from torch 2.10 on")
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    if found.torch_version.rpartition("+")[2] != "cpu":
        pytest.skip("this torch is built for an accelerator itself, so nothing has to stand in")
    source, library = tmp_path / "accelerator.cpp", tmp_path / "libc10_accelerator.so"
    source.write_text(ACCELERATOR)
    libraries = f"-L{found.torch / 'lib'}", "-lc10"
    subprocess.run(
        [compiler, "-std=c++17", "-shared", "-fPIC", "-o", library, source, *libraries], check=True
    )
    return library


def test_both_enter_their_options(accelerator, python):
    program = PROGRAM.format(library=str(accelerator), accelerators=f"[Path({str(accelerator)!r})]")
    python("-c", program)


def test_without_the_stand_in_the_process_would_end(accelerator, python):
    """Else the test above shows nothing."""
    program = PROGRAM.format(library=str(accelerator), accelerators="[]")
    _, errors = python("-c", program, code=-signal.SIGABRT)
    assert "Duplicated key 'pinned_reserve_segment_size_mb'" in errors


def test_it_is_found_by_what_is_imported(found, monkeypatch, tmp_path):
    """By both, and by nothing else: not by a version, nor by the name of a library."""
    wheels = dataclasses.replace(found, torch=tmp_path / "torch", torch_npu=tmp_path / "torch_npu")
    libraries = {"torch/lib/libc10_cuda.so": True, "torch_npu/lib/libtorch_npu.so": True}
    empty = elf.Dynamic(62, "", (), (), frozenset(), frozenset())

    def read(path):
        enters = libraries[path.relative_to(tmp_path).as_posix()]
        undefined = frozenset(["aclInit", *(allocator.FUNCTIONS if enters else ())])
        return dataclasses.replace(empty, undefined=undefined)

    monkeypatch.setattr(allocator.elf, "read", read)
    for path in libraries:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert allocator.is_needed(wheels)
    for path in libraries:
        monkeypatch.setitem(libraries, path, False)
        assert not allocator.is_needed(wheels), path
        monkeypatch.setitem(libraries, path, True)
    (tmp_path / "torch/lib/libc10_cuda.so").unlink()
    assert not allocator.is_needed(wheels)


def test_it_is_written_only_where_it_is_needed(found, monkeypatch):
    for needed in (True, False):
        monkeypatch.setattr(allocator, "is_needed", lambda _, needed=needed: needed)
        assert (allocator.NAME in standins.build(found)) == needed


def test_before_torch_it_is_not_loaded(tmp_path, monkeypatch):
    """Else torch would bind to it, too, and both would enter the same set again."""
    loaded = []
    monkeypatch.setattr(standins.ctypes, "CDLL", lambda path, _: loaded.append(path))
    path = tmp_path / allocator.NAME
    standins._load([path])
    assert loaded == [str(path)]
    monkeypatch.delitem(standins.sys.modules, "torch")
    standins._load([path])
    assert loaded == [str(path)]
