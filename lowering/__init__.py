"""npu-lowering: npu_grouped_matmul_finalize_routing on any machine."""
