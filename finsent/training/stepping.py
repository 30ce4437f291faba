"""Optimizer steps without waiting for Python: on CUDA, one graph launch for each step.

A step of a small model is hundreds of kernels of a few microseconds; launching them one by one
costs several times what they compute. A captured step is replayed whole: forward, backward,
clipping and optimizer (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PAD_MULTIPLE = 8
"""On CUDA, batches are padded to a multiple of this length, so that few shapes need a graph."""

Step = Callable[[Tensor, int], None]
"""step(indices (B,) on the device, padded length): one whole optimizer step."""


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    indices: Tensor
    """The graph reads its batch from here."""


class StepRunner:
    """Calls a step, from a graph where that pays.

    The first step runs eagerly: libraries set themselves up in it, and the optimizer its state.
    After that every new shape is captured at once, in memory that all graphs share: running it
    eagerly before would hold its activations twice. What a step reads and writes must stay where it
    is until `reset`.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        *,
        captures: bool = True,
        pad_multiple: int = PAD_MULTIPLE,
    ) -> None:
        """captures: whether the step may be captured where graphs can be had; pad_multiple: what
        captured lengths are multiples of. A larger one makes fewer graphs, of which each costs as
        much as many steps of a small model, and computes more padding."""
        self._pad_multiple = pad_multiple
        self._step = step
        self._device = device
        self._captures = captures and device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget every graph: parameters or the optimizer are other objects from now on."""
        self._ran = False
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None

    def __call__(self, indices: Tensor, longest: int) -> None:
        """One step on the examples `indices` (B,), of which the longest has `longest` tokens."""
        if not self._captures:
            self._step(indices, longest)
            return
        padded = -(-longest // self._pad_multiple) * self._pad_multiple
        shape = (len(indices), padded)
        if shape in self._graphs:
            found = self._graphs[shape]
            found.indices.copy_(indices)
            found.graph.replay()
        elif self._ran:
            self._graphs[shape] = captured = self._capture(indices, padded)
            captured.graph.replay()
        else:
            self._ran = True
            # Not the default stream: what autograd sets up there cannot be captured later.
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                self._step(indices, padded)
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def _capture(self, indices: Tensor, padded: int) -> _Graph:
        static = indices.clone()
        graph = torch.cuda.CUDAGraph()
        # A collection during the capture could free CUDA objects, which would spoil it. What eager
        # work kept for reuse, a graph's own memory cannot reuse.
        gc.collect()
        torch.cuda.empty_cache()
        # Relaxed: a kernel that this shape is the first to need is loaded during the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="relaxed"):
            self._step(static, padded)
        return _Graph(graph, static)
