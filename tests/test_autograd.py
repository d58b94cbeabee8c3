"""Gradients, against those of the oracle in float64."""

import pytest
import torch
from cases import CASES, call
from oracle import oracle
from torch._dynamo.backends.registry import lookup_backend

from npu_lowering.operators.grouped_matmul_finalize_routing import autograd
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import check

FLOATS = ("scale", "bias", "pertoken_scale", "shared_input", "logit")
DIFFERENTIABLE = [name for name in CASES if "infinite" not in name]


def floats_of(case):
    return [name for name in FLOATS if case.get(name) is not None]


def gradients(function, case, names, **options):
    """Gradients of a fixed weighted sum of the result."""
    case = {**case, **{name: case[name].detach().requires_grad_() for name in names}}
    out = function(**case, **options)
    if not out.requires_grad:  # no row counts: the oracle uses none of its inputs
        return [torch.zeros_like(case[name]) for name in names]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    inputs = [case[name] for name in names]
    return torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)


def assert_close(case, names, actual, function=oracle):
    """Within float32's rounding of sums this long; bfloat16 inputs get bfloat16 gradients."""
    inputs = {name: case[name].double() for name in names}
    expected = gradients(function, {**case, **inputs}, names, compute=torch.float64)
    for name, grad, reference in zip(names, actual, expected):
        assert grad.dtype == case[name].dtype
        assert grad.shape == case[name].shape
        eps = 2**-8 if grad.dtype == torch.bfloat16 else 1e-5
        error = (grad.double() - reference).abs().max().item()
        bound = eps * reference.abs().max().item()
        assert error <= bound, f"{name}: off by {error:.3g}, allowed {bound:.3g}"


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name, op):
    case = CASES[name]()
    names = floats_of(case)
    assert_close(case, names, gradients(op, case, names))


@pytest.mark.parametrize("wanted", FLOATS)
def test_gradient_of_one_input_alone(wanted, op):
    case = call(bias=torch.float32)
    assert_close(case, [wanted], gradients(op, case, [wanted]))


def test_gradients_in_pieces(op, monkeypatch):
    monkeypatch.setattr(autograd, "_ROWS", 5)
    case = CASES["tail_of_garbage"]()
    names = floats_of(case)
    assert_close(case, names, gradients(op, case, names))


@pytest.mark.parametrize(
    ("wanted", "times"), [(FLOATS, 1), (["scale"], 1), (["bias"], 0), (["shared_input"], 0)]
)
def test_backward_runs_the_operator_only_for_products(wanted, times, op):
    """And passes what only some device versions let one leave out."""
    calls = []

    def recording(**given):
        calls.append({name for name, value in given.items() if value is not None})
        return op(**given)

    case = call(bias=torch.float32)
    autograd.backward(recording, check(**case), (torch.ones(6, 64),), frozenset(wanted))
    assert len(calls) == times
    for given in calls:
        assert {"scale", "pertoken_scale", "logit", "shared_input", "row_index"} <= given


def test_tail_rows_get_zero(op):
    case = CASES["tail_of_garbage"]()
    for grad in gradients(op, case, ["pertoken_scale", "logit"]):
        assert torch.equal(grad[24:], torch.zeros(6))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["bias_bfloat16", "tail_of_garbage", "fractal_nz_padded"])
def test_gradients_compiled(name, dynamic, backend, op):
    torch._dynamo.reset()
    case = CASES[name]()
    names = floats_of(case)
    compiled = torch.compile(
        lambda **case: op(**case), backend=backend, dynamic=dynamic, fullgraph=True
    )
    assert_close(case, names, gradients(compiled, case, names))


def test_token_counts_share_a_compiled_backward(op):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda **case: op(**case), backend=counting, dynamic=True, fullgraph=True
    )
    compilations = []
    for m in (24, 31, 40):
        case = call(m=m)
        gradients(compiled, case, ["scale", "logit"])
        compilations.append(len(graphs))
    assert compilations == compilations[:1] * 3


def test_second_derivative(op):
    """Backward is made of differentiable ops, so it can be differentiated again."""
    case = call(m=6, k=4, n=3, counts=(2, 0, 4), shared_rows=0, output_bs=4)
    names = ["scale", "pertoken_scale", "logit"]

    def second(function, case, **options):
        case = {**case, **{name: case[name].detach().requires_grad_() for name in names}}
        inputs = [case[name] for name in names]
        out = function(**case, **options)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)

    actual = second(op, case)
    double = {**case, **{name: case[name].double() for name in names}}
    for grad, expected in zip(actual, second(oracle, double, compute=torch.float64)):
        torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*FLOATS, "x", "w", "group_list", "row_index"])
def test_an_input_that_changed_since_forward_is_noticed(name, op):
    case = call(bias=torch.float32)
    other = "bias" if name == "scale" else "scale"
    case[other].requires_grad_()
    out = op(**case)
    case[name].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_default_device_changes_nothing(op):
    """Autograd's engine leaves it at the CPU, and a tracer of backward need not."""
    problem, grad, names = (
        check(**call(bias=torch.float32)),
        (torch.rand(6, 64),),
        frozenset(FLOATS),
    )
    expected = autograd.backward(op, problem, grad, names)
    with torch.device("meta"):
        actual = autograd.backward(op, problem, grad, names)
    for name in names:
        assert torch.equal(actual[name], expected[name]), name


def test_nothing_is_recorded_without_need(op):
    case = call()
    assert op(**case).grad_fn is None
    case["scale"].requires_grad_()
    with torch.no_grad():
        assert op(**case).grad_fn is None
    with torch.inference_mode():
        assert op(**call()).is_inference()
    assert op(**case).grad_fn is not None


def test_errors_are_the_same_when_recording(op):
    case = call(output_bs=25, row_index=torch.zeros(24, dtype=torch.int64))
    case["scale"].requires_grad_()
    with pytest.raises(ValueError, match=r"^output_bs must be 0 or None, for m"):
        op(**case)


@pytest.mark.parametrize(
    "name", ["bias_bfloat16", "tail_of_garbage", "fractal_nz_padded", "totals"]
)
def test_forward_mode_equals_the_directional_derivative(name, op):
    """Of each input alone, and of all at once, against the oracle's in float64."""
    case = CASES[name]()
    floats = floats_of(case)
    for names in (*([each] for each in floats), floats):
        tangents = {
            each: torch.linspace(-1, 1, case[each].numel()).view(case[each].shape) for each in names
        }
        with torch.autograd.forward_ad.dual_level():
            duals = {
                each: torch.autograd.forward_ad.make_dual(
                    case[each], tangents[each].to(case[each].dtype)
                )
                for each in names
            }
            tangent = torch.autograd.forward_ad.unpack_dual(op(**{**case, **duals})).tangent
        given = tuple(case[each].double() for each in names)
        along = tuple(tangents[each].to(case[each].dtype).double() for each in names)

        def reference(*values, names=names):
            return oracle(**{**case, **dict(zip(names, values))}, compute=torch.float64)

        _, expected = torch.autograd.functional.jvp(reference, given, along)
        bound = 1e-4 * expected.abs().max()
        assert (tangent.double() - expected).abs().max() <= bound, names


@pytest.fixture
def of_scale(op):
    """The operator as a function of scale, small enough for every derivative of it."""
    case = call(m=4, k=4, n=3, counts=(2, 2), output_bs=2, shared_rows=0)
    scale = case.pop("scale")
    return (lambda value: op(**case, scale=value)), scale


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_torch_func_differentiates(of_scale):
    function, scale = of_scale

    def loss(value):
        return function(value).square().sum()

    leaf = scale.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(scale), leaf.grad)
    out, pulled = torch.func.vjp(function, scale)
    (back,) = pulled(torch.ones_like(out))
    assert back.shape == scale.shape
    jacobian = torch.autograd.functional.jacobian(function, scale)
    torch.testing.assert_close(torch.func.jacrev(function)(scale), jacobian)
    expected = torch.autograd.functional.hessian(loss, scale)
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(loss))(scale), expected)
    torch.testing.assert_close(torch.func.hessian(loss)(scale), expected)
    torch.testing.assert_close(torch.func.jacfwd(function)(scale), jacobian)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_torch_func_differentiates_in_a_batch(of_scale):
    function, scale = of_scale
    gradient = torch.func.grad(lambda value: function(value).square().sum())
    batch = torch.stack([scale, 2 * scale, -scale])
    expected = torch.stack([gradient(each) for each in batch])
    torch.testing.assert_close(torch.func.vmap(gradient)(batch), expected)
