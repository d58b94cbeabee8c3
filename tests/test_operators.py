"""Every operator, held to its record: what each of them has to be true of.

An operator gets these tests by having a record in tests/records/.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from compare import assert_same
from operators import TESTED, on_tensors, outcome, results, samples, split
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from versions import TORCH

import npu_lowering
from npu_lowering import registration
from npu_lowering.operators import OPERATORS

SCHEMAS = Path(__file__).parent / "data" / "schemas.txt"
needs_opcheck = pytest.mark.skipif(TORCH < (2, 4), reason="torch.library.opcheck came with 2.4")
every_operator = pytest.mark.parametrize("name", TESTED)
every_sample = pytest.mark.parametrize(("name", "sample"), samples())
LARGE = ("document",)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


@pytest.fixture
def case(name, sample):
    return TESTED[name].samples[sample]()


def call(name, case):
    """Through the dispatcher, as everyone calls it."""
    args, kwargs = split(TESTED[name].operator, case)
    return TESTED[name].operator.overload(*args, **kwargs)


def ran(name, case):
    """A call's results and what it wrote; the case stays as it is."""
    return outcome(name, case, lambda case: call(name, case))


def defined(record, case, values):
    """What of a result is defined."""
    values = results(values)
    return values if record.undefined is None else results(record.undefined(case, values))


def assert_equal(record, case, actual, expected):
    """Bit for bit, but for what is undefined."""
    actual, expected = (defined(record, case, value) for value in (actual, expected))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert_same(one, other)


def assert_near(record, case, actual, expected):
    """Within the record's tolerance of the oracle."""
    if record.tolerance == 0 or record.exact(case):
        assert_equal(record, case, actual, expected)
        return
    actual, expected = (defined(record, case, value) for value in (actual, expected))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if not one.is_floating_point():
            assert torch.equal(one, other)
            continue
        finite = other.isfinite()
        assert_same(one[~finite], other[~finite])
        one, other = one[finite].double(), other[finite].double()
        bound = record.tolerance * float(other.abs().max()) if other.numel() else 0.0
        error = float((one - other).abs().max()) if other.numel() else 0.0
        assert error <= bound, f"off by {error:.3g}, allowed {bound:.3g}: {record.why}"


# Records and signatures


def test_every_operator_has_a_record():
    assert [operator.name for operator in OPERATORS if operator.name not in TESTED] == []
    assert set(TESTED) <= {operator.name for operator in OPERATORS}


def test_a_tolerance_has_a_reason():
    assert [
        name for name, record in TESTED.items() if bool(record.tolerance) != bool(record.why)
    ] == []


def parameters(signature):
    return [
        (p.name, p.kind is p.KEYWORD_ONLY, p.default if p.default is not p.empty else None)
        for p in signature.parameters.values()
    ]


@every_operator
def test_the_schema_is_torch_npus(name):
    """Character for character, as torch_npu 2.13 prints it."""
    if TESTED[name].operator.namespace != "npu":
        return  # ours alone
    known = SCHEMAS.read_text(encoding="utf-8").splitlines()
    parsed = torch._C.parse_schema(f"npu::{TESTED[name].operator.schema}")
    assert str(parsed) in {str(torch._C.parse_schema(line)) for line in known}


@every_operator
def test_signatures_equal_the_schema(name):
    operator = TESTED[name].operator
    parsed = torch._C.parse_schema(f"npu::{operator.schema}")
    expected = [(a.name, a.kwarg_only, a.default_value) for a in parsed.arguments]
    assert parameters(operator.signature) == expected
    if "." not in name and operator.function != "":
        public = getattr(npu_lowering, operator.function or name)
        assert public.__name__ == operator.function or name
        assert parameters(inspect.signature(public)) == expected
        assert inspect.getdoc(public) == inspect.getdoc(operator.check)


@every_operator
def test_what_the_record_says_is_in_the_dispatcher(name):
    operator = TESTED[name].operator
    keys = {"CPU", "Autograd", "Meta"}
    if operator.portable is not None:
        keys.add("CompositeExplicitAutograd")
    for key in keys:
        assert registration.owner(operator.qualname, key) == "ours", key
    for part in (operator.summary, operator.exactness, operator.source):
        assert part
    documentation = inspect.getdoc(operator.check)
    for section in ("Args:", "Returns:", "Raises:", "Source:"):
        assert section in documentation, section
    for argument in operator.signature.parameters:
        assert re.search(rf"^    {argument}: ", documentation, flags=re.M), argument


# Numbers


@every_sample
def test_eager_equals_the_oracle(name, sample, case):
    record = TESTED[name]
    assert record.written == record.operator.written
    before = on_tensors(torch.clone, case)
    result = ran(name, case)
    assert_near(record, case, result, record.oracle(**on_tensors(torch.clone, case)))
    for argument, value in before.items():
        for one, other in zip(_leaves(value), _leaves(case[argument])):
            assert torch.equal(_bits(one), _bits(other)), f"{argument} was written"
    storages = {tensor.untyped_storage().data_ptr() for tensor in _leaves(case) if tensor.numel()}
    for value in result:
        assert not value.numel() or value.untyped_storage().data_ptr() not in storages
    if "." not in name:

        def public(case):
            args, kwargs = split(record.operator, case)
            return getattr(npu_lowering, record.operator.function or name)(*args, **kwargs)

        assert_equal(record, case, outcome(name, case, public), result)


def _leaves(value):
    found = []
    on_tensors(found.append, value)
    return found


def _bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


PATHS = [(name, sample, path) for name, sample in samples() for path in TESTED[name].paths]


def restrided(tensor, form):
    """The same numbers behind other strides, or another start."""
    if form == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if form == "spread" and tensor.dim():
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if form == "sliced" and tensor.dim() > 1:
        wider = torch.cat([tensor, tensor], -1)
        return torch.cat([wider, wider])[: tensor.shape[0], ..., : tensor.shape[-1]]
    if form == "degenerate" and 1 in tensor.shape:
        strides = [
            0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride())
        ]
        return tensor.as_strided(tensor.shape, strides)
    flat = torch.cat([tensor.new_zeros(3), tensor.reshape(-1)])
    return flat[3:].view(tensor.shape)


FORMS = ("transposed", "spread", "sliced", "shifted", "degenerate")


@pytest.mark.parametrize(("name", "sample", "path"), [p for p in PATHS if p[1] not in LARGE])
def test_strides_change_nothing(name, sample, path, case):
    record = TESTED[name]
    expected = ran(name, case)
    with record.paths[path]():
        assert_equal(record, case, ran(name, case), expected)
        for form in FORMS:
            strange = on_tensors(lambda tensor, form=form: restrided(tensor.clone(), form), case)
            # Not through ran, whose copy would have other strides.
            given = {each: strange[each] for each in record.written}
            actual = (*results(call(name, strange)), *given.values())
            assert_equal(record, case, actual, expected)


def expanded(tensor):
    """The first row, as many times as there are rows, at no distance."""
    return tensor[:1].expand(tensor.shape) if tensor.dim() and tensor.shape[0] else tensor


@pytest.mark.parametrize(("name", "sample", "path"), [p for p in PATHS if p[1] not in LARGE])
def test_rows_at_no_distance(name, sample, path, case):
    """Each float or int8 tensor alone is one row repeated; indices may not be."""
    record = TESTED[name]
    for argument, value in case.items():
        tensors = _leaves(value)
        if argument in record.written:
            continue  # memory that elements share cannot be written
        if not tensors or any(t.dtype in (torch.int32, torch.int64, torch.bool) for t in tensors):
            continue
        repeated = {**case, argument: on_tensors(expanded, value)}
        plain = {**case, argument: on_tensors(lambda t: expanded(t).clone(), value)}
        expected = ran(name, on_tensors(torch.clone, plain))
        with record.paths[path]():
            assert_equal(record, case, ran(name, repeated), expected)


@every_sample
def test_the_portable_kernel_equals_the_cpus(name, sample, case):
    operator = TESTED[name].operator
    if operator.portable is None:
        pytest.skip(f"{name} has no portable kernel")
    actual = outcome(name, case, lambda case: operator.portable(operator.problem(**case)))
    assert_equal(TESTED[name], case, actual, ran(name, case))


# Fake tensors


def described(value):
    """Of each result; of none where there is none."""
    return [(tuple(v.shape), v.stride(), v.dtype, v.device.type) for v in results(value)]


@every_sample
@pytest.mark.parametrize("kind", ["meta", "fake", "symbolic"])
def test_the_fake_equals_eager(name, sample, kind, case):
    eager = described(call(name, on_tensors(torch.clone, case)))
    if kind == "meta":
        fakes = described(call(name, on_tensors(lambda tensor: tensor.to("meta"), case)))
        assert [each[:3] for each in fakes] == [each[:3] for each in eager]
        return
    environment = ShapeEnv() if kind == "symbolic" else None
    mode = torch._subclasses.FakeTensorMode(shape_env=environment)
    with mode:
        fakes = call(name, on_tensors(mode.from_tensor, case))
    assert (
        described(fakes) == eager
        or [
            (tuple(map(int, shape)), tuple(map(int, stride)), dtype, device)
            for shape, stride, dtype, device in described(fakes)
        ]
        == eager
    )


def needs_functionalisation(name):
    """torch_npu has it for its own operators; torch alone for none that returns what it writes."""
    if "(a!)" in TESTED[name].operator.returns:
        pytest.skip("torch functionalises no custom operator that returns what it writes")


@needs_opcheck
@every_sample
def test_opcheck(name, sample, case):
    operator = TESTED[name].operator
    args, kwargs = split(operator, case)
    if "(a!)" in operator.returns:
        others = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator.overload, args, kwargs, test_utils=others)
        return
    if not operator.writes:
        torch.library.opcheck(operator.overload, args, kwargs)
        return
    # What the schema keeps silent about is what test_schema would find.
    others = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operator.overload, args, kwargs, test_utils=others)


# Decomposition


def decomposed(record, sample):
    return record.decomposed


@pytest.mark.parametrize(("name", "sample"), samples(decomposed))
def test_the_decomposition_equals_eager_and_is_core_aten(name, sample, case):
    operator = TESTED[name].operator
    table = npu_lowering.decompositions()
    assert operator.overload in table
    args, kwargs = split(operator, case)
    assert_equal(TESTED[name], case, table[operator.overload](*args, **kwargs), call(name, case))
    core = {**torch._decomp.core_aten_decompositions(), **table}
    graph = make_fx(lambda case: call(name, case), core)(case)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    left = {
        str(target)
        for target in targets
        if isinstance(target, torch._ops.OpOverload) and torch.Tag.core not in target.tags
    }
    assert left == set()


def test_records_say_which_operators_decompose():
    table = npu_lowering.decompositions()
    for name, record in TESTED.items():
        assert (record.operator.overload in table) == record.decomposed, name


# Errors


def errors(kinds):
    return [
        (name, error)
        for name, record in TESTED.items()
        for kind in kinds
        for error in getattr(record, kind)
    ]


def bad(name, error):
    record = TESTED[name]
    wrong = {**record.errors, **record.value_errors}[error]
    return wrong, {**wrong.base(), **wrong.change}


def raises(wrong, error=None):
    return pytest.raises(error or wrong.error, match="^" + re.escape(wrong.message))


@pytest.mark.parametrize(("name", "error"), errors(["errors", "value_errors"]))
def test_errors_eager(name, error):
    wrong, case = bad(name, error)
    with raises(wrong):
        call(name, case)


@pytest.mark.parametrize(("name", "error"), errors(["errors"]))
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_errors_without_data(name, error, kind):
    wrong, case = bad(name, error)
    if kind == "meta":
        with raises(wrong):
            call(name, on_tensors(lambda tensor: tensor.to("meta"), case))
        return
    # FakeTensorMode takes NotImplementedError for its own, so there it is a RuntimeError.
    kind = RuntimeError if wrong.error is NotImplementedError else wrong.error
    mode = torch._subclasses.FakeTensorMode()
    with mode, raises(wrong, kind):
        call(name, on_tensors(mode.from_tensor, case))


@pytest.mark.parametrize(("name", "error"), errors(["errors"]))
def test_errors_of_limits_and_decomposition(name, error):
    wrong, case = bad(name, error)
    operator = TESTED[name].operator
    with raises(wrong):
        npu_lowering.device_limits(operator=name, **_as_dispatched(case))
    if operator.decomposition is not None:
        with raises(wrong):
            npu_lowering.decompositions()[operator.overload](**_as_dispatched(case))


def _as_dispatched(case):
    """torch reads an int as a ScalarType: 0 is uint8."""
    if isinstance(case.get("dtype"), int):
        return {**case, "dtype": torch.uint8}
    return case


# What one mode says all of them say; a few of each operator show it compiled.
FEW = [(name, error) for name, record in TESTED.items() for error in [*record.errors][:3]]


@pytest.mark.parametrize(("name", "error"), FEW)
def test_errors_compiled(name, error):
    wrong, case = bad(name, error)
    compiled = torch.compile(lambda case: call(name, case), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=re.escape(wrong.message)):
        compiled(case)


# Derivatives


def floats_of(case, written=()):
    """Arguments that could require a gradient: leaves that are written could not."""
    return [
        name
        for name, value in case.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name not in written
    ]


def with_gradients(case, names):
    return {**case, **{name: case[name].detach().clone().requires_grad_() for name in names}}


def weighted(outputs, dtypes=None):
    """A fixed weighted sum of the float results, whose weights the results' dtypes hold exactly."""
    total = 0
    for place, value in enumerate(results(outputs)):
        if value.is_floating_point() and value.requires_grad:
            weight = torch.linspace(-1, 1, max(value.numel(), 1), dtype=torch.float64)[
                : value.numel()
            ]
            weight = weight.to(dtypes[place] if dtypes else value.dtype).double()
            total = total + (value.double() * weight.view(value.shape)).sum()
    return total


def differentiable(record, sample):
    if sample in LARGE or "infinite" in sample:
        return False
    return bool(set(record.differentiable) & set(floats_of(record.samples[sample]())))


def refused(record, sample):
    return (
        sample not in LARGE
        and not record.differentiable
        and bool(floats_of(record.samples[sample](), record.written))
    )


@pytest.mark.parametrize(("name", "sample"), samples(differentiable))
def test_gradients_equal_a_float64_formula(name, sample, case):
    record = TESTED[name]
    assert set(record.operator.derivative.inputs) == set(record.differentiable)
    names = [each for each in record.differentiable if each in floats_of(case)]
    given = with_gradients(case, names)
    outputs = results(call(name, given))
    total = weighted(outputs)
    doubled = {each: case[each].double() for each in names}
    reference = with_gradients({**case, **doubled}, names)
    dtypes = [value.dtype for value in outputs]
    expected = weighted(record.reference(**reference, compute=torch.float64), dtypes)
    for each in names:
        (grad,) = torch.autograd.grad(
            total, [given[each]], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        if isinstance(expected, int):  # no row counts
            wanted = torch.zeros_like(reference[each])
        else:
            (wanted,) = torch.autograd.grad(
                expected,
                [reference[each]],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        assert (grad.dtype, grad.shape) == (case[each].dtype, case[each].shape)
        eps = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(grad.dtype, 1e-5)
        bound = eps * float(wanted.abs().max()) if wanted.numel() else 0.0
        error = float((grad.double() - wanted).abs().max()) if wanted.numel() else 0.0
        assert error <= bound, f"{each}: off by {error:.3g}, allowed {bound:.3g}"


def first_of(where):
    """The first samples of each operator that fit."""
    taken = {}
    for name, sample in samples(where):
        taken.setdefault(name, []).append((name, sample))
    return [pair for pairs in taken.values() for pair in pairs[:2]]


@pytest.mark.parametrize(("name", "sample"), first_of(differentiable))
def test_gradients_compiled(name, sample, case):
    record = TESTED[name]
    names = [each for each in record.differentiable if each in floats_of(case)]
    eager, compiled = with_gradients(case, names), with_gradients(case, names)
    weighted(call(name, eager)).backward()
    weighted(
        torch.compile(lambda c: call(name, c), backend="aot_eager", fullgraph=True)(compiled)
    ).backward()
    for each in names:
        assert eager[each].grad is not None
        torch.testing.assert_close(compiled[each].grad, eager[each].grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "sample"), first_of(refused))
def test_gradients_are_refused_by_name(name, sample, compiled, case):
    given = with_gradients(case, floats_of(case, TESTED[name].written))
    function = lambda c: call(name, c)  # noqa: E731
    if compiled:
        needs_functionalisation(name)
        function = torch.compile(function, backend="aot_eager", fullgraph=True)
    outputs = function(given)
    total = weighted(outputs)
    if isinstance(total, int):
        pytest.skip("no result of this sample is a float")
    with pytest.raises(RuntimeError, match=f"^{re.escape(name)} has no derivative, and an input"):
        total.backward()


@every_operator
def test_forward_mode_is_refused(name):
    derivative = TESTED[name].operator.derivative
    if derivative is not None and derivative.forward is not None:
        return  # it has a formula, which tests of its own hold
    for sample in TESTED[name].samples.values():
        case = sample()
        for argument in floats_of(case)[:1]:
            with torch.autograd.forward_ad.dual_level():
                tangent = torch.ones_like(case[argument])
                dual = torch.autograd.forward_ad.make_dual(case[argument], tangent)
                with pytest.raises(
                    NotImplementedError, match=f"^forward-mode .* of {re.escape(name)} "
                ):
                    call(name, {**case, argument: dual})
            return
    pytest.skip("no sample has a float tensor")


@pytest.mark.parametrize(("name", "sample"), first_of(lambda _, sample: sample not in LARGE))
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(name, sample, dynamic, case):
    needs_functionalisation(name)
    compiled = torch.compile(
        lambda c: call(name, c), backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    assert_equal(TESTED[name], case, outcome(name, case, compiled), ran(name, case))
