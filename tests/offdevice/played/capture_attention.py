"""Attention whose lengths the host gives anew for each replay, as vllm-ascend and upstream do."""

import pytest
import torch
import torch_npu

HEADS, WIDTH, KEYS = 2, 8, 6
library = torch.library.Library("npu", "IMPL")


def reference(query, key, value, *, actual_seq_lengths_kv=None, softmax_lse_flag=False, **_):
    """In the place of the operator's own kernel: attention over the first keys of each batch."""
    out = torch.empty_like(query)
    for batch, length in enumerate(actual_seq_lengths_kv):
        scores = query[batch] @ key[batch, :, :length].mT
        out[batch] = torch.softmax(scores, -1) @ value[batch, :, :length]
    batches, heads, rows, _ = query.shape
    lse = torch.zeros((batches, heads, rows, 1) if softmax_lse_flag else 1)
    return out, lse


library.impl("npu_fused_infer_attention_score", reference, "CPU")


def tensors():
    return [torch.randn(3, HEADS, rows, WIDTH, dtype=torch.bfloat16) for rows in (1, KEYS, KEYS)]


def arguments(lengths):
    return {
        "num_heads": HEADS,
        "input_layout": "BNSD",
        "actual_seq_lengths_kv": lengths,
    }


def test_upstreams_handler_updates_the_lengths():
    query, key, value = tensors()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        out, _ = torch_npu.npu_fused_infer_attention_score(
            query, key, value, **arguments([1, 1, 1])
        )
        result = out * 2
    for lengths in ([1, 2, 3], [6, 5, 4]):
        query.copy_(torch.randn_like(query))
        graph.replay()
        graph.update(cpu_update_input=[{"actual_seq_lengths_kv": lengths}])
        expected = reference(query, key, value, actual_seq_lengths_kv=lengths)[0] * 2
        assert torch.equal(result, expected)


def test_tasks_of_vllm_ascend():
    query, key, value = tensors()
    stream, graph = torch.npu.Stream(), torch.npu.NPUGraph()
    workspace = torch_npu._npu_fused_infer_attention_score_get_max_workspace(
        query, key, value, **arguments([KEYS] * 3)
    )
    with torch.npu.graph(graph):
        out, lse = torch.empty_like(query), torch.empty(1)
        current, event = torch.npu.current_stream(), torch.npu.ExternalEvent()
        event.wait(current)
        event.reset(current)
        torch.npu.graph_task_group_begin(current)
        torch_npu.npu_fused_infer_attention_score.out(
            query, key, value, **arguments([1, 1, 1]), workspace=workspace, out=[out, lse]
        )
        handle = torch.npu.graph_task_group_end(current)
        result = out + 1
    for lengths in ([1, 2, 3], [6, 5, 4]):
        graph.replay()
        with torch.npu.stream(stream):
            torch.npu.graph_task_update_begin(stream, handle)
            torch_npu.npu_fused_infer_attention_score.out(
                query, key, value, **arguments(lengths), workspace=workspace, out=[out, lse]
            )
            torch.npu.graph_task_update_end(stream)
            event.record(stream)
        expected = reference(query, key, value, actual_seq_lengths_kv=lengths)[0] + 1
        assert torch.equal(result, expected)


# As on a device: results are the tensors given as out=, where the schema has new ones.
@pytest.mark.filterwarnings(r"ignore:npu..npu_fused_infer_attention_score.out:UserWarning")
@pytest.mark.filterwarnings("ignore:Because acl graph fixes memory addresses:UserWarning")
@pytest.mark.parametrize("clone_input", [True, False])
def test_npugraph_ex_takes_lengths_for_arguments(clone_input):
    def function(query, key, value, lengths):
        out, _ = torch_npu.npu_fused_infer_attention_score(query, key, value, **arguments(lengths))
        return out * 2

    torch._dynamo.reset()
    compiled = torch.compile(
        function,
        backend="npugraph_ex",
        dynamic=True,
        fullgraph=True,
        options={"clone_input": clone_input},
    )
    query, key, value = tensors()
    for lengths in ([2, 3, 4], [6, 5, 4], [3, 2, 6], [2, 2, 2]):
        query.copy_(torch.randn_like(query))
        expected = function(query, key, value, lengths)
        assert torch.equal(compiled(query, key, value, lengths), expected)
