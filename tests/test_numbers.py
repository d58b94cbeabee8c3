"""What the operator computes, against the oracle, to the last bit."""

import pytest
import torch
from cases import CASES, FULL_SIZE, call, constant
from compare import assert_same
from oracle import oracle

import npu_lowering
from npu_lowering.operators import exact as exact_module
from npu_lowering.operators.grouped_matmul_finalize_routing import cpu, decomposition, native

ALL = {**CASES, **FULL_SIZE}


@pytest.mark.parametrize("name", ALL)
def test_eager_and_decomposition_equal_the_oracle(name, op):
    case = ALL[name]()
    expected = oracle(**case)
    actual = op(**case)
    assert actual.is_contiguous()
    assert_same(actual, expected)
    assert_same(npu_lowering.npu_grouped_matmul_finalize_routing(**case), expected)
    assert_same(npu_lowering.decompositions()[op.default](**case), expected)


@pytest.mark.parametrize("name", ["both", "strided", "tail_of_garbage", "every_row_to_one_token"])
def test_the_decomposition_for_a_torch_that_cannot_add_rows(name, op, monkeypatch):
    monkeypatch.setattr(decomposition, "_ROWS_ARE_STORED", True)
    case = CASES[name]()
    assert_same(npu_lowering.decompositions()[op.default](**case), oracle(**case))


@pytest.mark.skipif(not native.available(), reason="no compiled kernel is installed")
def test_the_compiled_kernel_runs_where_there_is_one(op, monkeypatch):
    monkeypatch.delattr(cpu, "_add_groups")
    case = call()
    assert_same(op(**case), oracle(**case))


@pytest.fixture
def no_compiled_kernel(monkeypatch):
    """As where no compiler built one."""
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.delattr(native, "grouped_matmul_combine")


@pytest.mark.usefixtures("no_compiled_kernel")
@pytest.mark.parametrize("exact", [True, False], ids=["int_mm", "float32_mm"])
@pytest.mark.parametrize("name", CASES)
def test_equal_without_the_compiled_kernel(name, exact, op, monkeypatch):
    if not exact:
        monkeypatch.setattr(exact_module, "_int_mm_is_exact", lambda: False)
        monkeypatch.delattr(torch, "_int_mm")
    case = CASES[name]()
    assert_same(op(**case), oracle(**case))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(op, monkeypatch, dtype, compiled):
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    case = call(bias=torch.float32)
    case["scale"].requires_grad_()
    expected = oracle(**case)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        out = op(**case)
        out.sum().backward()
        decomposed = npu_lowering.decompositions()[op.default](**case)
        meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in case.items()}
        assert op(**meta).dtype == torch.float32
    finally:
        torch.set_default_dtype(default)
    assert_same(out, expected)
    assert_same(decomposed, expected)
    grad, case["scale"].grad = case["scale"].grad, None
    op(**case).sum().backward()
    assert_same(grad, case["scale"].grad)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_device_changes_nothing(op, device):
    case = call(bias=torch.float32)
    expected = oracle(**case)
    with torch.device(device):
        assert_same(op(**case), expected)
        assert_same(npu_lowering.decompositions()[op.default](**case), expected)


def test_autocast_changes_nothing(op, monkeypatch):
    case = call(bias=torch.float32)
    expected = oracle(**case)
    decomposed = npu_lowering.decompositions()[op.default]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(op(**case), expected)
        assert_same(decomposed(**case), expected)
        monkeypatch.setattr(native, "available", lambda: False)
        monkeypatch.setattr(exact_module, "_int_mm_is_exact", lambda: False)
        assert_same(op(**case), expected)


def test_a_float32_matmul_is_not_exact():
    """Why the kernel does not use one: odd sums past 2**24 do not fit a float32."""
    case = constant(127, 127, 2048)
    case["x"][:, 0] = 126
    wanted = (127 * 127 * 2048 - 127) * torch.ones(24, 64, dtype=torch.int64)
    in_float32 = (case["x"].float() @ case["w"][0].float()).long()
    assert not torch.equal(in_float32, wanted)
    assert torch.equal(exact_module.product(case["x"], case["w"][0]).long(), wanted)


@pytest.mark.parametrize("compiled", [True, False])
def test_any_number_of_threads_gives_the_same_bits(op, monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    case = call(m=512, k=256, n=512, counts=(200, 0, 12, 300), output_bs=40)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(op(**case))
    finally:
        torch.set_num_threads(threads)
    for result in results:
        assert_same(result, oracle(**case))


@pytest.mark.usefixtures("no_compiled_kernel")
@pytest.mark.parametrize("elements", [1, 3 * 96])
@pytest.mark.parametrize("name", ["both", "fractal_nz_padded", "bias_bfloat16", "experts_256"])
def test_small_blocks_give_the_same_bits(name, elements, op, monkeypatch):
    """Rows and panels cut into many blocks, as large problems are."""
    monkeypatch.setattr(cpu, "_BLOCK", elements)
    monkeypatch.setattr(cpu, "_WEIGHT_BLOCK", 1)
    case = CASES[name]()
    assert_same(op(**case), oracle(**case))


def test_inputs_are_left_alone(op):
    case = call(bias=torch.bfloat16)
    before = {name: v.clone() for name, v in case.items() if isinstance(v, torch.Tensor)}
    out = op(**case)
    for name, value in before.items():
        assert torch.equal(case[name], value), name
        assert case[name].data_ptr() != out.data_ptr()


def test_sums_past_int32_are_an_error(op):
    """From k = 131072 on an int32 sum can overflow; what fits is computed, the rest refused."""
    k = 1 << 17
    case = call(m=2, k=k, n=2, counts=(2,), output_bs=2, shared_rows=0)
    case["x"], case["w"] = case["x"].clamp_(-1, 1), case["w"]
    assert_same(op(**case), oracle(**case))
    case["x"].fill_(-128)
    case["w"].fill_(-128)
    with pytest.raises(OverflowError, match=r"^x and w must keep each sum of products in int32"):
        op(**case)


@pytest.mark.parametrize(
    ("runs", "step"),
    [
        ([(-128, -128, 2**17 - 1), (127, 127, 1), (127, 2, 1)], 1),
        ([(-128, 64, 2**18)], -1),
    ],
    ids=["largest", "smallest"],
)
def test_the_last_sum_in_int32_and_the_first_past_it(runs, step, op):
    """Runs of equal products make the limit; one more product steps past it."""
    limit = sum(a * b * count for a, b, count in runs)
    assert limit == (2**31 - 1 if step == 1 else -(2**31))
    x, w = (
        torch.cat([torch.full((run[2],), run[i], dtype=torch.int8) for run in [*runs, (0, 0, 1)]])
        for i in (0, 1)
    )
    k = len(x)
    case = call(m=1, k=k, n=1, counts=(1,), output_bs=1, shared_rows=0)
    case["x"], case["w"] = x.view(1, k), w.view(1, k, 1)
    assert_same(op(**case), oracle(**case))
    x[-1], w[-1] = 1, step
    message = f"got sums from {limit + step} to {limit + step} with k = {k}"
    with pytest.raises(OverflowError, match=f"^x and w must keep .* in int32, {message}$"):
        op(**case)


def test_int_mm_is_used_where_it_is_exact(monkeypatch):
    monkeypatch.setattr(exact_module, "_int_mm_is_exact", lambda: True)
    monkeypatch.setattr(exact_module, "int_mm", lambda *_: "of torch._int_mm")
    case = call()
    assert exact_module.product(case["x"], case["w"][0]) == "of torch._int_mm"


def int_mm(x, w):
    """As a build that is exact."""
    if (x.dtype, w.dtype) != (torch.int8, torch.int8):
        raise RuntimeError("expected int8")
    return x.int() @ w.int()


def missing(x, w):
    raise NotImplementedError


def int_mm_wrong_where(condition):
    return lambda x, w: int_mm(x, w) + condition(x, w)


# Builds of torch._int_mm that must not be used.
INEXACT = {
    "missing": missing,
    "saturating": lambda x, w: int_mm(x, w).clamp(-(2**15), 2**15 - 1),
    "one_row": int_mm_wrong_where(lambda x, _: len(x) == 1),
    "many_rows": int_mm_wrong_where(lambda x, _: len(x) > 32),
    **{
        f"{a}_by_{b}": int_mm_wrong_where(
            lambda x, w, a=a, b=b: bool((x == a).all()) and bool((w == b).all())
        )
        for a in (-128, 127)
        for b in (-128, 127)
    },
}


def test_the_int_mm_probe_takes_an_exact_build(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", int_mm)
    assert exact_module._int_mm_is_exact.__wrapped__() is True


@pytest.mark.parametrize("build", INEXACT)
def test_the_int_mm_probe_refuses_any_other(build, monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", INEXACT[build])
    assert exact_module._int_mm_is_exact.__wrapped__() is False


@pytest.mark.large
@pytest.mark.parametrize(
    "counts", ["0, m // 2, 0, 1, 2, 3, 4, m // 2 - 10", "0, 0, 0, m, 0, 0, 0, 0"]
)
@pytest.mark.parametrize("form", ["nd", "nz"])
def test_memory_stays_bounded(run_python, form, counts):
    """The largest documented problem, in 256 MiB over its inputs and its result."""
    program = f"""
import resource
import npu_lowering, torch
m, k, n, rows, e = 131072, 2048, 7168, 16384, 8
shape = (e, k, n) if "{form}" == "nd" else (e, n // 32, k // 16, 16, 32)
x = torch.randint(-128, 128, (m, k), dtype=torch.int8)
w = torch.randint(-128, 128, shape, dtype=torch.int8)
case = dict(
    group_list=torch.tensor([{counts}]),
    scale=torch.rand(e, n), pertoken_scale=torch.rand(m), logit=torch.rand(m),
    bias=torch.rand(e, n), row_index=torch.randint(rows, (m,)), output_bs=rows,
    shared_input=torch.zeros(2048, n, dtype=torch.bfloat16),
)
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
out = torch.ops.npu.npu_grouped_matmul_finalize_routing(x, w, **case)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
over = (peak - before - out.numel() * 4) / 2**20
print(f"{{over:.0f}} MiB over inputs and result")
assert 0 < over < 256, over
"""
    for kernel in ("auto", "torch"):
        print(kernel, run_python(program, env={"NPU_LOWERING_KERNEL": kernel}))
