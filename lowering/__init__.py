"""npu_grouped_matmul_finalize_routing on any machine.

Importing this package registers the operator with PyTorch; :func:`status` tells what that came to.

PYTEST_DONT_REWRITE: since a plugin of pytest comes with it, pytest would warn where this package
was imported before pytest started.
"""

from npu_lowering.register import decompositions  # isort: skip -- has to come before torch does
from npu_lowering.checks import device_limits
from npu_lowering.compare import Comparison, compare
from npu_lowering.fractal_nz import from_fractal_nz, to_fractal_nz
from npu_lowering.ops import npu_format_cast, npu_grouped_matmul_finalize_routing
from npu_lowering.routing import Routing, routing
from npu_lowering.status import Status, status
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
