"""The environments the package must live in, each in a process of its own.

Environment 2, torch_npu imported, is in tests/offdevice.
"""

import importlib.util
import sys

import pytest
from versions import TORCH

from npu_lowering import registration

HAS_TORCH_NPU = importlib.util.find_spec("torch_npu") is not None
needs_torch_npu = pytest.mark.skipif(not HAS_TORCH_NPU, reason="torch_npu is not installed")

# Makes torch_npu invisible, as where it is not installed.
HIDE = """
import sys
from importlib.machinery import PathFinder
class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name == "torch_npu" else PathFinder.find_spec(name, path, target)
sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
import importlib.metadata
all_entry_points = importlib.metadata.entry_points
def entry_points(**select):
    return [e for e in all_entry_points(**select) if not e.value.startswith("torch_npu")]
importlib.metadata.entry_points = entry_points
"""
WORKS = """
import torch
def check(x=torch.ones(2, 3, dtype=torch.int8)):
    y = torch.ops.npu.npu_grouped_matmul_finalize_routing(
        x, torch.ones(1, 3, 4, dtype=torch.int8), torch.tensor([2]),
        scale=torch.ones(1, 4), row_index=torch.tensor([1, 0]),
    )
    assert y.tolist() == [[3.0] * 4] * 2, y
    assert torch.ops.npu.npu_format_cast(x, 29).tolist() == x.tolist()
check()
"""
OURS = """
import npu_lowering
status = npu_lowering.status()
assert (status.schema, status.cpu, status.fake, status.autograd) == ("ours",) * 4, status
assert status.converter == "none", status
"""


def test_without_torch_npu(run_python):
    run_python(HIDE + OURS + WORKS + "assert status.environment == 1, status; print(status)")


@needs_torch_npu
def test_torch_npu_without_cann(run_python):
    run_python(OURS + WORKS + "assert status.environment == 3, status\nassert status.torch_npu")


@needs_torch_npu
def test_torch_npu_stays_importable_no_worse_than_before(run_python):
    """Without CANN its import fails, with its own error, and ours goes on working."""
    run_python(
        OURS
        + """
try:
    import torch_npu
except ImportError as error:
    assert "lib" in str(error), error
else:
    raise AssertionError("torch_npu was imported without CANN")
"""
        + WORKS
    )


@needs_torch_npu
def test_after_a_failed_import_of_torch_npu(run_python):
    program = """
import os
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
try:
    import torch_npu
except ImportError:
    pass
else:
    raise AssertionError("torch_npu was imported without CANN")
"""
    run_python(program + OURS + WORKS)


@needs_torch_npu
@pytest.mark.skipif(TORCH < (2, 5), reason="torch loads backends by itself from 2.5 on")
def test_after_a_failed_import_of_torch(run_python):
    """torch's C++ cannot be initialised twice, so all that is left is a sentence."""
    program = """
try:
    import torch
except RuntimeError:
    pass
else:
    raise AssertionError("torch was imported without CANN")
try:
    import npu_lowering
except ImportError as error:
    assert "import npu_lowering before torch" in str(error), error
else:
    raise AssertionError("npu_lowering was imported without torch")
"""
    run_python(program)


STUBS = {
    "mock": "from unittest import mock; stub = mock.MagicMock(); stub.__version__ = '2.13.0'",
    "module": "import types; stub = types.ModuleType('torch_npu'); stub.__version__ = '2.13.0'",
    "its parts": "import types; from unittest import mock; stub = types.ModuleType('torch_npu'); "
    "stub.__version__ = '2.13.0'; sys.modules['torch_npu._C'] = stub._C = mock.MagicMock()",
}


@pytest.mark.parametrize("stub", STUBS.values(), ids=STUBS)
@pytest.mark.parametrize("hide", ["", HIDE], ids=["installed", "not installed"])
def test_a_stub_is_no_torch_npu(run_python, stub, hide):
    """Tests for machines without an NPU put one into sys.modules."""
    program = f"import sys; {stub}; sys.modules['torch_npu'] = stub\n"
    expected = 3 if HAS_TORCH_NPU and not hide else 1
    check = f"assert status.environment == {expected}, status"
    run_python(f"{hide}\n{program}" + OURS + WORKS + check)


def test_a_folder_of_its_name_is_no_torch_npu(run_python, tmp_path):
    (tmp_path / "torch_npu").mkdir()
    expected = 3 if HAS_TORCH_NPU else 1
    run_python(OURS + WORKS + f"assert status.environment == {expected}, status")


def test_importing_twice_reloading_and_a_second_copy(run_python):
    program = """
import importlib, sys
import npu_lowering.registration
before = torch._C._dispatch_dump("npu::npu_grouped_matmul_finalize_routing")
importlib.reload(npu_lowering)
importlib.reload(npu_lowering.registration)
check()
for name in [name for name in sys.modules if name.startswith("npu_lowering")]:
    del sys.modules[name]
import npu_lowering
check()
assert torch._C._dispatch_dump("npu::npu_grouped_matmul_finalize_routing") == before
"""
    run_python(OURS + WORKS + program + OURS)


def test_withdraw_and_register_again(run_python):
    program = """
from npu_lowering import registration
for _ in range(2):
    registration.withdraw()
    assert len(registration.OPERATORS) > 1
    for operator in registration.OPERATORS:
        assert not registration.is_defined(operator.qualname)
        assert not hasattr(torch.ops.npu, operator.name)
    registration.register()
    check()
"""
    run_python(OURS + WORKS + program + OURS)


def test_another_signature_is_seen_after_withdrawing(run_python):
    """As a torch_npu defines an older schema than ours."""
    program = """
from npu_lowering import registration
from torch.fx.operator_schemas import get_signature_for_torch_op
def parameters():
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    (signature,) = get_signature_for_torch_op(op)
    return list(signature.parameters)
assert parameters()[:2] == ["x", "w"] and len(parameters()) > 10
registration.withdraw()
library = torch.library.Library("npu", "FRAGMENT")
library.define("npu_grouped_matmul_finalize_routing(Tensor other) -> Tensor")
assert parameters() == ["other"], parameters()
"""
    run_python(OURS + "import torch" + program)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers(run_python, tmp_path, method):
    (tmp_path / "work.py").write_text(OURS + WORKS)
    program = f"""
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork, where threads run
import work
if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    processes = [context.Process(target=work.check) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
"""
    (tmp_path / "main.py").write_text(program)
    run_python("import runpy; runpy.run_path('main.py', run_name='__main__')")


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_attaches_to_any_generation_of_the_schema(run_python, generation):
    """torch_npu's C++ defines an older schema; here Python stands in for it."""
    program = (
        OURS
        + f"""
import torch
from npu_lowering import registration
from npu_lowering.operators.grouped_matmul_finalize_routing import OPERATOR
registration.withdraw()
text = OPERATOR.schema
later = ", int? x_dtype=None, int? w_dtype=None, int? scale_dtype=None"
later += ", int? pertoken_scale_dtype=None"
tuning_config, offset = ", int[]? tuning_config=None", ", Tensor? offset=None"
for since, argument in ((3, later), (2, tuning_config), (1, offset)):
    if {generation} < since:
        assert argument in text
        text = text.replace(argument, "")
torch_npu = torch.library.Library("npu", "FRAGMENT")
torch_npu.define(text)
registration.register()
status = npu_lowering.status()
assert (status.schema, status.cpu, status.fake, status.autograd) == ("upstream's", *["ours"] * 3)
case = dict(
    x=torch.ones(2, 3, dtype=torch.int8), w=torch.ones(1, 3, 4, dtype=torch.int8),
    group_list=torch.tensor([2]), scale=torch.ones(1, 4), row_index=torch.tensor([1, 0]),
)
assert npu_lowering.npu_grouped_matmul_finalize_routing(**case).tolist() == [[3.0] * 4] * 2
"""
    )
    run_python(program + WORKS.replace("torch.ops.npu.npu_format_cast(x, 29)", "x"))


NEWER = """
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from npu_lowering import registration
from npu_lowering.operators.grouped_matmul_finalize_routing import OPERATOR

registration.withdraw()
torch_npu = torch.library.Library("npu", "FRAGMENT")
torch_npu.define(OPERATOR.schema.replace(
    ") ->", ", int? made_up=None, Tensor? other=None, int? code=1, bool flag=False) ->"
))
registration.register()
op = torch.ops.npu.npu_grouped_matmul_finalize_routing
CASE = dict(
    x=torch.ones(2, 3, dtype=torch.int8), w=torch.ones(1, 3, 4, dtype=torch.int8),
    group_list=torch.tensor([2]), row_index=torch.tensor([1, 0]),
)

def plain(scale, **extra):
    return op(**CASE, scale=scale, **extra)

def meta(scale, **extra):
    case = {name: value.to("meta") for name, value in CASE.items()}
    other = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
    return op(**case, scale=scale.to("meta"), **other)

def fake(scale, **extra):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return plain(scale, **extra)

def compiled(scale, **extra):
    torch._dynamo.reset()
    return torch.compile(lambda s: plain(s, **extra), backend="aot_eager", fullgraph=True)(scale)

def decomposed(scale, **extra):
    table = npu_lowering.decompositions()
    graph = make_fx(lambda s: plain(s, **extra), decomposition_table=table)(scale)
    assert "grouped_matmul" not in graph.code, graph.code
    return graph(scale)

def with_gradient(run):
    def gradient(scale, **extra):
        scale = scale.clone().requires_grad_()
        out = run(scale, **extra)
        out.sum().backward()
        assert scale.grad.tolist() == [[6.0] * 4], scale.grad
        return out.detach()
    return gradient

WAYS = dict(
    plain=plain, meta=meta, fake=fake, compiled=compiled, decomposed=decomposed,
    gradient=with_gradient(plain), compiled_gradient=with_gradient(compiled),
)
"""


def test_arguments_of_a_newer_schema(run_python):
    """They may be None, or left out, wherever a call goes; given, they are refused by name."""
    program = """
accepted = ({}, dict(made_up=None, other=None), dict(code=None), dict(code=1, flag=False))
refused = dict(made_up=7, other=torch.ones(2), code=2, flag=True)
got = dict(made_up="7", other="a tensor of shape (2,)", code="2", flag="True")
for way, run in WAYS.items():
    for extra in accepted:
        out = run(torch.ones(1, 4), **extra)
        assert (out.shape, out.dtype) == ((2, 4), torch.float32), (way, extra)
        if way not in ("meta", "fake"):
            assert out.tolist() == [[3.0] * 4] * 2, (way, extra)
    for name, value in refused.items():
        sentence = f"{name} is not supported yet and must be None, got {got[name]};"
        try:
            run(torch.ones(1, 4), **{name: value})
        except Exception as error:
            assert sentence in str(error), (way, name, error)
        else:
            raise AssertionError(f"{way}: {name} was ignored")
"""
    run_python(OURS + NEWER + program, env={"PYTHONWARNINGS": "ignore"})


def test_upstreams_meta_keeps_what_ours_does_not_cover(run_python):
    program = """
import npu_lowering
import sys, types, torch
from npu_lowering import registration
from npu_lowering.operators.grouped_matmul_finalize_routing import OPERATOR
registration.withdraw()
library = torch.library.Library("npu", "FRAGMENT")
library.define(OPERATOR.schema)
upstream = types.ModuleType("torch_npu.op_plugin.meta._meta_registrations")
def meta(x, w, group_list, **kwargs):
    return x.new_empty((7, 7), dtype=torch.float32)
upstream.npu_grouped_matmul_finalize_routing_meta = meta
library.impl(OPERATOR.name, meta, "Meta")
sys.modules[upstream.__name__] = upstream
registration.register()
op = torch.ops.npu.npu_grouped_matmul_finalize_routing
case = dict(
    x=torch.ones(2, 3, dtype=torch.int8, device="meta"),
    group_list=torch.ones(1, dtype=torch.int64, device="meta"),
    scale=torch.ones(1, 4, device="meta"),
    row_index=torch.ones(2, dtype=torch.int64, device="meta"),
)
int8 = torch.ones(1, 3, 4, dtype=torch.int8, device="meta")
assert op(w=int8, **case).shape == (2, 4)
assert op(w=int8.int(), **case).shape == (7, 7)
assert op(w=int8, w_dtype=5, **case).shape == (7, 7)
assert op(w=int8, offset=torch.ones(1, device="meta"), **case).shape == (7, 7)
"""
    run_python(program)


def test_a_torch_npu_that_does_not_come_up_is_said(monkeypatch):
    """On a device, where torch_npu is imported first, its driver may be broken."""
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.warns(RuntimeWarning, match="its import failed .* goes on without it, on CPU"):
        registration._import_torch_npu()


def test_a_kernel_that_no_one_has_registered():
    assert registration.owner("npu::npu_swiglu", "Lazy") == "none"
