"""The stand-in libraries: what is in them, where they are kept, and from where they are loaded."""

import ctypes
import dataclasses
import errno
import json
import os
import platform
import signal
import stat
import tempfile
from pathlib import Path

import pytest
from processes import LIGHT

from npu_lowering.offdevice import OffDeviceError, probe
from npu_lowering.offdevice.standins import cache, elf, machine_code
from npu_lowering.offdevice.standins import load as standins
from npu_lowering.offdevice.standins.machine_code import Return

SONAMES = {
    "libacl_op_compiler.so",
    "libacl_tdt_channel.so",
    "libascend_protobuf.so",
    "libascendcl.so",
    "libatb.so",
    "libfmk_parser.so",
    "libge_runner.so",
    "libgraph.so",
    "libhccl.so",
}
# Loads the stand-ins and says where from, and that the loader finds what is in them.
LOAD = f"""{LIGHT}
import ctypes
from npu_lowering.offdevice import probe
from npu_lowering.offdevice.standins import load as standins
found = standins.load(probe.find_wheels())
print(ctypes.CDLL(None).aclInit(None), found.folder, found.temporary, sep="|")
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of the test's own, in this process and in those that it starts."""
    root = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    return root


@pytest.fixture
def load(found, home, python):
    del found  # which another process finds anew

    def load(**kwargs):
        output, errors = python("-c", LOAD, env={"XDG_CACHE_HOME": str(home)}, **kwargs)
        status, folder, temporary = output.strip().split("|")
        assert status == "200001"
        return Path(folder), temporary, errors

    return load


@pytest.fixture(scope="session")
def libraries(found):
    return standins.build(found)


@pytest.fixture
def folder(found, libraries, home):  # noqa: ARG001 -- home says where
    """The folder of the stand-ins, whole, as a first start leaves it."""
    folder = cache.private_folder(standins._folder(found))
    cache.store(folder, libraries)
    return folder


def test_what_is_missing(found):
    names, symbols = standins.missing(found)
    assert set(names) == SONAMES
    assert {"aclrtGetDeviceCount", "aclInit", "_ZN2ge10GEFinalizeEv"} <= set(symbols)
    assert 150 < len(symbols) < 250
    torch = elf.read(found.torch / "lib" / "libtorch_cpu.so").defined
    assert not torch.intersection(symbols)
    assert not any(hasattr(ctypes.CDLL(None), symbol) for symbol in symbols)


def test_each_function_is_in_one_library_and_the_mark_in_all(libraries, tmp_path):
    assert set(libraries) == SONAMES | {"libopapi.so"}
    for name, image in libraries.items():
        path = tmp_path / name
        path.write_bytes(image)
        read = elf.read(path)
        assert read.soname == name
        assert probe.MARK in read.defined
        assert (len(read.defined) > 100) == (name == "libascendcl.so")


def test_a_first_start_writes_and_a_second_one_reads(load, home):
    folder, temporary, errors = load()
    assert (temporary, errors) == ("None", "")
    assert folder.parent == home / "npu-lowering" / "stand-ins"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(before) == SONAMES | {"libopapi.so", "manifest.json"}
    assert load() == (folder, "None", "")
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_what_is_written_is_private(folder, home):
    for path in (home, home / "npu-lowering", folder.parent, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def truncate(folder):
    path = folder / "libhccl.so"
    path.write_bytes(path.read_bytes()[:100])


def flip_a_byte(folder):
    path = folder / "libascendcl.so"
    image = bytearray(path.read_bytes())
    image[-1] ^= 1
    path.write_bytes(image)


def replace_by_a_link(folder):
    path = folder / "libatb.so"
    path.rename(folder / "elsewhere.so")
    path.symlink_to("elsewhere.so")


def open_to_others(folder):
    (folder / "libatb.so").chmod(0o622)


def state_a_planted_file(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({"libplanted.so": "0" * 64}))


def open_the_manifest_to_others(folder):
    (folder / "manifest.json").chmod(0o666)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_byte,
        replace_by_a_link,
        open_to_others,
        state_a_planted_file,
        open_the_manifest_to_others,
        lambda folder: (folder / "libgraph.so").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text("[1]"),
        lambda folder: (folder / "manifest.json").write_text('{"lib'),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff"),
    ],
)
def test_a_damaged_cache_is_written_anew(damage, folder, found, libraries, monkeypatch):
    damage(folder)
    assert cache.whole(folder) is None
    monkeypatch.setattr(standins, "build", lambda _: libraries)
    loaded = standins._in_cache(found)
    assert {path.name: path.read_bytes() for path in loaded.libraries} == libraries


def test_a_file_that_was_planted_is_not_loaded(folder):
    code = machine_code.assemble("x86_64", {"planted": Return(1)})
    (folder / "libplanted.so").write_bytes(
        elf.write("x86_64", "libplanted.so", code.text, code.symbols)
    )
    assert cache.whole(folder) is not None
    assert folder / "libplanted.so" not in cache.whole(folder)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(mode, folder, load):
    folder.chmod(mode)
    used, temporary, errors = load()
    assert used != folder
    for text in (temporary, errors):
        assert f"{folder} must not be writable by others" in text
        assert f"its mode is {mode:o}; run: chmod go-w {folder}" in text
    assert not used.exists()


def test_nor_one_below_such_a_folder(home, load):
    home.mkdir()
    home.chmod(0o775)
    _, temporary, errors = load()
    assert f"run: chmod go-w {home}" in temporary
    assert "RuntimeWarning" in errors


def test_nor_one_through_a_link_that_others_can_turn(folder, home, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "cache").symlink_to(home)
    assert cache.private_folder(folder) == folder
    with pytest.raises(cache.CacheUnavailableError, match=f"chmod go-w {shared}"):
        cache.private_folder(shared / "cache" / folder.relative_to(home))


def test_nor_one_that_is_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(cache.CacheUnavailableError, match="it is a symbolic link; remove it"):
        cache.private_folder(tmp_path / "link")


def test_nor_one_that_belongs_to_another_user(folder, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(cache.CacheUnavailableError, match=f"belong to user {me + 1}") as raised:
        cache.private_folder(folder)
    assert raised.value.insecure


def test_a_sticky_folder_above_is_no_danger(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    assert cache.private_folder(tmp_path / "tmp" / "mine") == tmp_path / "tmp" / "mine"


def test_a_link_above_that_only_we_can_turn_is_no_danger(folder, home, tmp_path):
    (tmp_path / "link").symlink_to(home)
    assert cache.private_folder(tmp_path / "link" / folder.relative_to(home)) == folder


def test_a_folder_that_cannot_be_written_to(folder, monkeypatch):
    """Which, by its mode, it could be: a file system that is read-only."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(cache.CacheUnavailableError, match="cannot be written to; set XDG_CACHE"):
        cache.private_folder(folder)


def test_the_folders_above_may_be_on_a_file_system_that_is_read_only(folder, monkeypatch):
    def mkdir(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(type(folder), "mkdir", mkdir)
    assert cache.private_folder(folder) == folder
    with pytest.raises(cache.CacheUnavailableError, match="Read-only file system"):
        cache.private_folder(folder / "new")


def test_what_was_just_written_is_not_whole(found, home, monkeypatch):
    monkeypatch.setattr(cache, "store", lambda *_: None)
    with pytest.raises(cache.CacheUnavailableError, match=f"{home}.* does not hold what was just"):
        standins._in_cache(found)


def test_a_home_that_cannot_be_written_to(tmp_path, load, home):
    home.write_text("a file, where a folder is wanted")
    temporaries = tmp_path / "temporaries"
    temporaries.mkdir()
    used, temporary, errors = load()
    assert "cannot be made or used as a folder" in temporary
    assert errors == ""  # that is how many containers are
    assert not used.exists()


def test_nowhere_to_write(found, home, monkeypatch):
    home.write_text("a file, where a folder is wanted")
    monkeypatch.setattr(tempfile, "tempdir", str(home / "nowhere"))
    with pytest.raises(OffDeviceError, match="Set XDG_CACHE_HOME or TMPDIR") as raised:
        standins.load(found)
    assert str(home) in str(raised.value)


@pytest.mark.usefixtures("found")
def test_a_cache_on_a_full_disk(home, python):
    """Half a file was written when there was no room left: it goes, and is nowhere loaded from."""
    full = f"""{LIGHT}
import errno, os
fsync = os.fsync
def full(descriptor):
    if os.readlink(f"/proc/self/fd/{{descriptor}}").startswith({str(home)!r}):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(descriptor)
os.fsync = full
"""
    output, errors = python("-c", full + LOAD, env={"XDG_CACHE_HOME": str(home)})
    assert output.startswith("200001|")
    assert "the cache cannot be used: [Errno 28] No space left on device" in output
    assert errors == ""  # that is how many containers are
    assert not [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("found")
def test_every_disk_is_full(home, python):
    """No file may become longer than a page, as where the last page of a disk was just taken."""
    program = f"""{LIGHT}
import resource
from npu_lowering.offdevice import OffDeviceError, probe
from npu_lowering.offdevice.standins import load as standins
found = probe.find_wheels()
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
try:
    standins.load(found)
except OffDeviceError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, before)  # where coverage runs, it writes at the end
"""
    output, errors = python("-c", program, env={"XDG_CACHE_HOME": str(home)})
    assert "the stand-in libraries cannot be written to or loaded from" in output
    assert "nor from the cache: the cache cannot be used: " in output
    assert errors == ""
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.default_root() == tmp_path / ".cache" / "npu-lowering"


@pytest.mark.usefixtures("found")
def test_starts_that_race(home, start):
    processes = [start("-c", LOAD, env={"XDG_CACHE_HOME": str(home)}) for _ in range(4)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, results
    assert len({output for output, _ in results}) == 1
    folder = Path(results[0][0].split("|")[1])
    assert {path.name for path in folder.iterdir()} == SONAMES | {"libopapi.so", "manifest.json"}


@pytest.mark.parametrize("written", [0, 4, 10])
def test_a_start_that_is_killed(written, home, python, load):
    killed = f"""{LIGHT}
import os, signal
from npu_lowering.offdevice import probe
from npu_lowering.offdevice.standins import cache
from npu_lowering.offdevice.standins import load as standins
fsync, left = os.fsync, iter(range({written}))
def killing(descriptor):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = killing
standins.load(probe.find_wheels())
"""
    python("-c", killed, env={"XDG_CACHE_HOME": str(home)}, code=-signal.SIGKILL)
    folder, temporary, errors = load()
    assert (temporary, errors) == ("None", "")
    (left,) = folder.glob("*.part")
    os.utime(left, (0, 0))  # it is old now
    (folder / "libatb.so").unlink()
    load()
    assert {path.name for path in folder.iterdir()} == SONAMES | {"libopapi.so", "manifest.json"}


def test_another_release_gets_stand_ins_of_its_own(found, monkeypatch):
    folders = {standins._folder(found)}
    for change in ({"torch_version": "9.9.9"}, {"torch_npu_version": "9.9.9"}):
        folders.add(standins._folder(dataclasses.replace(found, **change)))
    for owner, name, value in (
        (standins, "__version__", "9.9.9"),
        (standins.sys.implementation, "cache_tag", "cpython-99"),
        (platform, "machine", lambda: "aarch64"),
    ):
        with monkeypatch.context() as context:
            context.setattr(owner, name, value)
            folders.add(standins._folder(found))
    assert len(folders) == 6


def test_they_are_written_for_aarch64_too(found, monkeypatch):
    names, symbols = standins.missing(found)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(standins, "missing", lambda _: (names, symbols))
    for image in standins.build(found).values():
        assert image[18] == elf.MACHINES["aarch64"]


def test_data_that_is_missing_has_no_stand_in(found, monkeypatch):
    read = elf.read

    def with_data(path):
        library = read(path)
        if path.name != "libtorch_npu.so":
            return library
        return dataclasses.replace(library, undefined=library.undefined | {"_ZTVN2ge4NodeE"})

    monkeypatch.setattr(elf, "read", with_data)
    with pytest.raises(OffDeviceError, match=r"needs data of CANN.*_ZTVN2ge4NodeE"):
        standins.missing(found)


def test_a_wheel_for_another_machine(found, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(OffDeviceError, match="must be for aarch64, it is for another machine"):
        standins.missing(found)


def test_a_damaged_wheel(found, tmp_path):
    (tmp_path / "libtorch_npu.so").write_bytes(b"")
    with pytest.raises(OffDeviceError, match=r"libtorch_npu\.so must be .* got an empty file"):
        standins.build(dataclasses.replace(found, torch_npu=tmp_path))
    (tmp_path / "libtorch_npu.so").unlink()
    with pytest.raises(OffDeviceError, match=r"got 0 and 0\. Install both again"):
        standins.build(dataclasses.replace(found, torch_npu=tmp_path))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs machine code of x86_64")
@pytest.mark.usefixtures("found")
def test_a_real_cann_is_left_alone(tmp_path, home, python):
    """Any libascendcl.so that is not ours counts as real."""
    code = machine_code.assemble("x86_64", {"aclInit": Return(0)})
    (tmp_path / "libascendcl.so").write_bytes(
        elf.write("x86_64", "libascendcl.so", code.text, code.symbols)
    )
    program = f"""{LIGHT}
import warnings
from npu_lowering.offdevice import OffDeviceError, install, probe
from npu_lowering.offdevice.standins import load as standins
with warnings.catch_warnings(record=True) as caught:
    print(install())
print(*[warning.message for warning in caught])
try:
    standins.load(probe.find_wheels())
except OffDeviceError as error:
    print(error)
"""
    env = {"LD_LIBRARY_PATH": str(tmp_path), "XDG_CACHE_HOME": str(home)}
    output, _ = python("-c", program, env=env)
    declined, warned, refused = output.splitlines()
    assert declined == "False"
    assert warned.startswith("npu_lowering.offdevice.install() did nothing: a real CANN is here")
    assert refused.startswith("a real CANN is installed (libascendcl.so loads)")
    assert not home.exists()
