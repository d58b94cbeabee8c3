"""Puts the operators into PyTorch's dispatcher: the one module with side effects.

Importing it calls :func:`register`. Where torch_npu defines an operator, ours attach to its schema,
whatever its generation, and hand what they do not cover on to what was there before; where there
is no torch_npu, the schema is defined here. :func:`withdraw` takes all of it back, so that
torch_npu may still define it.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, Callable

from npu_lowering import environment

environment.keep_torch_importable()  # has to come before torch does

import torch  # noqa: E402

from npu_lowering import flop_formulas, torch_internals  # noqa: E402
from npu_lowering.operators import OPERATORS, TRACED, derivative  # noqa: E402
from npu_lowering.operators.operator import NAMESPACE, OWN_NAMESPACE, Operator, Stage  # noqa: E402

Kernel = Callable[..., Any]

# Where the registration is kept: on torch.library, which outlives a reload of this module and a
# second copy of it. What a Library registered goes when the Library goes.
_HOME = "_npu_lowering_registration"


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
    if environment.is_installed() and environment.runtime_loads():
        _import_torch_npu()
    libraries = {
        namespace: torch.library.Library(namespace, "FRAGMENT")
        for namespace in (NAMESPACE, OWN_NAMESPACE)
    }
    registration.libraries.extend(libraries.values())
    own = libraries[OWN_NAMESPACE]
    own.define(derivative.REFUSAL)
    own.impl("no_derivative", derivative.refuse, "CompositeExplicitAutograd")
    own.impl("no_derivative", derivative.refuse_fake, "Meta")
    defining = environment.current() != environment.ATTACHED
    for operator in OPERATORS:
        if not is_defined(operator.qualname):
            theirs = operator.namespace == NAMESPACE
            if theirs and (operator.is_torch_npus or not defining):
                # Beside a torch_npu that lacks an operator, nothing is defined under its name.
                continue
            libraries[operator.namespace].define(operator.schema)
            registration.owned.add(operator.qualname)
        for key, kernel in kernels(operator).items():
            _impl(libraries[operator.namespace], operator, kernel, key)
    _replace_torch_npus_function()
    flop_formulas.register()


def kernels(operator: Operator) -> dict[str, Kernel]:
    """Ours for an operator, by dispatch key."""
    found: dict[str, Kernel] = {
        "CPU": _eager(operator, operator.cpu),
        "Autograd": derivative.kernel(operator),
        "Meta": _with_fallback(operator, _faking(operator)),
    }
    if operator.portable is not None:
        found["CompositeExplicitAutograd"] = _eager(operator, operator.portable)
    return {key: _hidden(kernel) for key, kernel in found.items()}


def _hidden(kernel: Kernel) -> Kernel:
    """Where Dynamo skips a frame of the user's, it would compile what that calls: us, op by op."""

    def hidden(*args: Any, **kwargs: Any) -> Any:
        return kernel(*args, **kwargs)

    return torch_internals.hide_from_dynamo(hidden)  # type: ignore[no-any-return]


def withdraw() -> None:
    """Take back every definition and kernel of this package.

    torch_npu's C++ definition of an operator that Python has defined aborts the process, so this
    has to come before torch_npu is imported into a process that has registered without it.
    """
    registration = _registration()
    for library in registration.libraries:
        torch_internals.destroy(library)
    registration.libraries.clear()
    registration.owned.clear()
    for operator in OPERATORS:
        packet, _, overload = operator.name.partition(".")
        getattr(torch.ops, operator.namespace).__dict__.pop(packet, None)
        torch_internals.forget_signature(f"{operator.namespace}::{packet}", overload)
    getattr(torch.ops, OWN_NAMESPACE).__dict__.pop("no_derivative", None)


def is_defined(qualname: str) -> bool:
    """Whether the dispatcher has a schema for an operator, for this overload of it."""
    name, _, overload = qualname.partition(".")
    return overload in torch_internals.overloads_of(name)


def decompositions() -> dict[Any, Kernel]:
    """The operators as standard torch ops, for ``run_decompositions``, ``make_fx`` and AOTAutograd.

    Returns:
        A dict from an operator's overload to a traceable function of the operator's own signature,
        exact as the CPU kernel is, with the same errors for what metadata shows. Values are not
        checked: there is no branch on data. It is a fresh dict; torch's own table is left alone.
    """
    return {
        operator.overload: _computing(operator, operator.decomposition)
        for operator in OPERATORS
        if operator.decomposition is not None and is_defined(operator.qualname)
    }


def _computing(operator: Operator, stage: Stage) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return stage(operator.problem(*args, **kwargs))

    return kernel


def _eager(operator: Operator, stage: Stage) -> Kernel:
    """A kernel is one operator to autocast: what it is made of keeps its dtypes."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        problem = operator.problem(*args, **kwargs)
        if not torch_internals.is_autocasting():
            return stage(problem)
        leaves = torch_internals.tree_flatten((args, kwargs))[0]
        device = next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
        with torch_internals.without_autocast(device):
            return stage(problem)

    return kernel


def _faking(operator: Operator) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        try:
            return operator.fake(operator.problem(*args, **kwargs))
        except NotImplementedError as error:
            leaves = torch_internals.tree_flatten((args, kwargs))[0]
            if any(map(torch_internals.is_fake, leaves)):
                # FakeTensorMode takes a NotImplementedError for a missing Meta kernel, and would
                # put a sentence of its own, without ours, in its place.
                raise RuntimeError(str(error)) from error
            raise

    return kernel


def _with_fallback(operator: Operator, ours: Kernel) -> Kernel:
    """Our fake where it covers the call, upstream's for the rest."""
    covers, upstream = operator.covers, _upstream_meta(operator.packet)
    if covers is None or upstream is None:
        return ours

    def kernel(*args: Any, **kwargs: Any) -> Any:
        is_ours = covers(operator.by_name(args, kwargs))
        return (ours if is_ours else upstream)(*args, **kwargs)

    return kernel


def _replace_torch_npus_function() -> None:
    """Let ``torch_npu.NAME`` be our public function where that serves a traced size.

    A user's script calls that name, and torch_npu's own function would specialise the size. Eagerly
    ours calls the same operator.
    """
    torch_npu = sys.modules.get("torch_npu")
    for name, function in TRACED.items():
        if hasattr(torch_npu, name):
            setattr(torch_npu, name, function)


def _registration() -> _Registration:
    registration: _Registration = vars(torch.library).setdefault(_HOME, _Registration())
    return registration


def _impl(library: torch.library.Library, operator: Operator, kernel: Kernel, key: str) -> None:
    torch_internals.forget_kernel(operator.qualname, key)
    # The dispatcher announces every replacement, which here is the purpose.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered")
        library.impl(operator.name, kernel, key)
    _registration().owned.add(f"{operator.qualname}/{key}")


def owner(qualname: str, key: str = "") -> str:
    """Who registered an operator's kernel for a dispatch key, or, without one, its schema.

    Returns:
        ``"ours"``, ``"upstream's"`` or ``"none"``.
    """
    if not is_defined(qualname) or (key and not torch_internals.has_kernel(qualname, key)):
        return "none"
    what = f"{qualname}/{key}" if key else qualname
    return "ours" if what in _registration().owned else "upstream's"


def _upstream_meta(packet: str) -> Kernel | None:
    """torch_npu's own Meta function, a plain Python function of one of its modules."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch_npu.") and name.endswith("._meta_registrations"):
            found: Kernel | None = getattr(module, f"{packet}_meta", None)
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
