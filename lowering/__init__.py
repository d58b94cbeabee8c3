"""Operators of Mixture-of-Experts models on Ascend NPUs, on any machine.

Importing this package registers them with PyTorch; :func:`status` tells what that came to. Each has
a public function of its name here, such as ``npu_grouped_matmul_finalize_routing``.

PYTEST_DONT_REWRITE: since a plugin of pytest comes with it, pytest would warn where this package
was imported before pytest started.
"""

from npu_lowering.registration import decompositions  # isort: skip -- has to come before torch does
from typing import Any

from npu_lowering.comparison.report import Comparison, compare
from npu_lowering.limits import DeviceLimitWarning, device_limits
from npu_lowering.moe_routing import Routing, routing
from npu_lowering.operators import BY_NAME as _BY_NAME
from npu_lowering.operators.format_cast import npu_format_cast
from npu_lowering.operators.grouped_matmul_finalize_routing import (
    npu_grouped_matmul_finalize_routing,
)
from npu_lowering.operators.grouped_matmul_finalize_routing.fractal_nz import (
    from_fractal_nz,
    to_fractal_nz,
)
from npu_lowering.operators.operator import public as _public
from npu_lowering.operators.value_checks import check_values
from npu_lowering.state import Owners, Status, status
from npu_lowering.version import __version__

__all__ = [
    "Comparison",
    "DeviceLimitWarning",
    "Owners",
    "Routing",
    "Status",
    "__version__",
    "check_values",
    "compare",
    "decompositions",
    "device_limits",
    "from_fractal_nz",
    "npu_format_cast",
    "npu_grouped_matmul_finalize_routing",
    "routing",
    "status",
    "to_fractal_nz",
]


def __getattr__(name: str) -> Any:
    """The public function of an operator, made when it is first asked for."""
    record = _BY_NAME.get(name)
    if record is None or record.function is not None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = function = _public(record.check, name, object)
    return function


def __dir__() -> list[str]:
    """What there is, the operators' functions included."""
    return sorted(
        {
            *globals(),
            *(
                name
                for name, record in _BY_NAME.items()
                if "." not in name and record.function is None
            ),
        }
    )
