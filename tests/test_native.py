"""The compiled kernel against a loop that a reader can check, bit for bit, on every path here."""

import ctypes
import importlib.metadata
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from npu_lowering.operators.grouped_matmul_finalize_routing import native

SOURCE = Path(__file__).parents[1] / "lowering" / "csrc" / "grouped_matmul.c"
# AVX-VNNI with AVX-512's encoding of the same instruction, so that its path runs on such machines.
ENCODED = "avxvnni with AVX-512's encoding"


def _paths():
    library = native._library()
    if library is None:
        return []
    names = (library.grouped_matmul_path_name(i) for i in range(len(native.PATHS)))
    found = [name.decode() for name in names if name is not None]
    return [name for i, name in enumerate(found) if library.grouped_matmul_path_runs(i)]


PATHS = _paths()
needs_kernel = pytest.mark.skipif(not PATHS, reason="no compiled kernel is installed")


@pytest.fixture(scope="session")
def encoded_library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None or "avx512vnni" not in PATHS:
        pytest.skip("needs a C compiler, cc, and a processor with AVX-512 VNNI")
    library = tmp_path_factory.mktemp("native") / "encoded.so"
    flags = ["-std=c11", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]
    define = "-DNPU_LOWERING_AVXVNNI_AS_AVX512"
    subprocess.run([compiler, *flags, define, "-o", library, SOURCE], check=True)
    return library


@pytest.fixture
def use(monkeypatch):
    """Makes later calls go by the path of that name."""

    def force(name, library=None):
        native._kernel.cache_clear()
        monkeypatch.setenv(native.VARIABLE, name)
        if library is not None:
            monkeypatch.setenv(native.LIBRARY_VARIABLE, str(library))
        assert native.path() == name

    yield force
    native._kernel.cache_clear()


@pytest.fixture(params=[*PATHS, ENCODED] if PATHS else [pytest.param("", marks=needs_kernel)])
def path(request, use):
    if request.param == ENCODED:
        use("avxvnni", request.getfixturevalue("encoded_library"))
    else:
        use(request.param)
    return request.param


@pytest.fixture
def threads():
    """Sets torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def reference(out, x, w, ends, scale, bias=None, pertoken_scale=None, logit=None, row_index=None):
    """The contract's lines, one row at a time."""
    out = out.clone()
    start = 0
    for g, end in enumerate(ends):
        acc = (x[start:end].double() @ w[g].double()).to(torch.int32) if end > start else None
        for r in range(start, end):
            y = acc[r - start].float() * scale[g].float()
            one = torch.ones(())
            weight = one if logit is None else logit[r]
            y = y * ((one if pertoken_scale is None else pertoken_scale[r]) * weight)
            if bias is not None:
                y = y + weight * bias[g].float()
            out[row_index[r]] += y
        start = end
    return out


def to_nz(w):
    """(e, k, n) to (e, n1, k1, 16, 32); the padding rows are garbage, as a device leaves them."""
    e, k, n = w.shape
    padded = torch.randint(-128, 128, (e, -(-k // 16) * 16, n), dtype=torch.int8)
    padded[:, :k] = w
    return padded.view(e, -1, 16, n // 32, 32).permute(0, 3, 1, 2, 4).contiguous()


def to_lines(w, pad=0):
    """The same values with k contiguous, and that many bytes between the columns."""
    e, k, n = w.shape
    padded = torch.full((e, n, k + pad), 77, dtype=torch.int8)
    padded[:, :, :k] = w.transpose(1, 2)
    return padded[:, :, :k].transpose(1, 2)


def problem(counts, k, n, *, output_bs=None, tail=0, bias=True, options=True, seed=0):
    """Arguments of the kernel, and what they are added to."""
    g = torch.Generator().manual_seed(seed)
    e, m = len(counts), sum(counts) + tail
    output_bs = output_bs or max(1, m // 2)
    arguments = {
        "x": torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=g),
        "w": torch.randint(-128, 128, (e, k, n), dtype=torch.int8, generator=g),
        "ends": torch.tensor(counts).cumsum(0).tolist(),
        "scale": torch.rand(e, n, generator=g) * 1e-2,
        "bias": torch.randn(e, n, generator=g) if bias else None,
        "pertoken_scale": torch.rand(m, generator=g) if options else None,
        "logit": torch.rand(m, generator=g) if options else None,
        "row_index": torch.randint(output_bs, (m,), generator=g),
    }
    return torch.randn(output_bs, n, generator=g), arguments


def check(out, arguments, **instead):
    """The kernel on the arguments, some of them in another form, against the loop."""
    expected = reference(out, **arguments)
    out = out.clone()
    native.grouped_matmul_combine(out, **{**arguments, **instead})
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def check_layouts(out, arguments):
    """The same with the weights in each layout that the kernel knows."""
    w = arguments["w"]
    check(out, arguments)
    check(out, arguments, w=to_lines(w))
    check(out, arguments, w=to_lines(w, pad=5))
    if w.shape[2] % 32 == 0:
        check(out, arguments, w=to_nz(w))


# ------------------------------------------------------------------------------------- shapes


@pytest.mark.usefixtures("path")
def test_every_row_count():
    for rows in range(1, 41):
        out, arguments = problem([rows], 68, 96, bias=rows % 2 == 0, seed=rows)
        check_layouts(out, arguments)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 129, 131, 260, 1027])
@pytest.mark.usefixtures("path")
def test_every_kind_of_k(k):
    for rows in (1, 3, 8, 21):
        out, arguments = problem([rows, 2], k, 64, seed=k)
        check_layouts(out, arguments)


@pytest.mark.usefixtures("path")
def test_every_n():
    for n in range(1, 101):
        out, arguments = problem([9, 0, 2], 21, n, seed=n)
        check_layouts(out, arguments)


@pytest.mark.parametrize("n", [32, 64, 288, 1312])
@pytest.mark.usefixtures("path")
def test_wide(n):
    for counts in ([2, 1], [5, 19], [40]):
        out, arguments = problem(counts, 150, n)
        check_layouts(out, arguments)


@pytest.mark.parametrize("n", [1024, 4096, 4160])
@pytest.mark.usefixtures("path")
def test_rows_that_share_sets_of_a_cache(n):
    """Their steps depend on the largest power of two that divides a row's bytes."""
    for rows in (4, 7, 20, 30, 130):
        out, arguments = problem([rows], 700, n)
        check(out, arguments)


@pytest.mark.usefixtures("path")
def test_groups_without_rows_and_no_rows_at_all():
    out, arguments = problem([0, 3, 0, 0, 17, 0], 40, 40)
    check(out, arguments)
    out, arguments = problem([0, 0], 40, 40, tail=3)
    check(out, arguments)


# ------------------------------------------------------------------------------------- values


@pytest.mark.usefixtures("path")
def test_extreme_products_are_exact():
    for a, b in ((-128, -128), (127, -128), (-128, 127), (127, 127)):
        out, arguments = problem([3, 12], 8192, 32, bias=False)
        arguments["x"].fill_(a)
        arguments["w"].fill_(b)
        arguments["scale"].fill_(1.0)
        check_layouts(out.zero_(), arguments)


@pytest.mark.usefixtures("path")
def test_the_largest_k_that_cannot_overflow():
    out, arguments = problem([2], 131071, 32, bias=False)
    arguments["x"].fill_(-128)
    arguments["w"].fill_(-128)
    check_layouts(out, arguments)


@pytest.mark.parametrize("given", ["scale", "bias", "pertoken_scale", "logit"])
@pytest.mark.usefixtures("path")
def test_options_and_types(given):
    out, arguments = problem([4, 9], 48, 80)
    if given in ("scale", "bias"):
        arguments[given] = arguments[given].bfloat16()
    else:
        arguments[given] = None
    arguments["row_index"] = arguments["row_index"].int()
    check(out, arguments)
    check(out, {**arguments, "bias": None})
    check(out, {**arguments, "pertoken_scale": None, "logit": None})


@pytest.mark.usefixtures("path")
def test_infinities_and_nans_flow():
    out, arguments = problem([6, 9], 16, 64)
    arguments["scale"][0, 3], arguments["scale"][1, 40] = torch.inf, torch.nan
    arguments["logit"][2], arguments["pertoken_scale"][7] = torch.nan, -torch.inf
    arguments["x"][4] = 0
    check(out, arguments)


@pytest.mark.usefixtures("path")
def test_one_output_row_takes_every_row_in_order():
    out, arguments = problem([30, 30, 30], 32, 64, output_bs=1)
    arguments["scale"] *= torch.tensor([[1.0], [1e6], [1e-6]])
    check(out, arguments)


# ------------------------------------------------------------------------------------- layout


def _spread(tensor, dim=-1):
    """The same values, every second element of memory along dim."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    back = [order.index(i) for i in range(tensor.dim())]
    laid_out = tensor.permute(order).contiguous()
    wide = torch.repeat_interleave(laid_out, 2, back[dim])
    return wide[(slice(None),) * back[dim] + (slice(None, None, 2),)].permute(back)


def _lay_out(tensor, order):
    """The same values with dimensions in memory in that order, the last one contiguous."""
    return tensor.permute(order).contiguous().permute([order.index(i) for i in range(len(order))])


def _unaligned(tensor):
    """The same values one element further on in memory."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    flat[1:] = tensor.flatten()
    return flat[1:].view(tensor.shape)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {name: _unaligned(t) for name, t in a.items()},
        lambda a: {name: _spread(t) for name, t in a.items()},
        lambda a: {name: _spread(t, 0) for name, t in a.items()},
        lambda a: {"x": a["x"].t().contiguous().t()},
        lambda a: {"w": _spread(a["w"], 1)},
        lambda a: {"w": a["w"].transpose(1, 2).contiguous().transpose(1, 2)},
        lambda a: {"w": a["w"].transpose(0, 2).contiguous().transpose(0, 2)},
        lambda a: {"w": a["w"][:, :, :32].repeat(1, 1, 3), "scale": a["scale"][:1].expand(3, 96)},
        lambda a: {"w": _unaligned(to_nz(a["w"]))},
        lambda a: {"w": _spread(to_nz(a["w"]), 4)},
        lambda a: {"w": _spread(to_nz(a["w"]), 3)},
        lambda a: {"w": _spread(to_nz(a["w"]), 2)},
        lambda a: {"w": _spread(to_nz(a["w"]), 1)},
        lambda a: {"w": _spread(to_nz(a["w"]), 0)},
        lambda a: {"w": _lay_out(to_nz(a["w"]), (0, 1, 2, 4, 3))},
        lambda a: {"w": _lay_out(to_nz(a["w"]), (0, 1, 4, 2, 3))},
        lambda a: {"w": _spread(_lay_out(to_nz(a["w"]), (0, 1, 4, 2, 3)), 1)},
        lambda a: {"w": _unaligned(to_lines(a["w"]).transpose(1, 2)).transpose(1, 2)},
        lambda a: {"w": _spread(to_lines(a["w"]).transpose(1, 2)).transpose(1, 2)},
    ],
)
@pytest.mark.parametrize("k", [18, 272])
@pytest.mark.usefixtures("path")
def test_inputs_as_they_are(change, k):
    out, arguments = problem([2, 13, 1], k, 96)
    changed = change({name: t for name, t in arguments.items() if torch.is_tensor(t)})
    if "w" in changed and "scale" in changed and changed["w"].dim() == 3:
        arguments = {**arguments, "w": changed["w"], "scale": changed["scale"]}
    check(out, arguments, **changed)


@pytest.mark.usefixtures("path")
def test_one_panel_of_columns_in_tiles():
    """Where k is contiguous within a tile only, the tiles being next to each other or not."""
    out, arguments = problem([2, 13, 1], 40, 32)
    for order in ((0, 1, 2, 4, 3), (0, 1, 4, 2, 3)):
        check(out, arguments, w=_lay_out(to_nz(arguments["w"]), order))


class _Guarded:
    """Memory whose last page cannot be touched; tensors are laid against it."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.held = []

    def put(self, tensor, keep=None):
        """A copy of the tensor with only its first `keep` entries of dim 0 before the guard."""
        keep = len(tensor) if keep is None else keep
        row = tensor[:1].numel() * tensor.element_size()
        page = mmap.PAGESIZE
        readable = -(-max(1, keep * row) // page) * page
        guarded = max(1, -(-(len(tensor) - keep) * row // page)) * page
        memory = mmap.mmap(-1, page + readable + guarded)
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        first = page + readable - keep * row
        filled = buffer[first : page + readable]
        filled.copy_(tensor[:keep].contiguous().view(torch.uint8).flatten())
        for start, length in ((0, page), (page + readable, guarded)):
            address = ctypes.c_void_p(buffer.data_ptr() + start)
            assert self.libc.mprotect(address, ctypes.c_size_t(length), 0) == 0
            self.held.append((memory, buffer, address, length))
        placed = buffer[first : first + len(tensor) * row]
        return placed.view(tensor.dtype).view(tensor.shape)

    def close(self):
        for _, _, address, length in self.held:
            self.libc.mprotect(address, ctypes.c_size_t(length), mmap.PROT_READ | mmap.PROT_WRITE)
        self.held.clear()


@pytest.fixture
def guarded():
    guard = _Guarded()
    yield guard.put
    guard.close()


@pytest.mark.parametrize("counts", [[1], [3, 2], [8, 19], [27]])
@pytest.mark.parametrize(
    ("k", "n"), [(1, 1), (7, 33), (64, 64), (129, 95), (256, 128), (1030, 353), (1100, 352)]
)
@pytest.mark.usefixtures("path")
def test_nothing_is_touched_past_an_end(guarded, threads, counts, k, n):
    threads(2)
    tail = 3
    out, arguments = problem(counts, k, n, tail=tail)
    rows = arguments["ends"][-1]
    expected = reference(out, **arguments)
    by_row = {"x", "pertoken_scale", "logit", "row_index"}
    placed = {
        name: guarded(value, rows if name in by_row else None) if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }
    result = guarded(out)
    native.grouped_matmul_combine(result, **placed)
    assert torch.equal(result, expected)
    w = arguments["w"]
    columns = w.transpose(1, 2).contiguous()
    others = [guarded(columns).transpose(1, 2)]
    others.append(guarded(columns.repeat_interleave(2, 2))[:, :, ::2].transpose(1, 2))
    if n % 32 == 0:
        others.append(guarded(to_nz(w)))
    for other in others:
        result.copy_(out)
        native.grouped_matmul_combine(result, **{**placed, "w": other})
        assert torch.equal(result, expected)


@pytest.mark.usefixtures("path")
def test_rows_at_the_start_of_memory(guarded):
    """Mappings are guarded before their first page too; a whole page lies against both."""
    out, arguments = problem([8], 512, 64)
    arguments["w"] = guarded(arguments["w"])
    arguments["x"] = guarded(arguments["x"])
    check(out, arguments)


# ------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("torchs", [True, False], ids=["torch's threads", "threads of our own"])
@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.usefixtures("path")
def test_any_number_of_threads_gives_the_same(threads, count, torchs):
    threads(count)
    native._kernel.cache_clear()
    assert native.available()
    if not torchs:
        native._library().grouped_matmul_use_threads(None)
    for counts, k, n in (([2, 1, 3], 1539, 360), ([11, 0, 2], 1284, 384), ([50, 3, 30], 256, 544)):
        out, arguments = problem(counts, k, n)
        check_layouts(out, arguments)


@pytest.mark.usefixtures("path")
def test_sums_that_go_by_batches(threads):
    threads(2)
    out, arguments = problem([9, 3, 0, 4, 6, 2], 8, 100_001)
    check(out, arguments)


@pytest.mark.usefixtures("path")
def test_many_callers_at_once(threads):
    threads(2)
    cases = [problem([3 * i, 7, i], 256, 544, seed=i) for i in range(1, 7)]
    expected = [reference(out, **arguments) for out, arguments in cases]
    wrong = []

    def call(i):
        for _ in range(20):
            out = cases[i][0].clone()
            native.grouped_matmul_combine(out, **cases[i][1])
            if not torch.equal(out, expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(cases))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


PROGRAM = """
import multiprocessing, os, sys, threading, warnings
sys.path.insert(0, {tests!r})
import npu_lowering, torch
from npu_lowering.operators.grouped_matmul_finalize_routing import native
import test_native

def once():
    torch.set_num_threads(2)
    out, arguments = test_native.problem([20, 3], 512, 512)
    test_native.check(out, arguments)

def many():
    for _ in range(3):
        once()

if __name__ == "__main__":
    many()
    {body}
    many()
    print("done")
"""

BODIES = {
    "fork": """
    warnings.simplefilter("ignore", DeprecationWarning)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # torch's own threads do not survive; ours are made anew
            out, arguments = test_native.problem([20, 3], 512, 512)
            torch.get_num_threads = lambda: 2
            expected = test_native.reference(out, **arguments)
            native.grouped_matmul_combine(out, **arguments)
            os._exit(0 if torch.equal(out, expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
""",
    "fork while others call": """
    warnings.simplefilter("ignore", DeprecationWarning)
    stop = threading.Event()
    out, arguments = test_native.problem([20, 3], 512, 512)
    expected = test_native.reference(out, **arguments)
    def forever():
        while not stop.is_set():
            native.grouped_matmul_combine(out.clone(), **arguments)
    caller = threading.Thread(target=forever)
    caller.start()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            result = out.clone()
            torch.get_num_threads = lambda: 2
            native.grouped_matmul_combine(result, **arguments)
            os._exit(0 if torch.equal(result, expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    caller.join()
""",
    "spawn": """
    child = multiprocessing.get_context("spawn").Process(target=many)
    child.start()
    child.join()
    assert child.exitcode == 0
""",
    "exit in the middle": """
    out, arguments = test_native.problem([200, 30], 2048, 2048)
    def forever():
        while True:
            native.grouped_matmul_combine(out, **arguments)
    threading.Thread(target=forever, daemon=True).start()
""",
}


@needs_kernel
@pytest.mark.parametrize("body", BODIES)
def test_processes(tmp_path, body):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(tests=str(Path(__file__).parent), body=BODIES[body].strip()))
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# -------------------------------------------------------------------------------- which path


@needs_kernel
def test_the_best_path_is_chosen(use, monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)
    native._kernel.cache_clear()
    assert native.available()
    assert native.path() == PATHS[0]
    use(PATHS[-1])
    assert native.path() == "c"


@pytest.mark.usefixtures("use")
def test_torch_means_no_kernel(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    native._kernel.cache_clear()
    assert not native.available()
    assert native.path() == "none"
    out, arguments = problem([1], 4, 4)
    with pytest.raises(RuntimeError, match="no compiled kernel is available"):
        native.grouped_matmul_combine(out, **arguments)


@pytest.mark.usefixtures("use")
def test_an_unknown_name_says_what_there_is(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "sse")
    native._kernel.cache_clear()
    with pytest.raises(ValueError, match=r"must be one of auto, torch, avx512vnni, .*, c; got sse"):
        native.path()


@needs_kernel
@pytest.mark.usefixtures("use")
def test_a_path_of_another_processor_says_what_there_is(monkeypatch):
    lacking = next(name for name in native.PATHS if name not in PATHS)
    monkeypatch.setenv(native.VARIABLE, lacking)
    native._kernel.cache_clear()
    with pytest.raises(RuntimeError, match=f"={lacking}, which this .* lacks; it has"):
        native.path()


@pytest.mark.usefixtures("use")
def test_without_a_library_there_is_no_kernel(monkeypatch):
    monkeypatch.setattr(native, "_library", lambda: None)
    monkeypatch.setenv(native.VARIABLE, "auto")
    native._kernel.cache_clear()
    assert native.path() == "none"
    monkeypatch.setenv(native.VARIABLE, "c")
    native._kernel.cache_clear()
    with pytest.raises(RuntimeError, match="no compiled kernel is installed"):
        native.path()


def test_a_library_that_was_not_built_is_not_looked_for_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv(native.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(native, "_LIBRARY", tmp_path / native._LIBRARY.name)
    assert native._library() is None


def test_a_torch_without_openmp_gives_no_threads(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert native._torch_threads() is None


def test_memory_that_ran_out_is_an_error(monkeypatch):
    monkeypatch.setattr(native, "_kernel", lambda: native._Kernel(lambda *_: -1, 0, "c"))
    out, arguments = problem([1], 4, 4)
    with pytest.raises(MemoryError, match="workspace of grouped_matmul_combine"):
        native.grouped_matmul_combine(out, **arguments)


def _fields(*changes):
    """native._Call with some (index, field or None) other than they are."""
    fields = list(native._Call._fields_)
    for i, field in changes:
        fields[i : i + 1] = [] if field is None else [field]
    return type("_Call", (ctypes.Structure,), {"_fields_": fields})


@needs_kernel
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(1, ("out_rows", ctypes.c_int64))], r"out_rows at 8, 8 bytes, got out_row at 8, 8 bytes"),
        (
            [(12, ("k", ctypes.c_int64)), (13, ("e", ctypes.c_int64))],  # of one size, swapped
            r"k at 96, 8 bytes, got e at 96, 8 bytes",
        ),
        ([(13, ("k", ctypes.c_int32))], r"k at 104, 4 bytes, got k at 104, 8 bytes"),
        ([(30, None)], r"its end at 240, got threads at 240, 8 bytes"),
    ],
)
@pytest.mark.usefixtures("use")
def test_a_library_with_another_call_is_refused(monkeypatch, changes, message):
    monkeypatch.setattr(native, "_Call", _fields(*changes))
    with pytest.raises(ImportError, match=f"build it again: its call must have {message}"):
        native._library()


def test_a_library_that_names_no_fields_is_refused():
    with pytest.raises(ImportError, match="must have out at 0, 8 bytes, got nothing"):
        native._check_fields(ctypes.CDLL(None))


def test_each_header_is_included_once_by_the_one_source():
    folder = SOURCE.parent
    included = re.findall(r'^#include "(.+)"$', SOURCE.read_text(), flags=re.MULTILINE)
    assert sorted(included) == sorted(file.name for file in folder.glob("*.h"))
    assert [file for file in folder.iterdir() if file.suffix == ".c"] == [SOURCE]
    assert not any('#include "' in file.read_text() for file in folder.glob("*.h"))


@needs_kernel
def test_the_library_is_for_any_python():
    """A file with no tag of an interpreter, in a wheel that has none either."""
    assert native._LIBRARY.is_file()
    # A work tree's egg-info, which has none, may be found as well.
    found = importlib.metadata.distributions(name="npu-lowering")
    wheels = [wheel for wheel in (each.read_text("WHEEL") for each in found) if wheel]
    assert len(wheels) == 1
    assert re.search(r"^Tag: py3-none-(?!any$)", wheels[0], flags=re.MULTILINE), wheels


@needs_kernel
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads x86-64 registers")
def test_wide_registers_stay_in_their_paths():
    """Where no path asks for AVX, the compiler was given none: the rest runs on any x86-64."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("needs objdump")
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", native._library()._name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.split(r"^[0-9a-f]+ <(.+)>:$", listing, flags=re.MULTILINE)[1:]
    wide = {
        name
        for name, body in zip(functions[::2], functions[1::2])
        if re.search(r"%[yz]mm|\bv[a-z0-9]+ +.*%xmm", body)
    }
    assert wide, "no function uses AVX: is this the right library?"
    assert {name for name in wide if not name.startswith("avx")} == set()
