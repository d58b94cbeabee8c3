"""The pytest plugin: ``pytest --npu-offdevice``, and the fixtures npu_backend and lowered_graph.

pytest imports every installed plugin at every start, in every project, so this package is apart
from npu_lowering, whose import is torch's. Nothing of either is imported before it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from npu_lowering.offdevice.engine.recorder import Recording

_OPTION = "--npu-offdevice"
_STATE = pytest.StashKey[str]()
# What torch and TorchAIR say of torch when a model is compiled. In a project where warnings are
# errors, no test of a compiled model would pass.
_UPSTREAM_WARNINGS = (
    ("TypedStorage is deprecated", UserWarning),
    (".*torch.jit.script", DeprecationWarning),
    (".*torch.jit.script", FutureWarning),  # from torch 2.14 on
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("npu_lowering").addoption(
        _OPTION,
        action="store_true",
        help="without an NPU and CANN: let the CPU play an NPU, make torch_npu and torchair "
        "importable, and compute what TorchAIR lowers. With CANN, tests run on the device",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Bring torch_npu into this process, before any conftest of the project can import it.

    Workers of pytest-xdist are given the same options, and come here as well.

    Raises:
        pytest.UsageError: It is not possible here; the message says why and what to do.
    """
    if not early_config.known_args_namespace.npu_offdevice:
        return
    # What torch and torch_npu warn of while they are imported is not the project's, and that a
    # device is here is no error: the header says it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from npu_lowering.offdevice.process import start

            off = start.prepare()
            if off:
                start.prepare_children(start.prepare)
        except (ImportError, RuntimeError) as error:  # OffDeviceError is a RuntimeError
            raise pytest.UsageError(f"{_OPTION}: {error}") from error
    early_config.stash[_STATE] = (
        "off the device: the CPU plays an NPU"
        if off
        else "a real CANN is here, so tests run on the device as they are"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say where the tests run."""
    state = config.stash.get(_STATE, None)
    return None if state is None else f"npu_lowering: {state}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out of a test's warnings what upstream says of itself.

    pytest puts the project's filters in place for each test, and takes them away after it.
    """
    if _STATE in item.config.stash:
        for message, category in _UPSTREAM_WARNINGS:
            warnings.filterwarnings("ignore", message, category)


@pytest.fixture
def npu_backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """TorchAIR's backend, for ``torch.compile(model, backend=npu_backend)``.

    Without an NPU, what it lowers is computed on the CPU. Dynamo is reset before the test and after
    it, so that nothing is taken from another test's compilation.
    """
    _require_torchair(request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._dynamo
        import torch_npu  # noqa: F401 -- makes torchair importable
        import torchair

        # In here because TorchAIR changes the process's filters while it makes a backend.
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    torch._dynamo.reset()
    yield backend
    torch._dynamo.reset()


@pytest.fixture
def lowered_graph(npu_backend: Any) -> Iterator[Recording]:
    """``lowered_graph()`` is the GE graph that this test lowered last.

    It has ``nodes``, ``nodes_of(type)``, ``inputs`` and ``outputs``; ``lowered_graph.graphs`` are
    all that this test lowered. On a device the graph is CANN's and cannot be seen: a skip.
    """
    del npu_backend  # whose reset makes the test lower what it compiles
    from npu_lowering import offdevice

    if not offdevice.is_installed():
        pytest.skip("lowered_graph shows what is lowered off the device, and a real CANN is here")
    from npu_lowering.offdevice.engine import recorder

    with recorder.recording() as recording:
        yield recording


def _require_torchair(request: pytest.FixtureRequest) -> None:
    """Stop the test if there is neither a device nor what stands in for one."""
    if _STATE in request.config.stash:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from npu_lowering import offdevice
        from npu_lowering.offdevice import probe
    if not offdevice.is_installed() and probe.real_cann() is None:
        pytest.fail(
            f"the fixture {request.fixturename} needs an NPU, or pytest {_OPTION}, which makes "
            "TorchAIR work without one",
            pytrace=False,
        )
