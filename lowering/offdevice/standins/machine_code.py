"""The bodies of the stand-in functions, as machine code for Linux on x86-64 and AArch64.

A stand-in does one of five things, none of which needs a stack or a library: return a number,
return the address of a sentence or of data, say that there is no device, or print a sentence and
stop the process. Encodings are from the two instruction set manuals, the system call numbers from
the kernel's tables.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Union

from npu_lowering.offdevice.standins import elf

_SIGABRT = 6
# What a shell shows for a process that SIGABRT ended; used only if the signal is blocked.
_ABORTED = 128 + _SIGABRT
_ALIGNMENT = 16


@dataclasses.dataclass(frozen=True)
class Return:
    """Return ``value``, a 32-bit integer, or a null pointer where it is 0."""

    value: int


@dataclasses.dataclass(frozen=True)
class ReturnText:
    """Return the address of ``text``, as C reads it."""

    text: str


@dataclasses.dataclass(frozen=True)
class ReturnData:
    """Return the address of ``data``, which the caller may write to.

    For each pair of ``pointers``, the loader puts at the first offset in ``data`` the address of
    the second.
    """

    data: bytes
    pointers: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class StoreZero:
    """Write a 32-bit 0 to where the first argument points, and return 0."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """Print ``text`` to standard error and end the process by SIGABRT."""

    text: str


Body = Union[Return, ReturnText, ReturnData, StoreZero, Stop]


@dataclasses.dataclass(frozen=True)
class Code:
    """Position-independent code, and what it is placed with, as :func:`elf.write` takes it.

    Attributes:
        text: The code, and the sentences behind it.
        symbols: For each function its offset in ``text`` and its size, in bytes.
        data: What the code may write to.
        pointers: Offsets in ``data`` that hold addresses, and those that they are of.
    """

    text: bytes
    symbols: Mapping[str, tuple[int, int]]
    data: bytes = b""
    pointers: Mapping[int, int] = dataclasses.field(default_factory=dict)


def assemble(machine: str, bodies: Mapping[str, Body]) -> Code:
    """Turn each body into code, one after the other, and put the sentences behind them.

    Data comes after all of it, from the page on that follows.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        bodies: The body of each function, by its symbol.
    """
    encode, stop = _ENCODERS[machine]
    names = sorted(bodies)
    # The size of a function does not depend on where the sentences are, so lay out with 0 first.
    sizes = [len(encode(bodies[name], 0, 0)) for name in names]
    offsets = _running_totals(sizes, start=len(stop))
    texts = [_text_of(bodies[name]) for name in names]
    texts_at = _running_totals([len(text) for text in texts], start=offsets[-1])
    data_at = elf.distance_to_data(machine, texts_at[-1])
    code, data, pointers = bytearray(stop), bytearray(), {}
    for name, offset, text_at in zip(names, offsets, texts_at):
        body, shown_at = bodies[name], text_at
        if isinstance(body, ReturnData):
            shown_at = data_at + len(data)
            pointers.update({len(data) + at: len(data) + to for at, to in body.pointers})
            data += body.data.ljust(-(-len(body.data) // _ALIGNMENT) * _ALIGNMENT, b"\0")
        code += encode(body, shown_at - offset, -offset)
    code += b"".join(texts)
    symbols = {name: (offset, size) for name, offset, size in zip(names, offsets, sizes)}
    return Code(bytes(code), symbols, bytes(data), pointers)


def _running_totals(sizes: Sequence[int], start: int) -> list[int]:
    totals = [start]
    for size in sizes:
        totals.append(totals[-1] + size)
    return totals


def _text_of(body: Body) -> bytes:
    if isinstance(body, Stop):
        return body.text.encode() + b"\n\0"
    if isinstance(body, ReturnText):
        return body.text.encode() + b"\0"
    return b""


def _x86_64(body: Body, text: int, stop: int) -> bytes:
    """Code of ``body``; ``text`` (or data) and ``stop`` are distances from its first byte."""
    if isinstance(body, Return):
        return b"\xb8" + struct.pack("<i", body.value) + b"\xc3"  # mov eax, value; ret
    if isinstance(body, StoreZero):
        return b"\xc7\x07" + bytes(4) + b"\x31\xc0\xc3"  # mov dword [rdi], 0; xor eax, eax; ret
    if isinstance(body, (ReturnText, ReturnData)):
        return b"\x48\x8d\x05" + struct.pack("<i", text - 7) + b"\xc3"  # lea rax, [rip+text]; ret
    return (
        b"\x48\x8d\x35"  # lea rsi, [rip+text]
        + struct.pack("<i", text - 7)
        + b"\xba"  # mov edx, length
        + struct.pack("<i", len(body.text.encode()) + 1)
        + b"\xe9"  # jmp stop
        + struct.pack("<i", stop - 17)
    )


# Where every Stop goes on: rsi and edx hold the sentence.
_X86_64_STOP = bytes.fromhex(
    "bf02000000 b801000000 0f05"  # write(2, rsi, rdx)
    "b827000000 0f05"  # getpid()
    f"89c7 be{_SIGABRT:02x}000000 b83e000000 0f05"  # kill(eax, SIGABRT)
    f"bf{_ABORTED:02x}000000 b8e7000000 0f05"  # exit_group(_ABORTED)
)


def _words(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def _movz(register: int, value: int, *, half: int = 0) -> int:
    return 0xD2800000 | half << 21 | value << 5 | register


def _movk(register: int, value: int, *, half: int) -> int:
    return 0xF2800000 | half << 21 | value << 5 | register


def _adr(register: int, distance: int) -> int:
    if not -(1 << 20) <= distance < 1 << 20:
        raise ValueError(f"what code shows must be within 1 MiB of it, it is {distance} bytes off")
    return 0x10000000 | (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5 | register


_RET, _SVC = 0xD65F03C0, 0xD4000001


def _aarch64(body: Body, text: int, stop: int) -> bytes:
    """Code of ``body``; ``text`` (or data) and ``stop`` are distances from its first byte."""
    if isinstance(body, Return):
        low, high = body.value & 0xFFFF, body.value >> 16 & 0xFFFF
        return _words(_movz(0, low), _movk(0, high, half=1), _RET)
    if isinstance(body, StoreZero):
        return _words(0xB900001F, _movz(0, 0), _RET)  # str wzr, [x0]
    if isinstance(body, (ReturnText, ReturnData)):
        return _words(_adr(0, text), _RET)
    length = len(body.text.encode()) + 1
    branch = 0x14000000 | (stop - 8 >> 2 & 0x3FFFFFF)
    return _words(_adr(1, text), _movz(2, length), branch)


# Where every Stop goes on: x1 and x2 hold the sentence.
_AARCH64_STOP = _words(
    *(_movz(0, 2), _movz(8, 64), _SVC),  # write(2, x1, x2)
    *(_movz(8, 172), _SVC),  # getpid()
    *(_movz(1, _SIGABRT), _movz(8, 129), _SVC),  # kill(x0, SIGABRT)
    *(_movz(0, _ABORTED), _movz(8, 94), _SVC),  # exit_group(_ABORTED)
)

_ENCODERS = {"x86_64": (_x86_64, _X86_64_STOP), "aarch64": (_aarch64, _AARCH64_STOP)}
