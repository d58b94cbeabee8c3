"""TorchAIR on a machine without an NPU."""
