"""Stand-ins for the libraries of CANN that torch_npu is linked against."""
