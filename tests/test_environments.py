"""The environments the package must live in, each in a process of its own.

Environment 2, torch_npu imported, is in tests/offdevice.
"""

import importlib.util

import pytest
from versions import TORCH

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


def test_importing_twice_reloading_and_a_second_copy(run_python):
    program = """
import importlib, sys
import npu_lowering.register
before = torch._C._dispatch_dump("npu::npu_grouped_matmul_finalize_routing")
importlib.reload(npu_lowering)
importlib.reload(npu_lowering.register)
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
from npu_lowering import register
for _ in range(2):
    register.withdraw()
    assert len(register.OPERATORS) > 1
    for operator in register.OPERATORS:
        assert not register.is_defined(operator.qualname)
        assert not hasattr(torch.ops.npu, operator.name)
    register.register()
    check()
"""
    run_python(OURS + WORKS + program + OURS)


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


@pytest.mark.parametrize("generation", [0, 1, 2, 4])
def test_attaches_to_any_generation_of_the_schema(run_python, generation):
    """torch_npu's C++ defines an older or a newer schema; here Python stands in for it."""
    program = (
        OURS
        + f"""
import torch
from npu_lowering import register, schema
register.withdraw()
text = schema.SCHEMA
later = ", int? x_dtype=None, int? w_dtype=None, int? scale_dtype=None"
later += ", int? pertoken_scale_dtype=None"
assert later in text
if {generation} == 4:
    text = text.replace(later, later + ", int? made_up=None")
tuning_config, offset = ", int[]? tuning_config=None", ", Tensor? offset=None"
for since, argument in ((3, later), (2, tuning_config), (1, offset)):
    if {generation} < since:
        assert argument in text
        text = text.replace(argument, "")
torch_npu = torch.library.Library("npu", "FRAGMENT")
torch_npu.define(text)
register.register()
status = npu_lowering.status()
assert (status.schema, status.cpu, status.fake, status.autograd) == ("upstream's", *["ours"] * 3)
case = dict(
    x=torch.ones(2, 3, dtype=torch.int8), w=torch.ones(1, 3, 4, dtype=torch.int8),
    group_list=torch.tensor([2]), scale=torch.ones(1, 4), row_index=torch.tensor([1, 0]),
)
assert npu_lowering.npu_grouped_matmul_finalize_routing(**case).tolist() == [[3.0] * 4] * 2
if {generation} == 4:
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing
    op(**case, made_up=None)
    try:
        op(**case, made_up=7)
    except NotImplementedError as error:
        assert str(error).startswith("made_up is not supported yet and must be None, got 7"), error
    else:
        raise AssertionError("made_up was ignored")
"""
    )
    run_python(program + WORKS.replace("torch.ops.npu.npu_format_cast(x, 29)", "x"))


def test_upstreams_meta_keeps_what_ours_does_not_cover(run_python):
    program = """
import npu_lowering
import sys, types, torch
from npu_lowering import register, schema
register.withdraw()
library = torch.library.Library("npu", "FRAGMENT")
library.define(schema.SCHEMA)
upstream = types.ModuleType("torch_npu.op_plugin.meta._meta_registrations")
def meta(x, w, group_list, **kwargs):
    return x.new_empty((7, 7), dtype=torch.float32)
upstream.npu_grouped_matmul_finalize_routing_meta = meta
library.impl(schema.NAME, meta, "Meta")
sys.modules[upstream.__name__] = upstream
register.register()
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
