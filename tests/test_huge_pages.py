"""Copies of weights lie on huge pages, and nothing else does."""

import copy
import gc
import io
import mmap
import multiprocessing
import re
from pathlib import Path

import pytest
import torch

import npu_lowering
from npu_lowering.operators import huge_pages

PAGE = huge_pages._page_size()
pytestmark = pytest.mark.skipif(PAGE is None, reason="this system has no huge pages to ask for")


def advised():
    """Address ranges of this process that huge pages were asked for, as a set of their pages."""
    found, start, end = set(), 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(address, 16) for address in header.groups())
        elif line.startswith("VmFlags:") and "hg" in line.split():
            found |= set(range(start, end, mmap.PAGESIZE))
    return found


def inside(tensor):
    first = tensor.data_ptr()
    pages = tensor.untyped_storage().nbytes() // PAGE
    return set(range(first, first + pages * PAGE, mmap.PAGESIZE))


def make(size=(5, 3, PAGE), stride=None, dtype=torch.int8):
    stride = torch.empty(size, device="meta").stride() if stride is None else stride
    return huge_pages.empty_strided(size, stride, dtype=dtype)


def test_whole_pages_of_the_tensor_are_asked_for_and_no_others():
    before = advised()
    tensor = make((1, 2 * PAGE + 12345))
    assert tensor.data_ptr() % PAGE == 0
    assert advised() - before == inside(tensor) != set()
    del tensor
    gc.collect()
    assert advised() == before


def test_its_neighbours_keep_their_pages():
    """Tensors of torch's made before and after, and freed and made again."""
    before = advised()
    others = [torch.zeros(size) for size in (10, 1 << 16, 1 << 22)]
    tensor = make()
    others += [torch.zeros(size) for size in (10, 1 << 16, 1 << 22)]
    assert advised() - before == inside(tensor)
    del tensor
    gc.collect()
    others += [torch.zeros(5, 3, PAGE, dtype=torch.int8) for _ in range(3)]
    assert advised() == before
    assert len(others) == 9


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride"),
    [((3, 70, PAGE // 64), None), ((3, PAGE // 64, 70), (70 * PAGE // 64, 1, PAGE // 64))],
)
def test_it_is_like_torchs(size, stride, dtype):
    tensor = make(size, stride, dtype)
    like = torch.empty_strided(size, tensor.stride() if stride is None else stride, dtype=dtype)
    assert inside(tensor) <= advised()
    assert (tensor.shape, tensor.stride(), tensor.dtype) == (like.shape, like.stride(), like.dtype)
    assert tensor.storage_offset() == 0
    assert tensor._base is None
    assert tensor.untyped_storage().nbytes() == like.untyped_storage().nbytes()
    tensor.copy_(like.fill_(3))
    assert torch.equal(tensor, like)


@pytest.mark.parametrize("size", [(0,), (3, 0, PAGE), (PAGE - 1,), ()])
def test_what_holds_no_whole_page_is_torchs(size):
    before = advised()
    tensor = make(size)
    assert tensor.shape == size
    assert tensor.untyped_storage().resizable()
    assert advised() == before


def test_the_variable_turns_it_off(monkeypatch):
    before = advised()
    monkeypatch.setenv(huge_pages.VARIABLE, "0")
    tensor = make()
    assert tensor.shape == (5, 3, PAGE)
    assert advised() == before
    monkeypatch.setenv(huge_pages.VARIABLE, "yes")
    with pytest.raises(ValueError, match=r"^NPU_LOWERING_HUGE_PAGES must be 0 or 1, got yes$"):
        make()


def test_a_system_that_refuses_gives_torchs_memory(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Refusing)
    assert make().untyped_storage().resizable()


def test_a_system_without_them_gives_torchs_memory(monkeypatch):
    monkeypatch.setattr(huge_pages, "_page_size", lambda: None)
    assert make().untyped_storage().resizable()


def _double(tensor):
    tensor *= 2


def test_it_can_be_copied_saved_and_shared():
    tensor = make((PAGE + 100,)).fill_(7)
    assert torch.equal(copy.deepcopy(tensor), tensor)
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    assert torch.equal(torch.load(file), tensor)
    tensor.share_memory_()
    child = multiprocessing.get_context("spawn").Process(target=_double, args=(tensor,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert int(tensor[-1]) == 14


def test_views_keep_it_alive():
    view = make((4, PAGE)).fill_(5)[3]
    gc.collect()
    assert int(view.sum()) == 5 * PAGE


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["n contiguous", "k contiguous"])
def test_copies_of_weights_lie_on_them(order):
    w = torch.randint(-128, 128, (2, 2048, PAGE // 1024), dtype=torch.int8)
    w = w.permute(order).contiguous().permute(order)
    before = advised()
    cast = torch.ops.npu.npu_format_cast(w, 29)
    tiles = npu_lowering.to_fractal_nz(w)
    assert advised() - before == inside(cast) | inside(tiles)
    assert inside(cast)
    assert inside(tiles)
    assert cast.stride() == w.stride()
    assert torch.equal(cast, w)
    assert torch.equal(npu_lowering.from_fractal_nz(tiles), w)
