"""A process in which the CPU plays an NPU."""
