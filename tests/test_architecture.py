"""Who may import whom, over every module of the package, and that there is no circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"npu_lowering": ROOT / "lowering", "npu_lowering.converters": ROOT / "converters"}
FUSED = "operators.grouped_matmul_finalize_routing"
STAGES = ("contract", "schema", "fractal_nz")


def of_fused(*names):
    return tuple(f"{FUSED}.{name}" for name in names)


# Rooms, and what of ours each may import: a module, or everything in a room. A module goes by the
# longest row that fits, and may import what lies in the row's own room besides.
ARROWS = {
    "version": (),
    "environment": (),
    "errors": (),
    "torch_internals": (),
    "operators.operator": (),
    "operators.value_checks": (),
    "operators.checking": ("operators.operator", "operators.value_checks", "torch_internals"),
    "operators.exact": ("torch_internals",),
    "operators.derivative": ("operators.operator", "torch_internals"),
    f"{FUSED}.schema": (),
    f"{FUSED}.fractal_nz": ("operators.huge_pages", "torch_internals"),
    "operators.huge_pages": (),
    f"{FUSED}.native": (),
    f"{FUSED}.contract": (
        "torch_internals",
        "operators.checking",
        "operators.operator",
        *of_fused(*STAGES),
    ),
    f"{FUSED}.device_limits": ("operators.checking", *of_fused("contract")),
    f"{FUSED}.fake": of_fused("contract"),
    f"{FUSED}.cpu": (
        "operators.exact",
        "torch_internals",
        *of_fused("contract", "fractal_nz", "native", "portable"),
    ),
    f"{FUSED}.portable": (
        "operators.exact",
        "operators.value_checks",
        *of_fused("contract", "decomposition", "fractal_nz"),
    ),
    f"{FUSED}.decomposition": ("operators.exact", *of_fused(*STAGES)),
    f"{FUSED}.autograd": (
        "operators.checking",
        "operators.operator",
        *of_fused("contract", "decomposition"),
    ),
    FUSED: ("operators.checking", "operators.operator", "torch_internals", FUSED),
    # Records share arithmetic: a fused operator takes its parts from the files that have them.
    "operators": ("operators", "torch_internals"),
    "limits": ("operators",),
    "moe_routing": ("operators",),
    "comparison": ("operators",),
    "flop_formulas": ("operators", "torch_internals"),
    "registration": ("environment", "flop_formulas", "operators", "torch_internals"),
    "state": ("environment", "operators", "registration", "version"),
    "converters": ("limits", "operators", "registration", "torch_internals"),
    "offdevice.probe": ("environment", "errors"),
    "offdevice.standins": ("errors", "offdevice.probe", "version"),
    "offdevice.engine": ("operators",),
    "offdevice.picture": ("errors", "offdevice.engine", "offdevice.probe", "offdevice.process"),
    "offdevice.bring_up": (
        "errors",
        "operators",
        "registration",
        "torch_internals",
        "offdevice.engine",
        "offdevice.probe",
        "offdevice.process.attention",
        "offdevice.process.formats",
        "offdevice.process.plain",
        "offdevice.process.randomness",
        "offdevice.process.refusals",
        "offdevice.standins",
    ),
    "offdevice.process.attention": ("offdevice.process.plain",),
    "offdevice.process.formats": ("operators", "torch_internals"),
    "offdevice.process.plain": (),
    "offdevice.process.randomness": (),
    "offdevice.process.refusals": ("errors", "offdevice.probe", "operators", "torch_internals"),
    "offdevice.capture": ("errors", "operators", "torch_internals"),
    "offdevice.process": (
        "errors",
        "offdevice",
        "offdevice.bring_up",
        "offdevice.capture",
        "offdevice.engine",
        "operators",
        "torch_internals",
    ),
    "offdevice.doctor": (
        "",
        "environment",
        "errors",
        "offdevice.bring_up",
        "offdevice.probe",
        "offdevice.standins",
        "version",
    ),
    "offdevice.graph_only": ("errors", "offdevice.bring_up", "offdevice.engine", "offdevice.probe"),
    "offdevice": (
        "errors",
        "offdevice.bring_up",
        "offdevice.capture",
        "offdevice.engine",
        "offdevice.graph_only",
    ),
    "": ("comparison", "limits", "moe_routing", "operators", "registration", "state", "version"),
    "__main__": ("errors", "offdevice", "version"),
}


def modules():
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if "pytest_plugin" not in path.parts:
                parts = path.relative_to(folder).with_suffix("").parts
                name = ".".join([package, *parts]).removesuffix(".__init__")
                found[name.removeprefix("npu_lowering").lstrip(".")] = path
    return found


MODULES = modules()


def imports(path):
    """Every module of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "npu_lowering":
                name = name.removeprefix("npu_lowering").lstrip(".")
                found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


def row(module):
    """The longest row of the table that a module goes by."""
    fitting = [name for name in ARROWS if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len) if fitting else None


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_one_way(module):
    mine = row(module)
    assert mine is not None, f"{module} has no row in ARROWS"
    for target in imports(MODULES[module]):
        theirs = row(target)
        assert theirs == mine or any(
            target == allowed or (allowed and target.startswith(f"{allowed}."))
            for allowed in ARROWS[mine]
        ), f"{module} imports {target}"


def test_there_is_no_circle():
    graph = {module: imports(path) for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_every_row_is_of_a_module():
    assert {row(module) for module in MODULES} == set(ARROWS)


def test_records_know_nothing_of_each_other_but_what_they_share():
    """An operator that needs a part of another's arithmetic takes it from the file that has it."""
    graph = {module: imports(path) for module, path in MODULES.items()}
    for module, targets in graph.items():
        if row(module).startswith("operators.") and module != "operators":
            assert "operators" not in targets, f"{module} imports the list of all operators"


def test_only_converters_and_offdevice_name_torchair():
    for module, path in MODULES.items():
        names = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        if not module.startswith(("converters", "offdevice")):
            assert not any(name.split(".")[0] in ("torchair", "torch_npu") for name in names), path


# torch._check and its kin, and torch._dynamo.reset, are documented.
PRIVATE = re.compile(
    r"\btorch\._(?!check|dynamo\.reset|dynamo\.mark_dynamic|_version__|_file__)|torch(\.\w+)+\._"
    r"|from torch\._|from torch\.\w+\._"
)


def test_private_names_of_torch_are_in_one_module():
    """So that a release which moves one of them is met in one place."""
    for module, path in MODULES.items():
        if module in ("torch_internals", "environment") or module.startswith(
            ("offdevice.capture", "offdevice.process")
        ):
            continue  # a played device replaces functions wherever torch keeps them
        text = "\n".join(
            line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines()
        )
        code = re.sub(r'""".*?"""', "", text, flags=re.S)
        assert not PRIVATE.search(code), f"{module}: {PRIVATE.search(code)[0]}"
