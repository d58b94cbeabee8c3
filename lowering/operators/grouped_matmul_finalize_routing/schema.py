"""What the operator is called and what it takes: the one copy of the schema.

Source: the interface document of ``torch_npu.npu_grouped_matmul_finalize_routing`` and the
schemas that the torch_npu wheels carry. Later releases add keyword arguments and change nothing
else, so one text serves: the newest generation, defined where torch_npu does not define it itself.
"""

from __future__ import annotations

NAMESPACE = "npu"
NAME = "npu_grouped_matmul_finalize_routing"
QUALNAME = f"{NAMESPACE}::{NAME}"
SCHEMA = (
    f"{NAME}(Tensor x, Tensor w, Tensor group_list, *, Tensor? scale=None, Tensor? bias=None, "
    "Tensor? offset=None, Tensor? pertoken_scale=None, Tensor? shared_input=None, "
    "Tensor? logit=None, Tensor? row_index=None, ScalarType? dtype=None, "
    "float? shared_input_weight=1.0, int? shared_input_offset=0, int? output_bs=0, "
    "int? group_list_type=1, int[]? tuning_config=None, int? x_dtype=None, int? w_dtype=None, "
    "int? scale_dtype=None, int? pertoken_scale_dtype=None) -> Tensor"
)

# Defaults of the scalars; None is accepted for each of them and means the same.
SHARED_INPUT_WEIGHT = 1.0
SHARED_INPUT_OFFSET = 0
OUTPUT_BS = 0
GROUP_LIST_TYPE = 1

# group_list_type
TOTALS = 0
COUNTS = 1

FORMAT_CAST_NAME = "npu_format_cast"
FORMAT_CAST_QUALNAME = f"{NAMESPACE}::{FORMAT_CAST_NAME}"
FORMAT_CAST_SCHEMA = (
    f"{FORMAT_CAST_NAME}(Tensor input, int acl_format, *, "
    "int? customize_dtype=None, int? input_dtype=None) -> Tensor"
)

# acl_format
ND = 2
FRACTAL_NZ = 29
