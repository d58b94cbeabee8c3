"""``python -m npu_lowering run SCRIPT``: a script for an NPU, unchanged, on the CPU.

Apart from the device, the script finds what it finds under plain python: its name, its arguments,
its folder first in sys.path, standard input, and the same exit code and traceback.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

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
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))  # noqa: S102
    except SystemExit:
        raise
    except BaseException as error:
        # Shown from here, since there the traceback begins with the script. The interpreter gets
        # it nevertheless, for the exit code (and the signal, if it was one), and stays silent.
        here = error.__traceback__
        error.__traceback__ = here.tb_next if here else None
        sys.excepthook(type(error), error, error.__traceback__)
        sys.excepthook = _silent
        raise
    return 0


def _silent(*_: object) -> None:
    pass


def prepare() -> None:
    """Make the device of this process: of the launcher's, and of those that a script spawns."""
    if not start.prepare():
        return  # a real CANN is here; it has said so
    # Last, so that an installed tensorflow comes before it.
    sys.meta_path.append(_TensorflowFinder())


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
