"""The ELF reader and writer, and the machine code of the stand-ins."""

import platform
import signal
import struct

import pytest

from npu_lowering.offdevice.standins import bodies, elf, machine_code
from npu_lowering.offdevice.standins.machine_code import (
    Return,
    ReturnData,
    ReturnText,
    Stop,
    StoreZero,
)

BODIES = {
    "answer": Return(207000),
    "minus": Return(-1),
    "null": Return(0),
    "count": StoreZero(),
    "list": ReturnData(struct.pack("<QQ3s", 0, 5, b"abc"), ((0, 16),)),
    "zeros": ReturnData(bytes(8)),
    "message": ReturnText("no device"),
    "stop": Stop("this cannot be done"),
}
ON_X86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="runs machine code of x86_64")


def library(machine, parts=BODIES):
    code = machine_code.assemble(machine, parts)
    return elf.write(machine, "libparts.so", code.text, code.symbols, code.data, code.pointers)


@pytest.fixture(params=elf.MACHINES)
def machine(request):
    return request.param


def test_what_is_written_is_read_back(machine, tmp_path):
    path = tmp_path / "libparts.so"
    path.write_bytes(library(machine))
    read = elf.read(path)
    assert read.machine == elf.MACHINES[machine]
    assert read.soname == "libparts.so"
    assert read.defined == set(BODIES)
    assert (read.needed, read.runpath, read.undefined) == ((), (), frozenset())


def test_reads_a_library_of_torch(found):
    read = elf.read(found.torch / "lib" / "libtorch_python.so")
    assert read.soname == "libtorch_python.so"
    assert {"libtorch_cpu.so", "libc.so.6"} <= set(read.needed)
    assert "PyErr_SetString" in read.undefined
    assert "THPVariable_Wrap" in "".join(read.defined)
    assert not read.undefined & read.defined


@pytest.mark.parametrize("parts", [BODIES, {"answer": Return(1)}], ids=["data", "none"])
def test_no_segment_is_both_writable_and_executable(machine, parts):
    image = library(machine, parts)
    offset, size, count = (
        struct.unpack_from("<Q", image, 32)[0],
        *struct.unpack_from("<HH", image, 54),
    )
    segments = [struct.unpack_from("<IIQQQQQQ", image, offset + i * size) for i in range(count)]
    page = {"x86_64": 4096, "aarch64": 65536}[machine]
    loaded = [segment for segment in segments if segment[0] == 1]
    assert [segment[1] for segment in loaded] == [5, 6]  # R-X, RW-
    for _, _, at, address, _, in_file, in_memory, align in loaded:
        assert align == page
        assert at % page == address % page == 0
        assert in_file == in_memory
        assert at + in_file <= len(image)
    assert loaded[0][3] + loaded[0][6] <= loaded[1][3]
    (stack,) = [segment for segment in segments if segment[0] == 0x6474E551]
    assert stack[1] == 6  # the stack is not executable
    (dynamic,) = [segment for segment in segments if segment[0] == 2]
    assert dynamic[2] + dynamic[5] == loaded[1][2] + loaded[1][5]
    assert dynamic[2] >= loaded[1][2]


def test_every_symbol_is_found_through_the_hash_table(machine):
    image = library(machine, {f"symbol_{i}": Return(i) for i in range(200)})
    at = struct.unpack_from("<Q", image, 40)[0]
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, at + i * 64) for i in range(7)]
    dynsym, dynstr, table = sections[1:4]
    buckets, chains = struct.unpack_from("<II", image, table[4])
    words = struct.unpack_from(f"<{buckets + chains}I", image, table[4] + 8)

    def name_of(index):
        start = dynstr[4] + struct.unpack_from("<I", image, dynsym[4] + 24 * index)[0]
        return image[start : image.index(b"\0", start)].decode()

    for i in range(200):
        name, value = f"symbol_{i}", 0
        for byte in name.encode():  # the hash function as the System V ABI states it
            value = ((value << 4) + byte) & 0xFFFFFFFF
            high = value & 0xF0000000
            value ^= high >> 24
            value &= ~high & 0xFFFFFFFF
        index = words[value % buckets]
        while index and name_of(index) != name:
            index = words[buckets + index]
        assert name_of(index) == name


def test_the_same_arguments_give_the_same_bytes(machine):
    assert library(machine) == library(machine, dict(reversed(BODIES.items())))


def test_aarch64_instructions():
    code = machine_code.assemble("aarch64", BODIES)

    def words(name):
        offset, size = code.symbols[name]
        return struct.unpack_from(f"<{size // 4}I", code.text, offset)

    # movz x0, #0x2898; movk x0, #3, lsl 16; ret: 207000 is 0x32898
    assert words("answer") == (0xD2851300, 0xF2A00060, 0xD65F03C0)
    assert words("count") == (0xB900001F, 0xD2800000, 0xD65F03C0)
    adr, ret = words("zeros")
    assert ret == 0xD65F03C0
    assert adr & 0x9F00001F == 0x10000000  # adr x0
    distance = (adr >> 5 & 0x7FFFF) << 2 | adr >> 29 & 3
    # Behind the code, on the next page of 64 KiB, and behind the 19 bytes of the other data.
    assert code.symbols["zeros"][0] + distance == 0x10000 + 32
    assert code.data[32:] == bytes(16)
    adr, length, branch = words("stop")
    assert length == 0xD2800000 | 20 << 5 | 2  # movz x2, #20
    offset = code.symbols["stop"][0]
    text = offset + ((adr >> 5 & 0x7FFFF) << 2 | adr >> 29 & 3)
    assert code.text[text : text + 20] == b"this cannot be done\n"
    assert branch >> 26 == 0b000101
    distance = (branch & 0x3FFFFFF) - (1 << 26)  # it goes back
    assert offset + 8 + 4 * distance == 0
    calls = struct.unpack_from("<3I", code.text)
    assert calls == (0xD2800040, 0xD2800808, 0xD4000001)  # x0 = 2, x8 = 64, svc 0


def test_a_sentence_out_of_reach_is_refused():
    parts = {f"f{i}": Stop("x" * 60000) for i in range(20)}
    with pytest.raises(ValueError, match="within 1 MiB"):
        machine_code.assemble("aarch64", parts)


@ON_X86_64
def test_functions_do_what_their_bodies_say(tmp_path, python):
    path = tmp_path / "libparts.so"
    path.write_bytes(library("x86_64"))
    program = f"""
import ctypes
library = ctypes.CDLL({str(path)!r})
library.null.restype = ctypes.c_void_p
library.message.restype = ctypes.c_char_p
number = ctypes.c_uint32(7)
for name in ("list", "zeros"):
    getattr(library, name).restype = ctypes.POINTER(ctypes.c_uint64)
pointer, five = library.list()[:2]
print(ctypes.string_at(pointer), five, pointer - ctypes.addressof(library.list().contents))
library.zeros()[0] += 7
print(library.zeros()[0])
print(library.answer(), library.minus(), library.null(), library.count(ctypes.byref(number)))
print(number.value, library.message().decode(), flush=True)
library.stop()
print("not reached")
"""
    output, errors = python("-c", program, code=-signal.SIGABRT)
    assert output == "b'abc' 5 16\n7\n207000 -1 None 0\n0 no device\n"
    assert errors == "this cannot be done\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"#!/bin/sh\n", "it begins with b'#!/bin'"),
        (b"\x7fELF\x01\x01" + bytes(100), "it begins with"),
        (b"\x7fELF\x02\x01" + bytes(10), "it ends early"),
        (b"\x7fELF\x02\x01" + bytes(100), "dynamic symbol table, it has none"),
    ],
)
def test_a_file_that_is_none_is_refused(content, message, tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    with pytest.raises(elf.ElfError, match=message) as raised:
        elf.read(path)
    assert str(path) in str(raised.value)


def test_a_truncated_file_is_refused(machine, tmp_path):
    path = tmp_path / "lib.so"
    whole = library(machine)
    for length in range(64, len(whole), 997):
        path.write_bytes(whole[:length])
        with pytest.raises(elf.ElfError, match=str(path)):
            elf.read(path)


def test_a_section_past_the_end_is_refused(machine, tmp_path):
    whole = bytearray(library(machine))
    header = elf._EHDR.unpack_from(whole)
    for place in range(header[12]):
        start = header[6] + place * header[11]
        section = list(elf._SHDR.unpack_from(whole, start))
        if section[1] == elf._SHT_DYNSYM:
            section[5] = len(whole)
            elf._SHDR.pack_into(whole, start, *section)
    path = tmp_path / "lib.so"
    path.write_bytes(whole)
    with pytest.raises(elf.ElfError, match="it ends early") as raised:
        elf.read(path)
    assert "a section ends after the file" in str(raised.value.__cause__)


def test_an_unknown_machine_is_refused():
    with pytest.raises(elf.ElfError, match="x86_64, aarch64, got 'riscv64'"):
        elf.write("riscv64", "lib.so", b"", {})


@pytest.mark.parametrize(
    ("symbol", "body"),
    [
        ("aclrtGetDeviceCount", StoreZero()),
        ("aclInit", Return(200001)),
        ("aclrtCreateStream", Return(200001)),
        ("aclGetTensorDescDimV2", Return(200001)),
        ("aclCreateTensorDesc", Return(0)),
        ("acltdtGetDataItem", Return(0)),
        ("aclrtGetSocName", Return(0)),
        ("rtKernelLaunch", Return(207000)),
        ("HcclAllReduce", Return(5)),
        ("MsprofReportApi", Return(-1)),
        ("snprintf_s", Return(-1)),
        ("strcpy_s", Return(22)),
        # Called while a library is loaded: there is nobody to hear an answer.
        (
            "_ZN2ge23OperatorCreatorRegisterC1EPKcRKSt8functionIFNS_8OperatorERKNS_12AscendStringEEE",
            Return(0),
        ),
    ],
)
def test_c_functions_say_that_they_failed(symbol, body):
    assert bodies.body_of(symbol) == body


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN2ge10GEFinalizeEv", "ge::GEFinalize"),
        ("_ZN2ge10TensorDescC1Ev", "ge::TensorDesc::TensorDesc"),
        ("_ZN2ge7SessionD1Ev", "ge::Session::~Session"),
        ("_ZNK2ge5Shape7GetDimsEv", "ge::Shape::GetDims"),
        ("_ZN3atb15CreateOperationINS_5infer11LinearParamEEEi", "atb::CreateOperation"),
        ("_Z6g_initv", "g_init"),
        ("unheard_of", "unheard_of"),
    ],
)
def test_everything_else_stops_with_a_sentence(symbol, name):
    body = bodies.body_of(symbol)
    assert isinstance(body, Stop)
    assert body.text.startswith(f"npu-lowering: {name} was called, which needs the CANN software")
    assert body.text.endswith(f"(symbol {symbol})")
