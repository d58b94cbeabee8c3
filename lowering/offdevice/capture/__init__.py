"""Capture and replay of an NPU's work, played by the CPU.

``memory`` has the pools that a capture allocates from, ``order`` knows which of two captured calls
comes first, ``recorder`` takes down what is called while a capture is under way, ``graph`` replays
it, ``streams`` has streams and events, and ``played`` puts them in the place of torch_npu's C++.
"""
