"""Runs every operator on device.cpp, in one way, and prints what of it went wrong, as JSON.

    python play.py LIBRARY KIND

The result names the operators that were run, and, for each call that differed from the CPU's or
failed, how.
"""

import npu_lowering  # isort: skip

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from operators import TESTED, on_tensors, outcome, results, split
from other_device import build, where
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = f"{build.NAME}:0"
# Kernels that slice by the values themselves.
READS = (
    "npu_grouped_matmul",
    "npu_grouped_matmul.List",
    "npu_grouped_matmul_swiglu_quant",
    "npu_grouped_matmul_swiglu_quant_v2",
    "npu_fused_infer_attention_score",
)
# Takes from its second argument what is noted of a storage, and no more: not its numbers, and not a
# note that stayed on the CPU.
NOTED = ("npu_format_cast.Tensor",)
LARGE = ("document",)


def call(name):
    """Through the dispatcher."""
    operator = TESTED[name].operator

    def function(case):
        args, kwargs = split(operator, case)
        return operator.overload(*args, **kwargs)

    return function


def over_there(value):
    return on_tensors(lambda tensor: tensor.to(DEVICE), value)


def differs(name, case, actual, expected):
    """In which way, None if in none: bits, dtypes, shapes, strides and devices."""
    record = TESTED[name]
    if any(each.device != torch.device(DEVICE) for each in actual):
        return "not on the device"
    if [each.stride() for each in actual] != [each.stride() for each in expected]:
        return "other strides"
    actual = tuple(each.cpu() for each in actual)
    if record.undefined is not None:
        actual, expected = (results(record.undefined(case, each)) for each in (actual, expected))
    for one, other in zip(actual, expected):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return f"{one.dtype} {tuple(one.shape)}, not {other.dtype} {tuple(other.shape)}"
        bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)]
        nan = one.isnan() & other.isnan() if one.is_floating_point() else None
        if not torch.equal(*bits) and (nan is None or not bool((nan | (one == other)).all())):
            return "other numbers"
    return None


def compared(name, case, function=None):
    """A call there against the same call on the CPU."""
    expected = outcome(name, case, call(name))
    return differs(name, case, outcome(name, over_there(case), function or call(name)), expected)


def every_sample(play):
    """``play(name, case)`` of each sample: its problem, or None."""
    return _over(play, lambda record: record.samples)


def few_samples(play, few=2):
    return _over(play, lambda record: [*record.samples][:few])


def _over(play, chosen):
    ran, problems = [], {}
    for name, record in TESTED.items():
        if record.operator.portable is None:
            continue
        for sample in chosen(record):
            if sample not in LARGE:
                ran.append(name)
                problem = _tried(play, name, record.samples[sample]())
                if problem is not None:
                    problems[f"{name}, {sample}"] = problem
    return {"ran": sorted(set(ran)), "problems": problems}


def _tried(play, *args):
    try:
        return play(*args)
    except Exception as error:  # noqa: BLE001 -- reported to the test
        return f"{type(error).__name__}: {str(error)[:500]}"


def eager():
    return every_sample(compared)


def inference_mode():
    with torch.inference_mode():
        return every_sample(compared)


def autocast():
    """Which rounds this device's matmuls to bfloat16, and may not reach those of a kernel."""
    ones = torch.ones(2, 2, device=DEVICE)
    with torch.autocast(build.NAME, dtype=torch.bfloat16):
        assert torch.mm(ones, ones).dtype == torch.bfloat16

    def function(name):
        def cast(case):
            with torch.autocast(build.NAME, dtype=torch.bfloat16):
                return call(name)(case)

        return cast

    return every_sample(lambda name, case: compared(name, case, function(name)))


def gradients():
    """Equal to the CPU's, for each float argument; or refused by name."""

    def there(name, case):
        floats = [
            each
            for each, value in case.items()
            if isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and each not in TESTED[name].written
        ]
        found = []
        for given in (case, over_there(case)):
            leaves = {each: given[each].detach().requires_grad_() for each in floats}
            outputs = [
                each for each in results(call(name)({**given, **leaves})) if each.requires_grad
            ]
            if not outputs:
                return None
            if not TESTED[name].differentiable:
                return _refused(name, outputs)
            total = sum((each.float() * each.float()).sum() for each in outputs)
            grads = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
            found.append([each.cpu() for each in grads if each is not None])
        return None if all(map(torch.equal, *found)) else "other gradients"

    return few_samples(there)


def _refused(name, outputs):
    try:
        outputs[0].float().sum().backward()
    except RuntimeError as error:
        return None if str(error).startswith(f"{name} has no derivative") else str(error)
    return "not refused"


def compiled(backend, dynamic):
    def there(name, case):
        if backend == "aot_eager" and "!" in TESTED[name].operator.returns:
            return None  # torch functionalises no such operator, on any device
        torch._dynamo.reset()
        function = torch.compile(call(name), backend=backend, fullgraph=True, dynamic=dynamic)
        return compared(name, case, function)

    return few_samples(there, 1)


def values():
    """Wrong values: the sentence of the CPU."""
    problems, ran = {}, set()
    for name, record in TESTED.items():
        if record.operator.portable is None or name in NOTED:
            continue
        for error, bad in record.value_errors.items():
            ran.add(name)
            case = over_there({**bad.base(), **bad.change})
            try:
                call(name)(case)
                said = "no error"
            except bad.error as found:
                said = str(found)
            if not said.startswith(bad.message):
                problems[f"{name}, {error}"] = said
    return {"ran": sorted(ran), "problems": problems}


def devices():
    """One argument on the CPU: an error that names an argument and both devices."""

    def there(name, case):
        tensors = [each for each, value in case.items() if isinstance(value, torch.Tensor)]
        if len(tensors) < 2 or name in NOTED:
            return None
        for each in tensors:
            mixed = {**over_there(case), each: case[each]}
            try:
                call(name)(mixed)
            except ValueError as error:
                said = re.fullmatch(
                    r"(\w+) must be on the device of (\w+), (.+), got (.+)", str(error)
                )
                if said and each in said.groups()[:2] and {*said.groups()[2:]} == {"cpu", DEVICE}:
                    continue
                return str(error)
            return f"no error for {each}"
        return None

    return few_samples(there)


class Reads(TorchDispatchMode):
    """Notes what makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        copies = func in (aten._to_copy.default, aten.copy_.default)
        reads = func is aten._local_scalar_dense.default and args[0].device.type != "cpu"
        if reads or (copies and result.device.type == "cpu"):
            self.found.append(str(func))
        return result


def waits(name, case):
    """The operators at which a kernel waits."""
    operator = TESTED[name].operator
    with Reads() as reads:
        outcome(name, over_there(case), lambda case: operator.portable(operator.problem(**case)))
    return reads.found


def unchecked():
    """With the checks of values turned off: the same numbers, without waiting for them."""

    def there(name, case):
        problem = compared(name, case)
        if problem is not None:
            return problem
        return None if name in READS else waits(name, case) or None

    fused = "npu_grouped_matmul_finalize_routing"
    assert len(waits(fused, TESTED[fused].samples["both"]())) == 1
    assert npu_lowering.check_values(False) is True
    return every_sample(there)


KINDS = {
    "where": lambda: where.row(DEVICE),
    "eager": eager,
    "inference_mode": inference_mode,
    "autocast": autocast,
    "gradients": gradients,
    "values": values,
    "devices": devices,
    "unchecked": unchecked,
    "compile_eager": lambda: compiled("eager", None),
    "compile_eager_dynamic": lambda: compiled("eager", True),
    "compile_aot_eager": lambda: compiled("aot_eager", None),
    "compile_aot_eager_dynamic": lambda: compiled("aot_eager", True),
}

if __name__ == "__main__":
    build.load(sys.argv[1])
    print(json.dumps(KINDS[sys.argv[2]]()))
