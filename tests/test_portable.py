"""The portable kernels: bounded memory, one order of adds, the same refusals as on the CPU."""

import re
import weakref

import pytest
import torch
from cases import call
from compare import assert_same
from operators import TESTED, on_tensors, outcome
from torch.utils._python_dispatch import TorchDispatchMode

import npu_lowering
from npu_lowering.operators import exact, value_checks
from npu_lowering.operators.grouped_matmul_finalize_routing import portable

FUSED = TESTED["npu_grouped_matmul_finalize_routing"].operator


def run(case):
    return portable.run(FUSED.problem(**case))


# Memory


class LiveBytes(TorchDispatchMode):
    """The most bytes that were alive at once, of tensors made within."""

    def __init__(self, inputs):
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in inputs}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, identity, size):
        self._known.discard(identity)
        self.live -= size


@pytest.mark.parametrize(
    ("sizes", "form"),
    [
        ((8, 2048, 2048, 72), "nd"),
        ((8, 2048, 2048, 72), "nz"),
        ((1, 2048, 2048, 72), "nd"),
        ((32, 2048, 512, 8), "nz"),
    ],
)
def test_memory_is_at_most_half_as_much_again_as_the_weights(sizes, form, monkeypatch):
    e, k, n, tokens = sizes
    top_k = min(e, 8)
    m = tokens * top_k
    w = torch.ones(1, dtype=torch.int8).expand(e * k * n).clone()
    w = w.view((e, k, n) if form == "nd" else (e, n // 32, k // 16, 16, 32))
    counts = [m // e] * e
    case = call(m=m, k=k, n=n, counts=counts, output_bs=tokens, w=w)
    case["row_index"] = torch.arange(m) % tokens  # no token twice in a group
    problem = FUSED.problem(**case)
    tensors = [value for value in case.values() if isinstance(value, torch.Tensor)]
    # As on a device, which multiplies floats.
    monkeypatch.setattr(exact, "_int_mm_is_exact", lambda: False)
    with LiveBytes(tensors) as memory:
        result = portable.run(problem)
    above = memory.peak - result.nbytes
    assert above > 0
    assert above <= 1.5 * w.nbytes, f"{above / w.nbytes:.2f} times the weights"
    assert_same(result, FUSED.cpu(problem))


# The order of adds


class Backwards(TorchDispatchMode):
    """A device whose index_add_ goes through the rows from the last to the first."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index_add_.default:
            out, dim, index, rows = args
            args = (out, dim, index.flip(0), rows.flip(0))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("m", [24, 600])
@pytest.mark.parametrize("output_bs", [1, 3, 20])
def test_the_order_of_adds_is_not_the_devices(m, output_bs):
    counts = (m // 2, 0, m // 4, m // 4 - 1)
    case = call(m=m, counts=counts, output_bs=output_bs, shared_rows=0)
    expected = FUSED.cpu(FUSED.problem(**case))
    with Backwards():
        assert_same(run(case), expected)
        given = torch.rand(3, 1)
        index = torch.tensor([0, 0, 0])
        added = torch.zeros(1, 1).index_add_(0, index, given)
    assert torch.equal(added[0], (given[2] + given[1]) + given[0])


# Values


VALUE_ERRORS = [(name, error) for name, record in TESTED.items() for error in record.value_errors]


@pytest.mark.parametrize(("name", "error"), VALUE_ERRORS)
def test_wrong_values(name, error):
    bad = TESTED[name].value_errors[error]
    operator = TESTED[name].operator
    with pytest.raises(bad.error, match="^" + re.escape(bad.message)):
        operator.portable(operator.problem(**{**bad.base(), **bad.change}))


def test_sums_that_leave_int32():
    k = 1 << 17
    x, w = (torch.full(size, -128, dtype=torch.int8) for size in ((1, k), (1, k, 32)))
    one = torch.ones(1)
    case = {"x": x, "w": w, "group_list": torch.tensor([1]), "scale": torch.ones(1, 32)}
    case = {**case, "logit": one, "row_index": torch.tensor([0])}
    message = f"x and w must keep each sum of products in int32, got sums from {2**31} to {2**31}"
    with pytest.raises(OverflowError, match=f"^{message} with k = {k}$"):
        run(case)
    x[0, 0] = 0
    assert_same(run(case), FUSED.cpu(FUSED.problem(**case)))


@pytest.fixture
def meta():
    """A tensor of another device than the CPU."""
    return torch.empty(1, device="meta")


def test_the_switch_of_value_checks(meta, monkeypatch):
    monkeypatch.setattr(value_checks, "_chosen", None)
    monkeypatch.delenv(value_checks.VARIABLE, raising=False)
    assert value_checks.are_checked(meta)
    monkeypatch.setenv(value_checks.VARIABLE, "0")
    assert not value_checks.are_checked(meta)
    assert value_checks.are_checked(torch.empty(1)), "the CPU's are always checked"
    assert npu_lowering.check_values(True) is False
    assert value_checks.are_checked(meta)
    assert npu_lowering.check_values(False) is True
    monkeypatch.setenv(value_checks.VARIABLE, "1")
    assert not value_checks.are_checked(meta), "the function goes before the variable"
    with pytest.raises(TypeError, match=r"^enabled must be a bool, got 1$"):
        npu_lowering.check_values(1)


def test_a_wrong_variable_of_value_checks(meta, monkeypatch):
    monkeypatch.setattr(value_checks, "_chosen", None)
    monkeypatch.setenv(value_checks.VARIABLE, "no")
    message = "^NPU_LOWERING_CHECK_VALUES must be 0 or 1, got no$"
    with pytest.raises(ValueError, match=message):
        value_checks.are_checked(meta)


# Layouts


def quantised(tensor):
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


LAYOUTS = {
    "sparse": (torch.Tensor.to_sparse, "a strided tensor, got layout torch.sparse_coo on cpu"),
    "mkldnn": (
        lambda tensor: tensor.float().to_mkldnn(),
        "a strided tensor, got layout torch._mkldnn on cpu",
    ),
    "quantised": (quantised, "a plain tensor, got quantised qint8 on cpu"),
}


def has_tensors(value):
    found = []
    on_tensors(found.append, value)
    return bool(found)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TESTED)
def test_layouts_are_refused_by_name(name, layout):
    """Each argument of each operator, by the one sentence for all of them."""
    record = TESTED[name]
    change, message = LAYOUTS[layout]
    case = next(iter(record.samples.values()))()
    tried = [each for each, value in case.items() if has_tensors(value)]
    assert tried
    for argument in tried:
        wrong = {**case, argument: on_tensors(change, case[argument])}
        with pytest.raises(TypeError, match=f"^{argument} must be {re.escape(message)}; "):
            record.operator.overload(**wrong)


# Autocast


@pytest.mark.parametrize("name", TESTED)
def test_autocast_stops_at_an_operator(name):
    """On the CPU, too: what its kernel is made of keeps its dtypes."""
    record = TESTED[name]
    for sample in [*record.samples][:3]:
        case = record.samples[sample]()
        expected = outcome(name, case, lambda case: record.operator.overload(**case))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = outcome(name, case, lambda case: record.operator.overload(**case))
        for one, other in zip(actual, expected):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            if record.undefined is None:
                assert_same(one, other)
