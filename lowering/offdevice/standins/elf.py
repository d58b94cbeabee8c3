"""Reading and writing the dynamic symbols of ELF64 shared objects, with ``struct`` alone.

The reader tells what a wheel's libraries want from libraries that are not there. The writer makes
a shared object that provides those names, so that no compiler is needed on the user's machine.
Source: the System V ABI (generic, x86-64 and AArch64 supplements).
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

MACHINES = {"x86_64": 62, "aarch64": 183}
_PAGE = {"x86_64": 0x1000, "aarch64": 0x10000}
_RELATIVE = {"x86_64": 8, "aarch64": 1027}  # relocation: the load address plus the addend

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
_DYN = struct.Struct("<qQ")

_ET_DYN = 3
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_SHT_DYNAMIC, _SHT_DYNSYM = 6, 11
_DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT = 1, 4, 5, 6, 10, 11
_DT_RELA, _DT_RELASZ, _DT_RELAENT = 7, 8, 9
_DT_SONAME, _DT_RPATH, _DT_RUNPATH = 14, 15, 29
_STB_GLOBAL = 1
_STT_FUNC = 2
_PF_X, _PF_W, _PF_R = 1, 2, 4
_TEXT_SECTION = 4


class ElfError(ValueError):
    """A file is not the ELF64 little-endian shared object that it was taken for."""


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """What one shared object says to the dynamic loader."""

    machine: int
    soname: str
    needed: tuple[str, ...]
    runpath: tuple[str, ...]
    undefined: frozenset[str]
    """Names it must find elsewhere: undefined and STB_GLOBAL (an undefined weak may stay so)."""
    defined: frozenset[str]


def read(path: Path) -> Dynamic:
    """Read the dynamic section and the dynamic symbols of the shared object at ``path``.

    Raises:
        ElfError: The file is not an ELF64 little-endian object with a dynamic symbol table.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            image = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ElfError(f"{path} must be an ELF64 shared object, got an empty file") from error
        with image:
            try:
                return _read_image(image, path)
            except (struct.error, IndexError, UnicodeDecodeError) as error:
                raise ElfError(f"{path} must be a whole ELF64 file, it ends early") from error


def _read_image(image: mmap.mmap, path: Path) -> Dynamic:
    if image[:6] != b"\x7fELF\x02\x01":
        raise ElfError(
            f"{path} must be an ELF64 little-endian shared object, it begins with {image[:6]!r}"
        )
    header = _EHDR.unpack_from(image)
    machine, offset, size, count = header[2], header[6], header[11], header[12]
    sections = [_SHDR.unpack_from(image, offset + i * size) for i in range(count)]
    tables = {section[1]: section for section in sections}
    if _SHT_DYNSYM not in tables or _SHT_DYNAMIC not in tables:
        raise ElfError(f"{path} must have a dynamic symbol table, it has none")

    strings = _bytes_of(image, sections[tables[_SHT_DYNSYM][6]])
    undefined, defined = set(), set()
    for name, info, _other, index, _value, _size in _SYM.iter_unpack(
        _bytes_of(image, tables[_SHT_DYNSYM])
    ):
        if name and index:
            defined.add(_string(strings, name))
        elif name and info >> 4 == _STB_GLOBAL:
            undefined.add(_string(strings, name))

    strings = _bytes_of(image, sections[tables[_SHT_DYNAMIC][6]])
    entries: dict[int, list[str]] = {
        tag: [] for tag in (_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH)
    }
    for tag, value in _DYN.iter_unpack(_bytes_of(image, tables[_SHT_DYNAMIC])):
        if tag in entries:
            entries[tag].append(_string(strings, value))
    runpath = ":".join(entries[_DT_RUNPATH] or entries[_DT_RPATH])
    return Dynamic(
        machine=machine,
        soname="".join(entries[_DT_SONAME]),
        needed=tuple(entries[_DT_NEEDED]),
        runpath=tuple(part for part in runpath.split(":") if part),
        undefined=frozenset(undefined),
        defined=frozenset(defined),
    )


def _bytes_of(image: mmap.mmap, section: tuple[int, ...]) -> bytes:
    data = image[section[4] : section[4] + section[5]]
    if len(data) != section[5]:
        raise struct.error("a section ends after the file")
    return data


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()


def distance_to_data(machine: str, text: int) -> int:
    """How far behind the first byte of ``text`` bytes of code :func:`write` puts data."""
    return _align(text, _PAGE[machine])


def write(
    machine: str,
    soname: str,
    text: bytes,
    symbols: Mapping[str, tuple[int, int]],
    data: bytes = b"",
    pointers: Mapping[int, int] | None = None,
) -> bytes:
    """Make an ELF64 shared object that defines functions, and needs nothing.

    Two segments are loaded: one that is read and executed and never written (headers, symbols,
    code), and one that is written and never executed (data, and the dynamic section, in which the
    loader puts addresses).

    Args:
        machine: ``x86_64`` or ``aarch64``.
        soname: The name by which the loader knows the object once it is loaded.
        text: Position-independent machine code, and the data that it reads.
        symbols: For each function its offset in ``text`` and its size, in bytes.
        data: What the code may write to, :func:`distance_to_data` behind it.
        pointers: For each offset in ``data`` that is to hold an address, the offset that it is of.

    Returns:
        The bytes of the file; the same for the same arguments.
    """
    if machine not in MACHINES:
        raise ElfError(f"machine must be one of {', '.join(MACHINES)}, got {machine!r}")
    page = _PAGE[machine]
    strings = bytearray(b"\0")

    def intern(text: str) -> int:
        offset = len(strings)
        strings.extend(text.encode() + b"\0")
        return offset

    soname_at = intern(soname)
    names = sorted(symbols)
    names_at = [intern(name) for name in names]

    pointers = pointers or {}
    dynsym_at = _EHDR.size + 4 * _PHDR.size
    rela_at = dynsym_at + _SYM.size * (len(names) + 1)
    hash_at = rela_at + _RELA.size * len(pointers)
    table = _hash_table(names)
    dynstr_at = hash_at + len(table)
    text_at = _align(dynstr_at + len(strings), page if data else 16)
    data_at = _align(text_at + len(text), page)
    dynamic_at = _align(data_at + len(data), 16)

    dynsym = bytearray(_SYM.size)
    for name, name_at in zip(names, names_at):
        offset, size = symbols[name]
        info = _STB_GLOBAL << 4 | _STT_FUNC
        dynsym += _SYM.pack(name_at, info, 0, _TEXT_SECTION, text_at + offset, size)
    rela = b"".join(
        _RELA.pack(data_at + at, _RELATIVE[machine], data_at + to)
        for at, to in sorted(pointers.items())
    )
    dynamic = b"".join(
        _DYN.pack(tag, value)
        for tag, value in (
            (_DT_SONAME, soname_at),
            (_DT_HASH, hash_at),
            (_DT_STRTAB, dynstr_at),
            (_DT_SYMTAB, dynsym_at),
            (_DT_STRSZ, len(strings)),
            (_DT_SYMENT, _SYM.size),
            (_DT_RELA, rela_at),
            (_DT_RELASZ, len(rela)),
            (_DT_RELAENT, _RELA.size),
            (0, 0),
        )
    )
    # Sections are for tools (readelf, a debugger, the reader above); the loader ignores them.
    section_names = b"\0.dynsym\0.dynstr\0.hash\0.text\0.dynamic\0.rela.dyn\0.data\0.shstrtab\0"
    names_offset = dynamic_at + len(dynamic)
    headers_at = _align(names_offset + len(section_names), 8)
    sections = (
        (".dynsym", _SHT_DYNSYM, 2, dynsym_at, len(dynsym), 2, 1, _SYM.size),
        (".dynstr", 3, 2, dynstr_at, len(strings), 0, 0, 0),
        (".hash", 5, 2, hash_at, len(table), 1, 0, 4),
        (".text", 1, 6, text_at, len(text), 0, 0, 0),
        (".dynamic", _SHT_DYNAMIC, 3, dynamic_at, len(dynamic), 2, 0, _DYN.size),
        (".rela.dyn", 4, 2, rela_at, len(rela), 1, 0, _RELA.size),
        (".data", 1, 3, data_at, len(data), 0, 0, 0),
        (".shstrtab", 3, 0, names_offset, len(section_names), 0, 0, 0),
    )
    header = _EHDR.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        _ET_DYN,
        MACHINES[machine],
        1,
        0,
        _EHDR.size,
        headers_at,
        0,
        _EHDR.size,
        _PHDR.size,
        4,
        _SHDR.size,
        len(sections) + 1,
        len(sections),
    )
    end = text_at + len(text)
    writable = dynamic_at + len(dynamic) - data_at
    programs = (
        _PHDR.pack(_PT_LOAD, _PF_R | _PF_X, 0, 0, 0, end, end, page)
        + _PHDR.pack(_PT_LOAD, _PF_R | _PF_W, *[data_at] * 3, writable, writable, page)
        + _PHDR.pack(_PT_DYNAMIC, _PF_R | _PF_W, *[dynamic_at] * 3, len(dynamic), len(dynamic), 8)
        + _PHDR.pack(_PT_GNU_STACK, _PF_R | _PF_W, 0, 0, 0, 0, 0, 16)
    )
    image = bytearray(headers_at)
    for offset, part in (
        (0, header + programs),
        (dynsym_at, dynsym),
        (rela_at, rela),
        (hash_at, table),
        (dynstr_at, strings),
        (text_at, text),
        (data_at, data),
        (dynamic_at, dynamic),
        (names_offset, section_names),
    ):
        image[offset : offset + len(part)] = part
    image += bytes(_SHDR.size)
    for name, kind, flags, offset, size, link, info, entry in sections:
        name_at = section_names.index(name.encode() + b"\0")
        address = offset if flags else 0
        image += _SHDR.pack(name_at, kind, flags, address, offset, size, link, info, 8, entry)
    return bytes(image)


def _align(value: int, step: int) -> int:
    return -(-value // step) * step


def _hash_table(names: list[str]) -> bytes:
    """The DT_HASH table of symbols 1, 2, ... (symbol 0 is the undefined one)."""
    buckets = [0] * max(1, len(names))
    chain = [0] * (len(names) + 1)
    for index, name in enumerate(names, start=1):
        bucket = _hash(name) % len(buckets)
        chain[index], buckets[bucket] = buckets[bucket], index
    words = [len(buckets), len(chain), *buckets, *chain]
    return struct.pack(f"<{len(words)}I", *words)


def _hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high
    return value
