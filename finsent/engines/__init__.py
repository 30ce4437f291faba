"""Ways to run a forward pass: PyTorch, CUDA graphs, OpenVINO."""
