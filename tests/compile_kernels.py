"""Compile the kernels of maps with one dendrite for NVIDIA GPUs, without one: a line of JSON each.

A process of its own (`python -m tests.compile_kernels`): tests run where Triton interprets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from finsent.kernels import adapter_map_kernels as kernels

WIDTH = 2560
TOOL = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
DTYPES = {"bf16": kernels._HALF, "fp32": kernels._SINGLE}


def compiled(kernel: Any, capability: int, rank: int, dtype: str) -> dict[str, Any]:
    """Registers and spilled bytes of a thread, for two maps of Phi-2's width in one launch."""
    tile = DTYPES[dtype]
    pointers = (f"*{dtype}",) * 2
    constants: dict[str, Any] = {"STRIDE": 2 * rank, "RANK": rank}
    types: dict[str, Any]
    if kernel is kernels.sum_kernel:
        types = {"of_inputs": "*fp32", "of_maps": "*fp32", "g_inputs": pointers}
        types |= {"g_maps": f"*{dtype}", "rows": "i32", "pieces": "i32"}
        constants |= {"ACROSS": 40, "SIZE": WIDTH * (2 * rank + 1), "BLOCK": kernels.SUMMED}
    else:
        forward = kernel is kernels.add_kernel
        tuples = ("outputs" if forward else "g_outputs", "weights", "dendrites", "factors")
        types = {"inputs": pointers} | dict.fromkeys(tuples, pointers)
        if not forward:
            types |= {"of_inputs": "*fp32", "of_maps": "*fp32"}
        types |= {"rows": "i32"} | ({} if forward else {"each": "i32"})
        constants |= {"OUT_STRIDE": 3 * WIDTH, "WIDTH": WIDTH, "ACTIVATION": "tanh"}
        constants |= {"BM": tile.rows, "BN": tile.columns, "BR": kernels._padded(rank)}
    places = [
        (i, j) if isinstance(kind, tuple) else (i,)
        for i, kind in enumerate(types.values())
        for j in range(2 if isinstance(kind, tuple) else 1)
        if kind != "i32"
    ]
    source = ASTSource(
        fn=kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={place: [["tt.divisibility", 16]] for place in places},
    )
    options = {} if kernel is kernels.sum_kernel else {"num_warps": tile.warps}
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [TOOL, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()  # type: ignore[union-attr]
    return {"registers": int(registers), "spilled": int(stack), "shared": found.metadata.shared}


def main() -> int:
    """Print what was compiled; a failure of the compiler is that of the process."""
    if not TOOL.exists():
        return 3
    for name, capability, rank, dtype in (
        ("add_kernel", 90, 8, "bf16"),
        ("gradient_kernel", 90, 8, "bf16"),
        ("sum_kernel", 90, 8, "bf16"),
        ("gradient_kernel", 90, 64, "bf16"),
        ("gradient_kernel", 90, 64, "fp32"),
        ("gradient_kernel", 80, 8, "bf16"),
    ):
        found = compiled(getattr(kernels, name), capability, rank, dtype)
        about = {"kernel": name, "capability": capability, "rank": rank, "dtype": dtype}
        print(json.dumps(about | found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
