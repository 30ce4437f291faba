"""Forward passes: PyTorch, CUDA graphs, OpenVINO, and the rule that chooses among them."""

import sys

# OpenVINO reports every import and every conversion to Google Analytics, from a process that it
# forks, and is silent only where this package is missing. Nothing here is to leave the machine.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
