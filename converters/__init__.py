"""The GE graph converter of the operator, for TorchAIR."""
