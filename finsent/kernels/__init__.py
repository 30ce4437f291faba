"""Triton kernels for GPUs, each beside the PyTorch code that says what it computes."""
