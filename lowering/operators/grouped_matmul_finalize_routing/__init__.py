"""npu_grouped_matmul_finalize_routing, a module a stage."""
