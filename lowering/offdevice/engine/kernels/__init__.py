"""The table of GE operators that the CPU engine computes."""

from __future__ import annotations

from npu_lowering.offdevice.engine.call import Call, Result
from npu_lowering.offdevice.engine.kernels import index, math, nn, shape
from npu_lowering.offdevice.engine.kernels.table import Function, Kernel, Table
from npu_lowering.operators import OPERATORS
from npu_lowering.operators.operator import GENode, Operator

__all__ = ["KERNELS", "Kernel", "Table"]


def _of_record(operator: Operator, node: GENode) -> Function:
    """The kernel of a node that an operator is lowered to: the operator's own on CPU."""

    def kernel(call: Call) -> Result:
        arguments = node.arguments(call)
        result = operator.cpu(operator.check(**arguments))
        # An operator without a result is a node whose results are what it wrote.
        return [arguments[name] for name in operator.written] if result is None else result

    return kernel


def _table() -> Table:
    table = Table()
    for part in (index.KERNELS, math.KERNELS, nn.KERNELS, shape.KERNELS):
        table.include(part)
    for operator in OPERATORS:
        for node in operator.nodes:
            table.add(node.type, _of_record(operator, node), in_place=node.in_place)
    return table


KERNELS = _table()
