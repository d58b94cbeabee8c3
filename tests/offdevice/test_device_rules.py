"""Each rule of the device, broken once, on a node that is right otherwise."""

import ge_models
import pytest
import torch

from npu_lowering.offdevice.engine import module, rules
from npu_lowering.offdevice.engine.graph import GraphError

M, K, N, E, BS = 6, 4, 8, 2, 5


pytestmark = pytest.mark.usefixtures("torchair")


def _tensors():
    return {
        "x": torch.ones(M, K, dtype=torch.int8),
        "w": torch.ones(E, K, N, dtype=torch.int8),
        "scale": torch.ones(E, N),
        "bias": torch.ones(E, N, dtype=torch.bfloat16),
        "pertoken_scale": torch.ones(M),
        "group_list": torch.tensor([2, 3]),
        "shared_input": torch.ones(3, N, dtype=torch.bfloat16),
        "logit": torch.ones(M),
        "row_index": torch.tensor([0, 1, 2, 3, 4, 0]),
    }


def _run(tensors, attrs):
    """The node alone in a graph, compiled and run by the engine."""
    model = ge_models.Model()
    for place, (name, tensor) in enumerate(tensors.items()):
        model.data(place, tensor, f"in_{name}")
    op = model.op(
        "GroupedMatmulFinalizeRouting", "fused", [(name, f"in_{name}:0") for name in tensors]
    )
    for name, value in {"output_bs": BS, **attrs}.items():
        kind = {bool: "b", int: "i", float: "f"}[type(value)]
        setattr(op.attr[name], kind, value)
    model.end("fused:0")
    made = module.TorchNpuGraphBase("hand")
    made.load(model.blob(), {}, [], [0], 1)
    made.compile()
    return made.run((list(tensors.values()), [], None))[0]


def test_a_node_that_keeps_the_rules_is_computed():
    tensors = _tensors()
    attrs = {"shared_input_offset": 2, "shared_input_weight": 0.5, "group_list_type": 1}
    named = {name: value for name, value in tensors.items() if name not in ("x", "w", "group_list")}
    expected = torch.ops.npu.npu_grouped_matmul_finalize_routing(
        *(tensors[name] for name in ("x", "w", "group_list")), **named, output_bs=BS, **attrs
    )
    assert torch.equal(_run(tensors, attrs), expected)


def test_what_older_and_newer_devices_both_leave_out_may_be_left_out():
    tensors = _tensors()
    del tensors["bias"], tensors["pertoken_scale"]
    tensors["row_index"] = tensors["row_index"].int()
    tensors["scale"] = tensors["scale"].bfloat16()
    assert _run(tensors, {}).shape == (BS, N)


def _drop(name):
    return f"{name} is given", {name: None}, {}


def _change(rule, **tensors):
    return rule, tensors, {}


def _with(rule, **attrs):
    return rule, {}, attrs


def _bf16(*shape):
    return torch.ones(*shape, dtype=torch.bfloat16)


def _int8(*shape):
    return torch.ones(*shape, dtype=torch.int8)


BROKEN = [
    *(_drop(name) for name in rules.REQUIRED),
    _with("group_list_type is 1", group_list_type=0),
    _with("transpose_x is False", transpose_x=True),
    _with("transpose_w is False", transpose_w=True),
    _with("dtype is 0", dtype=1),
    _change("no offset", offset=torch.ones(E, 1, N)),
    _with("shared_input_offset is not negative", shared_input_offset=-1),
    _with("output_bs is positive", output_bs=0),
    _change("rank of x", x=_int8(M, K, 1)),
    _change("rank of w", w=_int8(E, 1, 1, 4, N)),
    _change("rank of scale", scale=torch.ones(E, 1, N)),
    _change("rank of bias", bias=_bf16(N)),
    _change("rank of pertoken_scale", pertoken_scale=torch.ones(M, 1)),
    _change("rank of group_list", group_list=torch.ones(E, 1, dtype=torch.int64)),
    _change("rank of shared_input", shared_input=_bf16(3, 1, N)),
    _change("rank of logit", logit=torch.ones(M, 1)),
    _change("rank of row_index", row_index=torch.zeros(M, 1, dtype=torch.int64)),
    _change("dtype of x", x=torch.ones(M, K)),
    _change("dtype of w", w=torch.ones(E, K, N)),
    _change("dtype of scale", scale=torch.ones(E, N, dtype=torch.int64)),
    _change("dtype of bias", bias=torch.ones(E, N)),
    _change("dtype of pertoken_scale", pertoken_scale=_bf16(M)),
    _change("dtype of group_list", group_list=torch.ones(E, dtype=torch.int32)),
    _change("dtype of shared_input", shared_input=torch.ones(3, N)),
    _change("dtype of logit", logit=_bf16(M)),
    _change("dtype of row_index", row_index=_int8(M)),
    _change("x is not empty", x=_int8(0, K)),
    _change("w is not empty", w=_int8(0, K, N)),
    _change("scale is not empty", scale=torch.ones(0, N)),
    _change("bias is not empty", bias=_bf16(0, N)),
    _change("pertoken_scale is not empty", pertoken_scale=torch.ones(0)),
    _change("group_list is not empty", group_list=torch.ones(0, dtype=torch.int64)),
    _change("shared_input is not empty", shared_input=_bf16(0, N)),
    _change("logit is not empty", logit=torch.ones(0)),
    _change("row_index is not empty", row_index=torch.ones(0, dtype=torch.int64)),
    _change("w[1] is x[1]", w=_int8(E, K + 1, N)),
    _change("scale[0] is w[0]", scale=torch.ones(E + 1, N)),
    _change("scale[1] is w[2]", scale=torch.ones(E, N + 1)),
    _change("bias[0] is w[0]", bias=_bf16(E + 1, N)),
    _change("bias[1] is w[2]", bias=_bf16(E, N + 1)),
    _change("pertoken_scale[0] is x[0]", pertoken_scale=torch.ones(M + 1)),
    _change("group_list[0] is w[0]", group_list=torch.ones(E + 1, dtype=torch.int64)),
    _change("shared_input[1] is w[2]", shared_input=_bf16(3, N + 1)),
    _change("logit[0] is x[0]", logit=torch.ones(M + 1)),
    _change("row_index[0] is x[0]", row_index=torch.zeros(M + 1, dtype=torch.int64)),
    _with("output_bs is at most m", output_bs=M + 1),
    _with("shared_input fits", shared_input_offset=BS - 2),
]


@pytest.mark.parametrize(("rule", "tensors", "attrs"), BROKEN, ids=[one[0] for one in BROKEN])
def test_a_broken_rule_is_an_error_that_names_it_and_the_node(rule, tensors, attrs):
    given = {**_tensors(), **tensors}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(GraphError) as raised:
        _run(given, attrs)
    started = f"node 'fused' (GroupedMatmulFinalizeRouting) breaks the device's rule {rule!r}: "
    assert str(raised.value).startswith(started)
    assert len(str(raised.value)) > len(started) + 15


def test_each_rule_is_broken_once():
    names = [rule.name for rule in rules.NODE_RULES + rules.CALL_RULES]
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(one[0] for one in BROKEN)
