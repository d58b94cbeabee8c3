"""What torch_npu needs beside a torch that was built for an accelerator, such as CUDA.

From torch 2.10 on, a library of an accelerator enters the options of its memory allocator into a
set that libc10 keeps for one of them. Torch's own library does so when torch is imported, and the
process ends when libtorch_npu comes second ("Duplicated key ... found in device-specific
configuration parser hook registration"). There is no NPU here to allocate on, so libtorch_npu is
given a set of its own: the two functions by which it finds libc10's are defined once more, in a
library that is loaded after torch, whose libraries have theirs by then, and before libtorch_npu.
"""

from __future__ import annotations

import struct
from pathlib import Path

from npu_lowering.offdevice.probe import Wheels
from npu_lowering.offdevice.standins import elf
from npu_lowering.offdevice.standins.machine_code import ReturnData

NAME = "libnpu_lowering_allocator.so"
_CLASS = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig"
# An empty std::unordered_set of libstdc++: its one bucket, which lies behind all else in it, how
# many there are, no element, none, at most 1.0 of them a bucket, no resize planned, the bucket.
_EMPTY_SET = struct.pack("<QQQQfxxxxQQ", 0, 1, 0, 0, 1.0, 0, 0)
_BUCKETS, _SINGLE_BUCKET = 0, 48
_EMPTY_FUNCTION = bytes(32)  # std::function: what it holds, how to copy it, how to call it

FUNCTIONS = {
    f"{_CLASS}14getMutableKeysB5cxx11Ev": ReturnData(_EMPTY_SET, ((_BUCKETS, _SINGLE_BUCKET),)),
    f"{_CLASS}19getConfigParserHookB5cxx11Ev": ReturnData(_EMPTY_FUNCTION),
}
"""``getMutableKeys()``, a reference to the set, and ``getConfigParserHook()``, to who reads it."""


def accelerators(wheels: Wheels) -> list[Path]:
    """Torch's own libraries for an accelerator: none in a build for the CPU."""
    return sorted((wheels.torch / "lib").glob("libc10_*.so"))


def is_needed(wheels: Wheels) -> bool:
    """Whether a library of torch's enters its options where libtorch_npu enters its own.

    Raises:
        elf.ElfError: A library is not one.
        OSError: A library cannot be read.
    """
    npu = wheels.torch_npu / "lib" / "libtorch_npu.so"
    return _enters(npu) and any(_enters(library) for library in accelerators(wheels))


def _enters(library: Path) -> bool:
    return not elf.read(library).undefined.isdisjoint(FUNCTIONS)
