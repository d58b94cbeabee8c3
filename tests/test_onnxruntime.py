"""The decomposed operator in ONNX Runtime: the same bits, for one number of tokens and for any."""

import pytest
import torch
from cases import CASES, call, fractal_nz
from compare import assert_same
from versions import TORCH

import npu_lowering

ort = pytest.importorskip("onnxruntime", reason="onnxruntime comes with the extra test")
pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript, of the extra test")

pytestmark = [
    pytest.mark.skipif(TORCH < (2, 9), reason="exporting to ONNX is tested from torch 2.9"),
    # What torch itself does while it exports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROWS = ("x", "pertoken_scale", "logit", "row_index")
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class Model(torch.nn.Module):
    """The operator, its tensors the inputs; the weight is cast as a model on a device casts it."""

    def __init__(self, case):
        super().__init__()
        self.names = [name for name, value in case.items() if isinstance(value, torch.Tensor)]
        self.rest = {name: value for name, value in case.items() if name not in self.names}

    def forward(self, *tensors):
        given = dict(zip(self.names, tensors))
        given["w"] = npu_lowering.npu_format_cast(given["w"], 29)
        return npu_lowering.npu_grouped_matmul_finalize_routing(**given, **self.rest)


def exported(case, path, *, dynamic=False):
    """The program as a session of ONNX Runtime, its nodes ONNX's own."""
    model = Model(case)
    tensors = tuple(case[name] for name in model.names)
    rows = torch.export.Dim("m", min=6, max=4096)
    shapes = tuple({0: rows} if dynamic and name in ROWS else None for name in model.names)
    program = torch.export.export(model, tensors, dynamic_shapes=(shapes,))
    table = {**torch.export.default_decompositions(), **npu_lowering.decompositions()}
    made = torch.onnx.export(program.run_decompositions(table), dynamo=True, verbose=False)
    assert {node.domain for node in made.model.graph.all_nodes()} <= {
        "",
        "pkg.onnxscript.torch_lib",
    }
    made.save(path)
    return model, ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session, tensors):
    assert len(session.get_inputs()) == len(tensors)
    feeds = {}
    for name, tensor in zip(session.get_inputs(), tensors):
        if tensor.dtype == torch.bfloat16:  # numpy has none
            bits = tensor.contiguous().view(torch.int16).numpy()
            value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)
        else:
            value = ort.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())
        feeds[name.name] = value
    (result,) = session.run_with_ort_values([o.name for o in session.get_outputs()], feeds)
    return torch.from_numpy(result.numpy())


@pytest.mark.parametrize(
    "name",
    [
        "both",
        "neither_no_pertoken_scale",
        "bias_bfloat16",
        "totals_with_tail",
        "fractal_nz_padded",
        "tail_of_garbage",
        "row_index_int32",
        "shared_input_everywhere",
        "large_sums",
        "every_row_to_one_token",
    ],
)
def test_static(name, tmp_path):
    case = CASES[name]()
    model, session = exported(case, tmp_path / "model.onnx")
    tensors = [case[name] for name in model.names]
    assert_same(run(session, tensors), model(*tensors))


@pytest.mark.parametrize("make", [call, fractal_nz])
def test_any_number_of_rows(make, tmp_path):
    model, session = exported(make(), tmp_path / "model.onnx", dynamic=True)
    for m in (6, 24, 50, 333):
        case = make(m=m, counts=(3, 0, 2, 1) if m < 24 else (7, 0, m - 20, 5))
        tensors = [case[name] for name in model.names]
        assert_same(run(session, tensors), model(*tensors))
