"""``python -m npu_lowering run``: a script or a module for an NPU, unchanged, on the CPU.

Apart from the device, the script finds what it finds under plain python: its name, its arguments,
its folder first in sys.path, standard input, and the same exit code and traceback.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from npu_lowering.offdevice import is_installed
from npu_lowering.offdevice.process import start


def run(script: str, arguments: Sequence[str]) -> int:
    """Run ``script`` as ``__main__`` in this process.

    Args:
        script: Path of a Python file.
        arguments: The script's own arguments.

    Returns:
        0 if the script came to its end, or 2, as of python, if it cannot be read. What the script
        raises goes on; its traceback has been printed, without the launcher's own frames.

    Raises:
        OffDeviceError: There can be no stand-in for the device here.
    """
    try:
        source = Path(script).read_bytes()  # first, for it is cheap and what is most often wrong
    except OSError as error:
        sys.stderr.write(
            f"npu_lowering: can't open file {script!r}: [Errno {error.errno}] {error.strerror}\n"
        )
        return 2
    prepare()
    start.prepare_children(prepare)
    path = os.path.abspath(script)  # noqa: PTH100 -- of a link its own path, as python has it
    module = types.ModuleType("__main__")
    vars(module).update(
        __file__=path,
        __cached__=None,
        __annotations__={},
        __builtins__=builtins,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
    )
    sys.modules["__main__"] = module
    sys.argv[:] = [script, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path(script).resolve().parent)
    with _shown_without_our_frames():
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))  # noqa: S102
    return 0


def run_module(name: str, arguments: Sequence[str]) -> int:
    """Run a module as ``__main__`` in this process, as ``python -m`` does.

    The ranks that torchrun (``torch.distributed.run``) starts are run so as well.

    Args:
        name: The module, or a package that has a ``__main__``.
        arguments: The module's own arguments.

    Returns:
        0 if the module came to its end; what it raises goes on, as of :func:`run`.

    Raises:
        OffDeviceError: There can be no stand-in for the device here.
    """
    prepare()
    start.prepare_children(prepare)
    if name.partition(".")[0] == "torch" and is_installed():
        _prepare_ranks()
    module = types.ModuleType("__main__")
    vars(module).update(__builtins__=builtins)
    sys.modules["__main__"] = module
    # torch_npu imports torch.distributed.run, which runpy would warn of.
    warnings.filterwarnings("ignore", ".* found in sys.modules after import of", RuntimeWarning)
    sys.argv[:] = ["-m", *arguments]  # python puts the module's file in place of -m, and so does:
    with _shown_without_our_frames():
        runpy._run_module_as_main(name)  # type: ignore[attr-defined]
    return 0


@contextlib.contextmanager
def _shown_without_our_frames() -> Iterator[None]:
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        # Shown from here, since there the traceback begins with the script. The interpreter gets
        # it nevertheless, for the exit code (and the signal, if it was one), and stays silent.
        here = error.__traceback__
        while here is not None and here.tb_frame.f_globals is globals():
            here = here.tb_next
        error.__traceback__ = here
        sys.excepthook(type(error), error, here)
        sys.excepthook = _silent
        raise


def _silent(*_: object) -> None:
    pass


def prepare() -> None:
    """Make the device of this process: of the launcher's, and of those that a script spawns."""
    if not start.prepare():
        return  # a real CANN is here; it has said so
    # Last, so that an installed tensorflow comes before it.
    sys.meta_path.append(_TensorflowFinder())


def _prepare_ranks() -> None:
    """Let torchrun start ``python -m npu_lowering run SCRIPT`` in place of ``python SCRIPT``."""
    from torch.distributed.launcher import api

    class Launch(api.elastic_launch):
        def __call__(self, *arguments: str) -> Any:
            if arguments[:1] == ("-u",):  # of python, which comes first unless --no-python is given
                arguments = ("-u", "-m", "npu_lowering", "run", *arguments[1:])
            return super().__call__(*arguments)  # type: ignore[no-untyped-call]

    api.elastic_launch = Launch  # type: ignore[misc]


class _TensorflowFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a ``tensorflow`` that has bfloat16 and nothing else.

    Scripts for an NPU import it for that one dtype, which numpy has not.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 -- the protocol's
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin="npu_lowering")

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name, "The one attribute of tensorflow that scripts need.")

    def exec_module(self, module: types.ModuleType) -> None:
        if importlib.util.find_spec("ml_dtypes") is not None:
            dtype: object = importlib.import_module("ml_dtypes").bfloat16
        else:
            dtype = _NoBfloat16()
        vars(module).update(
            bfloat16=types.SimpleNamespace(as_numpy_dtype=dtype), __getattr__=_no_tensorflow
        )


class _NoBfloat16:
    """May be named, and is refused by numpy, whose message shows this text."""

    def __repr__(self) -> str:
        return "bfloat16 of tensorflow, for which ml_dtypes is to be installed (pip install it)"


def _no_tensorflow(name: str) -> object:
    raise AttributeError(
        f"tensorflow.{name} is not here: tensorflow is not installed, and `python -m npu_lowering "
        "run` stands in for tensorflow.bfloat16.as_numpy_dtype only; run: pip install tensorflow"
    )
