"""Under DTensor: no strategy, said by name; and local_map, which needs none."""

import pytest
from versions import TORCH

PROGRAM = """
import npu_lowering, torch, sys
sys.path.insert(0, {tests!r})
from cases import call
import torch.distributed as dist
from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh
from torch.distributed.tensor.experimental import local_map

dist.init_process_group("gloo", init_method="file://{file}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
case = call()
names = [name for name, value in case.items() if isinstance(value, torch.Tensor)]
op = npu_lowering.npu_grouped_matmul_finalize_routing
whole = [Replicate()]
there = [distribute_tensor(case[name], mesh, whole) for name in names]
try:
    torch.ops.npu.npu_grouped_matmul_finalize_routing(**{{**case, **dict(zip(names, there))}})
except NotImplementedError as error:
    print(error)
local = local_map(
    lambda *tensors: op(**{{**case, **dict(zip(names, tensors))}}),
    out_placements=(whole,), in_placements=tuple(whole for _ in names), device_mesh=mesh,
)
print(torch.equal(local(*there).to_local(), op(**case)))
dist.destroy_process_group()
"""


@pytest.mark.skipif(TORCH < (2, 6), reason="torch.distributed.tensor is tested from torch 2.6")
def test_dtensor(run_python, tmp_path, request):
    program = PROGRAM.format(tests=str(request.path.parent), file=tmp_path / "store")
    printed = run_python(program, env={"PYTHONWARNINGS": "ignore"})
    assert (
        "npu_grouped_matmul_finalize_routing.default does not have a sharding strategy" in printed
    )
    assert printed.splitlines()[-1] == "True"
