"""Plant faults in two operators, one at a time, and see that a generic test of each turns red.

    python tests/faults.py [NAME ...]

A copy of the package is changed, never the package itself. Every fault has to fail a test whose
name has the operator's in it. It takes some minutes; the exit code is 0 if each was found.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FUSED = "npu_grouped_matmul_finalize_routing"
FINALIZE = "npu_moe_finalize_routing"
FOLDER = "operators/grouped_matmul_finalize_routing"
# What an own converter of npu_moe_finalize_routing would be, but for the one it sends too many.
CONVERTER = """
from torchair._ge_concrete_graph import ge_apis as ge

def convert(arguments, problem):
    tensors = [arguments[name] for name in (
        "expanded_permuted_rows", "expanded_src_to_dst_row", "skip1", "skip2", "bias", "scales",
        "export_for_source_row")]
    return ge.MoeFinalizeRoutingV2(
        *tensors, drop_pad_mode=arguments["drop_pad_mode"], k=problem.slots + 1)
"""


@dataclass(frozen=True)
class Fault:
    """One thing wrong.

    Attributes:
        operator: that it is planted in.
        file: of the package.
        old: what stands there.
        new: what stands there then.
        added: files to add, by name.
        lowered: whether it shows only in a lowered graph.
    """

    operator: str
    file: str
    old: str
    new: str
    added: tuple[tuple[str, str], ...] = ()
    lowered: bool = False


def no_autograd(operator):
    return Fault(
        operator,
        "registration.py",
        "    if operator.portable is not None:\n",
        f"    if operator.name == {operator!r}:\n        del found['Autograd']\n"
        "    if operator.portable is not None:\n",
    )


FAULTS = {
    "default of the fused one": Fault(
        FUSED,
        f"{FOLDER}/contract.py",
        "shared_input_weight: float | None = 1.0",
        "shared_input_weight: float | None = 2.0",
    ),
    "no Autograd kernel of the fused one": no_autograd(FUSED),
    "no decomposition of the fused one": Fault(
        FUSED, f"{FOLDER}/__init__.py", "    decomposition=decomposition.run,\n", ""
    ),
    "a row too many from the fake of the fused one": Fault(
        FUSED,
        f"{FOLDER}/fake.py",
        "(problem.output_bs, problem.n)",
        "(problem.output_bs + 1, problem.n)",
    ),
    "another attribute from the converter of the fused one": Fault(
        FUSED,
        "converters/grouped_matmul_finalize_routing.py",
        '["shared_input_offset"] = problem.shared_input_offset',
        '["shared_input_offset"] = problem.shared_input_offset - 1',
        lowered=True,
    ),
    "default of npu_moe_finalize_routing": Fault(
        FINALIZE, "operators/moe_finalize_routing.py", "k: int | None = 1", "k: int | None = 2"
    ),
    "no Autograd kernel of npu_moe_finalize_routing": no_autograd(FINALIZE),
    "no decomposition of npu_moe_finalize_routing": Fault(
        FINALIZE, "operators/moe_finalize_routing.py", "    decomposition=run,\n", ""
    ),
    "a row too many from the fake of npu_moe_finalize_routing": Fault(
        FINALIZE,
        "operators/moe_finalize_routing.py",
        "new_empty((call.tokens, call.h))",
        "new_empty((call.tokens + 1, call.h))",
    ),
    "another attribute from a converter of npu_moe_finalize_routing": Fault(
        FINALIZE,
        "operators/moe_finalize_routing.py",
        "    nodes=(",
        '    converter="npu_lowering.converters.planted",\n    nodes=(',
        added=(("converters/planted.py", CONVERTER),),
        lowered=True,
    ),
}


def plant(fault, folder):
    """A copy of the package with the fault in it."""
    package = folder / "npu_lowering"
    shutil.copytree(ROOT / "lowering", package)
    shutil.copytree(ROOT / "converters", package / "converters")
    shutil.copytree(ROOT / "lowering" / "pytest_plugin", folder / "npu_lowering_pytest")
    path = package / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.file} has {fault.old!r} {text.count(fault.old)} times, not once")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    for name, content in fault.added:
        (package / name).write_text(content, encoding="utf-8")


def found(fault):
    """The tests that fail, of those that name the operator."""
    file = "offdevice/test_operators_lowered.py" if fault.lowered else "test_operators.py"
    with tempfile.TemporaryDirectory() as folder:
        plant(fault, Path(folder))
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-x",
                    "--maxfail=5",
                    "-p",
                    "no:cacheprovider",
                ),
                *("-k", fault.operator, str(ROOT / "tests" / file)),
            ],
            env={**os.environ, "PYTHONPATH": folder, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    failed = re.findall(r"^FAILED \S+?::(.*?)(?: - .*)?$", done.stdout, flags=re.M)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return [name for name in failed if fault.operator in name]


def main(names):
    """Plant each fault; the number of those that no test found."""
    missed = 0
    for name in names or FAULTS:
        tests = found(FAULTS[name])
        missed += not tests
        print(f"{name}: {tests[0] if tests else 'NOT FOUND'}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
