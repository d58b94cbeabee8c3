"""install(), in processes that have imported this or that before."""

import importlib
import signal
import sys

import pytest

from npu_lowering.offdevice import OffDeviceError

pytestmark = pytest.mark.usefixtures("found")

# The package has the function by this name.
INSTALL = importlib.import_module("npu_lowering.offdevice.bring_up")

# What works once install() has been called.
WORKS = """
import os, sys
import torch, torch_npu, torchair
assert os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"
assert torch.npu.is_available() is False
assert torchair.core._backend._torchair is sys.modules["torchair.core._torchair"]
assert torchair.core._backend._cached_device_id == 0
assert callable(torchair.get_npu_backend)
x, w = torch.ones(2, 32, dtype=torch.int8), torch.ones(1, 32, 64, dtype=torch.int8)
w = torch_npu.npu_format_cast(w, 29)
def call(op):
    return op(x, w, torch.tensor([2]), scale=torch.ones(1, 64), row_index=torch.tensor([1, 0]))
y = call(torch_npu.npu_grouped_matmul_finalize_routing)
assert y.shape == (2, 64) and bool((y == 32).all()), y
"""

FIRST = f"""
import sys, types
from npu_lowering.offdevice import install
# An attempt that fails at the last step does not spoil the next.
sys.modules["npu_lowering.converters"] = types.ModuleType("of a release without register()")
try:
    install()
except AttributeError as error:
    assert "register" in str(error), error
del sys.modules["npu_lowering.converters"]
assert install() is True
import torch
npu, to = torch.Tensor.npu, torch.Tensor.to
assert install() is True
assert torch.Tensor.to is to and "npu_lowering" not in npu.__module__
{WORKS}
from npu_lowering import registration
FUSED = "npu::npu_grouped_matmul_finalize_routing"
assert registration.owner(FUSED) == "upstream's" and registration.owner(FUSED, "CPU") == "ours"
for operator in registration.OPERATORS:
    theirs = operator.namespace == "npu"
    assert (registration.owner(operator.qualname) == "upstream's") == theirs, operator
    keys = registration.kernels(operator)
    assert {{registration.owner(operator.qualname, key) for key in keys}} == {{"ours"}}
"""

# Everything that may have happened before, at once: torch is there; an import of torch_npu has
# failed; ours is defined from Python, and someone has got hold of it; and so is someone else's.
LATE = f"""
import os
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch
for _ in range(2):
    try:
        import torch_npu
    except ImportError as error:
        assert "libhccl.so" in str(error), error
    else:
        raise AssertionError("there is a CANN here")
import npu_lowering
packet = torch.ops.npu.npu_grouped_matmul_finalize_routing
overload = packet.default
library = torch.library.Library("npu", "FRAGMENT")
library.define("npu_fast_gelu(Tensor x) -> Tensor")
from npu_lowering import registration
FUSED = "npu::npu_grouped_matmul_finalize_routing"
from npu_lowering.offdevice import OffDeviceError, install
try:
    install()
except OffDeviceError as error:
    assert str(error).startswith("npu::npu_fast_gelu must not be defined before torch_npu")
else:
    raise AssertionError("a second definition was not noticed")
x, w = torch.ones(2, 32, dtype=torch.int8), torch.ones(1, 32, 64, dtype=torch.int8)
def call(op):
    return op(x, w, torch.tensor([2]), scale=torch.ones(1, 64), row_index=torch.tensor([1, 0]))
assert registration.owner(FUSED) == "ours"  # as before
library._destroy() if hasattr(library, "_destroy") else setattr(library, "m", None)
assert torch.equal(call(packet), call(overload))
assert install() is True
{WORKS}
assert torch.equal(call(packet), y) and torch.equal(call(overload), y)
assert torch.ops.npu.npu_grouped_matmul_finalize_routing is packet
assert packet.default is overload
assert torch.equal(torch.compile(lambda: call(packet), backend="aot_eager", fullgraph=True)(), y)
"""

# What a shell runs in the background ignores SIGINT from the start.
SIGNALLED = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from npu_lowering import offdevice
offdevice.install()
import torch, torchair
backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
os.kill(os.getpid(), {0:d})
time.sleep(60)
"""
# The reverse: torchair with its own engine, over stand-ins that someone else has loaded.
TORCHAIR_FIRST = """
from npu_lowering.offdevice import OffDeviceError, install, probe
from npu_lowering.offdevice.standins import load as standins
standins.load(probe.find_wheels())
import sys, types
sys.modules["torchair.core._torchair"] = types.ModuleType("theirs")
try:
    install()
except OffDeviceError as error:
    print(error)
"""


@pytest.mark.parametrize("program", [FIRST, LATE], ids=["first", "late"])
def test_install(program, python):
    output, errors = python("-c", program)
    assert output == ""
    assert "ASCEND_HOME_PATH" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_as_ever(number, python):
    """TorchAIR's own handlers would swallow the first one, and ignore those that follow."""
    _, errors = python("-c", SIGNALLED.format(number), code=-number)
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


# A kernel for an operator that nobody has defined yet; and a thread that is not the main one.
THREAD = f"""
import threading
import npu_lowering, torch
kernels = torch.library.Library("npu", "IMPL")
kernels.impl("npu_of_tomorrow", lambda x: x, "CPU")
from npu_lowering.offdevice import install
thread = threading.Thread(target=install)
thread.start()
thread.join()
assert install() is True
{WORKS}
"""


def test_from_a_thread(python):
    output, errors = python("-c", THREAD)
    assert (output, "Traceback" in errors) == ("", False)


@pytest.mark.parametrize(
    ("missing", "advice"),
    [("pkg_resources", "; run: pip install 'setuptools<81'$"), ("attr", "$")],
)
def test_a_module_that_an_import_lacks_is_named(missing, advice, tmp_path, monkeypatch):
    """With what brings it only where that is known: a module's name is not a distribution's."""
    (tmp_path / "needs_a_module.py").write_text(f"import {missing}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    message = f"needs the module {missing}, not installed here{advice}"
    with pytest.raises(OffDeviceError, match=message):
        INSTALL._import("needs_a_module")


def test_a_module_of_ours_that_is_missing_is_our_fault():
    with pytest.raises(ModuleNotFoundError):
        INSTALL._import("npu_lowering.of_tomorrow")


def test_an_engine_that_is_in_place_already(python):
    output, _ = python("-c", TORCHAIR_FIRST)
    assert output.startswith("torchair was imported before npu_lowering.offdevice.install()")


def test_importing_is_light(python):
    """The graph engine and TorchAIR are not imported with the package."""
    program = """
import sys, npu_lowering.offdevice
print([name for name in sys.modules
       if name.split(".")[0] in ("torchair", "torch_npu", "google")
       or name in ("npu_lowering.offdevice.engine.module", "npu_lowering.offdevice.engine.graph")])
try:
    npu_lowering.offdevice.nothing
except AttributeError as error:
    print(error)
"""
    output, _ = python("-c", program)
    assert output.splitlines() == [
        "[]",
        "module 'npu_lowering.offdevice' has no attribute 'nothing'",
    ]
