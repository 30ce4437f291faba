"""The machine: files, devices, timing, worker processes."""
