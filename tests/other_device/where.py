"""What of an operator runs on a device: the cells of a row of the table in docs/reference.md."""

import torch
from operators import TESTED, on_tensors, outcome, split

KINDS = ("eager", "gradients", "torch.compile", "torch.export")


def row(device):
    """For each kind, yes where every operator's first sample runs, with results there."""
    return {
        kind: "yes" if all(_runs(kind, name, device) for name in TESTED) else "no" for kind in KINDS
    }


def _runs(kind, name, device):
    record = TESTED[name]
    case = next(iter(record.samples.values()))()
    case = on_tensors(lambda tensor: tensor.to(device), case)

    def call(case):
        args, kwargs = split(record.operator, case)
        return record.operator.overload(*args, **kwargs)

    try:
        if kind == "eager":
            found = outcome(name, case, call)
        elif kind == "gradients":
            return _has_gradients(record, case, call)
        elif kind == "torch.compile":
            torch._dynamo.reset()
            backend = "eager" if "!" in record.operator.returns else "aot_eager"
            found = outcome(name, case, torch.compile(call, backend=backend, fullgraph=True))
        else:
            found = outcome(name, case, _exported(case, call))
    except (RuntimeError, NotImplementedError):
        return False
    return all(each.device.type == torch.device(device).type for each in found)


def _has_gradients(record, case, call):
    names = [each for each in record.differentiable if isinstance(case.get(each), torch.Tensor)]
    if not names:
        return True  # refused, which other tests hold it to
    leaves = {each: case[each].detach().requires_grad_() for each in names}
    result = call({**case, **leaves})
    result = result if isinstance(result, torch.Tensor) else result[0]
    grads = torch.autograd.grad(result.float().sum(), [*leaves.values()], allow_unused=True)
    return any(grad is not None for grad in grads)


def _exported(case, call):
    class Model(torch.nn.Module):
        def forward(self, case):
            return call(case)

    return torch.export.export(Model(), (case,)).module()
