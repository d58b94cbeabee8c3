"""Makes docs/operators.md from the records: ``python tests/operators_page.py``."""

import inspect
import re

from npu_lowering.operators import OPERATORS

HEAD = "\n".join(
    (
        "# The operators",
        "",
        "Made from the records in lowering/operators/ by `python tests/operators_page.py`; a test "
        "compares it. Each operator has a CPU kernel,",
        "which computes its node in a lowered graph as well, and a fake. "
        '"portable" runs it on every device that is neither CPU nor NPU; "decomposes" gives',
        'it as core ATen ops; "derivative" says which arguments a gradient flows to. What is not '
        "supported is refused by a sentence, never ignored.",
        "`help(npu_lowering.NAME)` prints an operator's documentation: shapes, dtypes, the order "
        "of its arithmetic, errors, and what it was read in.",
        "",
    )
)


def page():
    """The whole page."""
    return "\n".join([HEAD, *(section(operator) for operator in OPERATORS)])


def section(operator):
    """One operator."""
    derivative = operator.derivative
    rows = [
        ("computes", operator.summary),
        ("not supported", operator.unsupported or "-"),
        ("exactness", operator.exactness),
        ("GE nodes", ", ".join(node.type for node in operator.nodes) or "none"),
        (
            "converter",
            "ours" if operator.converter else "TorchAIR's own" if operator.nodes else "none",
        ),
        ("portable", "yes" if operator.portable else "no"),
        ("decomposes", "yes" if operator.decomposition else "no"),
        ("derivative", ", ".join(derivative.inputs) if derivative else "refused"),
        ("source", operator.source),
    ]
    described = inspect.getdoc(operator.check).partition("\n")[0]
    table = [f"| {name} | {escaped(value)} |" for name, value in rows]
    schema = f"```\n{operator.schema}\n```"
    return "\n".join(
        [f"## {operator.name}\n", described, "", schema, "", "| | |", "|---|---|", *table, ""]
    )


def escaped(text):
    """As a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
