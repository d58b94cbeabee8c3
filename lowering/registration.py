"""Puts the operator into PyTorch's dispatcher: the one module with side effects.

Importing it calls :func:`register`. Where torch_npu defines the operator, ours attach to its
schema, whatever its generation, and hand what they do not cover on to what was there before;
elsewhere the schema is defined here. :func:`withdraw` takes all of it back, so that torch_npu may
still define it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from npu_lowering import environment

environment.keep_torch_importable()  # has to come before torch does

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor  # noqa: E402

from npu_lowering.operators import format_cast  # noqa: E402
from npu_lowering.operators.grouped_matmul_finalize_routing import (  # noqa: E402
    autograd,
    contract,
    cpu,
    decomposition,
    fake,
    schema,
)

Kernel = Callable[..., Tensor]

# Where the registration is kept: on torch.library, which outlives a reload of this module and a
# second copy of it. What a Library registered goes when the Library goes.
_HOME = "_npu_lowering_registration"


@dataclass(frozen=True)
class Operator:
    """An operator that this package defines or attaches to.

    Attributes:
        name: the name in its namespace.
        schema: what is defined where torch_npu does not define it.
        kernels: ours, by dispatch key, without the fake.
        fake: ours for the key Meta.
        covers: whether a call is for our fake; torch_npu's own, where it has one, is for the rest.
            None where torch_npu's is for every call.
    """

    name: str
    schema: str
    kernels: Mapping[str, Kernel]
    fake: Kernel
    covers: Callable[..., bool] | None = None

    @property
    def qualname(self) -> str:
        """The name with its namespace."""
        return f"{schema.NAMESPACE}::{self.name}"


@dataclass
class _Registration:
    """What this package has put into the dispatcher.

    Attributes:
        libraries: the handles that keep it there.
        owned: ``qualname/key`` for each kernel, ``qualname`` for each schema.
    """

    libraries: list[torch.library.Library] = field(default_factory=list)
    owned: set[str] = field(default_factory=set)


def register() -> None:
    """Define each operator or attach to it; calling it again changes nothing."""
    registration = _registration()
    if registration.libraries:
        return
    if environment.is_installed() and environment.has_cann():
        _import_torch_npu()
    definitions = torch.library.Library(schema.NAMESPACE, "FRAGMENT")
    kernels = torch.library.Library(schema.NAMESPACE, "IMPL")
    registration.libraries.extend((definitions, kernels))
    for operator in OPERATORS:
        if not is_defined(operator.qualname):
            definitions.define(operator.schema)
            registration.owned.add(operator.qualname)
        for key, kernel in operator.kernels.items():
            _impl(kernels, operator.name, kernel, key)
        # Which operators torch_npu has a Meta kernel for depends on its release.
        needed = operator.covers is not None or not _has_kernel(operator.qualname, "Meta")
        if needed:  # pragma: no branch
            _impl(kernels, operator.name, _with_fallback(operator), "Meta")


def withdraw() -> None:
    """Take back every definition and kernel of this package.

    torch_npu's C++ definition of an operator that Python has defined aborts the process, so this
    has to come before torch_npu is imported into a process that has registered without it.
    """
    registration = _registration()
    for library in registration.libraries:
        if hasattr(library, "_destroy"):
            library._destroy()
        else:  # pragma: no cover -- torch 2.1, where the C++ handle's own destructor does it
            torch.library._impls.difference_update(library._op_impls)
            library.m = None
    registration.libraries.clear()
    registration.owned.clear()
    namespace = getattr(torch.ops, schema.NAMESPACE)
    # FX keeps signatures by name, and whoever defines the operator next may give it another.
    signatures = getattr(torch.fx.operator_schemas, "_SCHEMA_TO_SIGNATURE_CACHE", {})
    for operator in OPERATORS:
        namespace.__dict__.pop(operator.name, None)
        signatures.pop((operator.qualname, ""), None)


def is_defined(qualname: str) -> bool:
    """Whether the dispatcher has a schema for an operator."""
    return bool(torch._C._jit_get_schemas_for_operator(qualname))


def op(name: str = schema.NAME) -> Any:
    """An operator's overload, whoever defined it."""
    return getattr(getattr(torch.ops, schema.NAMESPACE), name).default


def decompositions() -> dict[Any, Kernel]:
    """The operator as standard torch ops, for ``run_decompositions``, ``make_fx`` and AOTAutograd.

    Returns:
        A dict from the operator's overload to a traceable function of the operator's own signature,
        exact as the CPU kernel is, with the same errors for what metadata shows. Values are not
        checked: there is no branch on data. It is a fresh dict; torch's own table is left alone.
    """
    return {op(): _decomposed}


def _cpu(*args: Any, **kwargs: Any) -> Tensor:
    return cpu.run(_problem(*args, **kwargs))


def _fake(*args: Any, **kwargs: Any) -> Tensor:
    try:
        return fake.run(_problem(*args, **kwargs))
    except NotImplementedError as error:
        if any(isinstance(value, FakeTensor) for value in (*args, *kwargs.values())):
            # FakeTensorMode takes a NotImplementedError for a missing Meta kernel, and would put a
            # sentence of its own, without ours, in its place.
            raise RuntimeError(str(error)) from error
        raise


def _decomposed(*args: Any, **kwargs: Any) -> Tensor:
    return decomposition.run(_problem(*args, **kwargs))


def _autograd(*args: Any, **kwargs: Any) -> Tensor:
    return autograd.run(op(), _by_name(args, kwargs))


def _covers(*args: Any, **kwargs: Any) -> bool:
    call = _by_name(args, kwargs)
    return call["w"] is None or contract.is_covered(call["w"], call)


OPERATORS = (
    Operator(
        name=schema.NAME,
        schema=schema.SCHEMA,
        kernels={"CPU": _cpu, "Autograd": _autograd},
        fake=_fake,
        covers=_covers,
    ),
    Operator(
        name=schema.FORMAT_CAST_NAME,
        schema=schema.FORMAT_CAST_SCHEMA,
        kernels={"CPU": format_cast.run},
        fake=format_cast.run,
    ),
)
"""Every operator of this package; :func:`register` and :func:`withdraw` go by it."""


def _with_fallback(operator: Operator) -> Kernel:
    """Our fake where it covers the call, upstream's for the rest."""
    ours, covers, upstream = operator.fake, operator.covers, _upstream_meta(operator.name)
    if covers is None or upstream is None:
        return ours

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        return (ours if covers(*args, **kwargs) else upstream)(*args, **kwargs)

    return kernel


def _problem(*args: Any, **kwargs: Any) -> contract.Problem:
    return contract.check_known(_by_name(args, kwargs))


def _by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(("x", "w", "group_list"), args)), **kwargs}


def _registration() -> _Registration:
    registration: _Registration = torch.library.__dict__.setdefault(_HOME, _Registration())
    return registration


def _impl(library: torch.library.Library, name: str, kernel: Kernel, key: str) -> None:
    # torch before 2.6 refuses a second Python kernel for a key by this table alone, and the
    # dispatcher announces every replacement, which here is the purpose.
    torch.library._impls.discard(f"{schema.NAMESPACE}/{name}/{key}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered")
        library.impl(name, kernel, key)
    _registration().owned.add(f"{schema.NAMESPACE}::{name}/{key}")


def owner(key: str = "", qualname: str = schema.QUALNAME) -> str:
    """Who registered an operator's kernel for a dispatch key, or, without one, its schema.

    Returns:
        ``"ours"``, ``"upstream's"`` or ``"none"``.
    """
    if key and not _has_kernel(qualname, key):
        return "none"
    what = f"{qualname}/{key}" if key else qualname
    return "ours" if what in _registration().owned else "upstream's"


def _has_kernel(qualname: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(qualname, key))


def _upstream_meta(operator: str) -> Kernel | None:
    """torch_npu's own Meta function, a plain Python function of one of its modules."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch_npu.") and name.endswith("._meta_registrations"):
            found: Kernel | None = getattr(module, f"{operator}_meta", None)
            if found is not None:
                return found
    return None


def _import_torch_npu() -> None:
    """Let torch_npu define its operators first: after ours it would abort the process."""
    try:
        __import__("torch_npu")
    except Exception as error:  # noqa: BLE001 -- anything may fail in a driver's start-up
        warnings.warn(
            f"torch_npu is installed and its import failed ({type(error).__name__}: {error}); "
            "npu_lowering goes on without it, on CPU",
            RuntimeWarning,
            stacklevel=2,
        )


register()
