"""npu_grouped_matmul_finalize_routing on any machine.

Importing this package registers the operator with PyTorch; :func:`status` tells what that came to.

PYTEST_DONT_REWRITE: since a plugin of pytest comes with it, pytest would warn where this package
was imported before pytest started.
"""

from npu_lowering.registration import decompositions  # isort: skip -- has to come before torch does
from npu_lowering.comparison.report import Comparison, compare
from npu_lowering.moe_routing import Routing, routing
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import device_limits
from npu_lowering.operators.grouped_matmul_finalize_routing.fractal_nz import (
    from_fractal_nz,
    to_fractal_nz,
)
from npu_lowering.operators.grouped_matmul_finalize_routing.function import (
    npu_format_cast,
    npu_grouped_matmul_finalize_routing,
)
from npu_lowering.state import Status, status
from npu_lowering.version import __version__

__all__ = [
    "Comparison",
    "Routing",
    "Status",
    "__version__",
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
