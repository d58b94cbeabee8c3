"""The graph engine that computes on the CPU what TorchAIR lowers."""
