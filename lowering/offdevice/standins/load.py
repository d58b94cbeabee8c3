"""Stand-ins for the libraries of CANN, so that torch_npu can be imported where there is none.

What is missing is computed from the wheel that is installed: the names its libraries need from
elsewhere, less those that torch, the system and Python provide. Libraries with exactly these names
are written once, kept in the user's cache, and loaded before torch_npu.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from npu_lowering import errors
from npu_lowering.errors import OffDeviceError
from npu_lowering.offdevice.probe import MARK, Wheels, real_cann
from npu_lowering.offdevice.standins import allocator, bodies, cache, elf, machine_code
from npu_lowering.offdevice.standins.machine_code import Body
from npu_lowering.version import __version__

# Raise it when the same wheels are to get other stand-ins.
_GENERATION = 3
# All functions are in this one: names are looked up in every library that is loaded globally.
_FUNCTIONS = "libascendcl.so"
# torch_npu 2.1 loads it by name at import, so its libraries do not list it.
_LOADED_BY_NAME = "libopapi.so"


@dataclasses.dataclass(frozen=True)
class StandIns:
    """Where the stand-ins are.

    Attributes:
        folder: The folder; with ``temporary`` it is gone once they are loaded.
        libraries: The files, empty as long as they are not written.
        temporary: Why they are not in the cache, None if they are.
    """

    folder: Path
    libraries: tuple[Path, ...]
    temporary: str | None = None


def load(wheels: Wheels) -> StandIns:
    """Load the stand-ins into the process, writing them first where that is needed.

    What torch_npu needs beside a build of torch for an accelerator is loaded only where torch has
    been: before, torch would bind to it as well.

    Raises:
        OffDeviceError: They cannot be computed, written or loaded, or a real CANN is there.
    """
    real = real_cann()
    if real is not None:
        raise OffDeviceError(f"a real CANN is installed ({real} loads); stand-ins would hide it")
    try:
        found = _in_cache(wheels)
        _load(found.libraries)
    except cache.CacheUnavailableError as error:
        if error.insecure:
            warnings.warn(
                f"{error}. Until then the stand-in libraries are written anew at every start",
                RuntimeWarning,
                stacklevel=2,
            )
        return _load_temporary(wheels, str(error))
    except OSError as error:  # full, or a file system from which nothing may be executed
        return _load_temporary(wheels, f"the cache cannot be used: {error}")
    return found


def _in_cache(wheels: Wheels) -> StandIns:
    folder = cache.private_folder(_folder(wheels))
    files = cache.whole(folder)
    if files is None:
        cache.store(folder, build(wheels))
        files = cache.whole(folder)
    if files is None:
        raise cache.CacheUnavailableError(
            f"{folder} does not hold what was just written to it; remove it"
        )
    return StandIns(folder, tuple(files))


def _load_temporary(wheels: Wheels, reason: str) -> StandIns:
    try:
        folder = Path(tempfile.mkdtemp(prefix="npu-lowering-"))
    except OSError as error:
        raise OffDeviceError(
            f"there is no folder to write the stand-in libraries to: {reason}; and neither "
            f"is there a temporary one ({error}). Set XDG_CACHE_HOME or TMPDIR to a folder of your "
            "own that you can write to"
        ) from error
    try:
        cache.store(folder, build(wheels))
        _load(cache.whole(folder) or ())
    except OSError as error:
        raise OffDeviceError(
            f"the stand-in libraries cannot be written to or loaded from {folder}: {error}; nor "
            f"from the cache: {reason}. Set XDG_CACHE_HOME to a folder of your own that you can "
            "write to and execute from"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return StandIns(folder, (), reason)


def _load(libraries: Iterable[Path]) -> None:
    for library in libraries:
        if library.name == allocator.NAME and "torch" not in sys.modules:
            continue
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _folder(wheels: Wheels) -> Path:
    identity = [
        _GENERATION,
        __version__,
        wheels.torch_version,
        wheels.torch_npu_version,
        sys.implementation.cache_tag,
        platform.machine(),
        [str(wheels.torch), str(wheels.torch_npu)],
        [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in [
                *sorted(wheels.torch_npu.glob("lib/*.so")),
                *allocator.accelerators(wheels),
            ]
        ],
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return cache.default_root() / "stand-ins" / f"torch_npu-{wheels.torch_npu_version}-{key}"


def build(wheels: Wheels) -> dict[str, bytes]:
    """The stand-in libraries that the installed wheels need, by file name.

    Raises:
        OffDeviceError: The wheels are not what they should be, or need what cannot be stood in for.
    """
    machine = platform.machine()
    try:
        names, symbols = missing(wheels)
        beside = allocator.FUNCTIONS if allocator.is_needed(wheels) else {}
    except (elf.ElfError, OSError) as error:
        raise OffDeviceError(
            f"a library of the installed torch or torch_npu cannot be read: {error}. Install it "
            "again"
        ) from error
    mark = {MARK: bodies.body_of(MARK)}
    parts: dict[str, dict[str, Body]] = dict.fromkeys([*names, _LOADED_BY_NAME], mark)
    parts[_FUNCTIONS] = {**mark, **{symbol: bodies.body_of(symbol) for symbol in symbols}}
    if beside:
        parts[allocator.NAME] = {**mark, **beside}
    libraries = {}
    for name in sorted(parts):
        code = machine_code.assemble(machine, parts[name])
        libraries[name] = elf.write(
            machine, name, code.text, code.symbols, code.data, code.pointers
        )
    return libraries


def missing(wheels: Wheels) -> tuple[list[str], list[str]]:
    """The libraries, and the functions in them, that torch_npu needs and this machine lacks.

    Raises:
        elf.ElfError: A library is not one.
        OSError: A library cannot be read.
        OffDeviceError: Data is missing, for which there are no stand-ins.
    """
    own = {path.name: elf.read(path) for path in wheels.torch_npu.rglob("*.so")}
    beside = dict(_closure(own.values(), wheels.torch / "lib"))
    if not own or not beside:
        raise OffDeviceError(
            f"torch_npu in {wheels.torch_npu} must have libraries that need those of torch in "
            f"{wheels.torch / 'lib'}, got {len(own)} and {len(beside)}. Install both again"
        )
    here = elf.MACHINES[platform.machine()]
    for name, library in own.items():
        if library.machine != here:
            raise OffDeviceError(
                f"{name} of torch_npu must be for {platform.machine()}, it is for another "
                f"machine (ELF number {library.machine}). Install the wheel for this one"
            )
    system = [ctypes.CDLL(None)]
    absent = []
    for name in sorted({name for library in own.values() for name in library.needed}):
        if name not in own and name not in beside:
            try:
                system.append(ctypes.CDLL(name))
            except OSError:
                absent.append(name)
    wanted = {name for library in own.values() for name in library.undefined}
    for library in [*own.values(), *beside.values()]:
        wanted -= library.defined
    symbols = sorted(name for name in wanted if not any(hasattr(lib, name) for lib in system))
    data = [name for name in symbols if name.startswith(("_ZTV", "_ZTI", "_ZTS", "_ZTT"))]
    if data:
        raise OffDeviceError(
            f"this torch_npu ({wheels.torch_npu_version}) needs data of CANN, for which there are "
            f"no stand-ins: {', '.join(data)}. In an environment of its own, a pair that "
            f"is known to work: {errors.recipe()}"
        )
    return absent, symbols


def _closure(libraries: Iterable[elf.Dynamic], folder: Path) -> Iterator[tuple[str, elf.Dynamic]]:
    """The libraries of ``folder`` that ``libraries`` need, and those that these need, and so on."""
    queue = [name for library in libraries for name in library.needed]
    seen = set()
    while queue:
        name = queue.pop()
        if name not in seen and (folder / name).is_file():
            library = elf.read(folder / name)
            yield name, library
            queue.extend(library.needed)
        seen.add(name)
