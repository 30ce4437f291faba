"""Triton kernels for a Phi block on the few rows of one sentence; needs triton, so import it late.

With few rows a product takes as long as reading its weights. So these read them with the weights as
the larger operand, unpack 4-bit ones in registers, and leave no kernel of their own to activations,
rotations, adapters, sums or norms. `finsent.engines.few_rows` puts them together.

Weights are (N, K), rows of activations (M, K). For 4-bit weights the columns of activations lie in
the order of `place`, because a packed byte holds an even column and the odd one after it.
"""

# Kernels are traced, not run: their arguments have no types of their own.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from finsent.kernels.adapter_map_kernels import activated

BLOCK = tl.constexpr(64)
"""4-bit weights that share a scale."""


def _unpacking(code: list[int]) -> str:
    """PTX that turns 4 bytes into 8 bf16 values. code: the bits of the 16 values as bf16.

    A byte permutation is a table of 8 bytes; two of them, chosen by the code's highest bit, are the
    table of 16. The bytes of a value are looked up apart and then laid side by side.
    """

    def word(values: list[int]) -> str:
        return f"0x{sum(value << (8 * i) for i, value in enumerate(values)):08x}"

    low = [word([c & 255 for c in code[i : i + 4]]) for i in range(0, 16, 4)]
    high = [word([c >> 8 for c in code[i : i + 4]]) for i in range(0, 16, 4)]
    half = """
    and.b32 sel, {source}, 0x7777;
    prmt.b32 mask, left, $4, {mask};
    {tables}
    prmt.b32 {even}, bytes0, bytes1, 0x7351;
    prmt.b32 {odd}, bytes0, bytes1, 0x6240;
    """
    table = """
    prmt.b32 a, {0}, {1}, sel;
    prmt.b32 b, {2}, {3}, sel;
    lop3.b32 {out}, a, b, mask, 0xD8;
    """
    constants = "".join(f"mov.b32 t{i}, {value};\n" for i, value in enumerate([*low, *high]))
    tables = "".join(
        table.format(*(f"t{4 * i + j}" for j in range(4)), out=f"bytes{i}") for i in range(2)
    )
    halves = half.format(source="$4", mask="0xD9C8", tables=tables, even="$0", odd="$2")
    halves += "shr.b32 right, $4, 16;\n"
    halves += half.format(source="right", mask="0xFBEA", tables=tables, even="$1", odd="$3")
    registers = ", ".join(["sel", "mask", "left", "right", "a", "b", "bytes0", "bytes1"])
    named = ", ".join(f"t{i}" for i in range(8))
    return f"{{\n.reg .b32 {registers}, {named};\n{constants}shl.b32 left, $4, 4;\n{halves}}}"


NF4_BF16 = [
    0xBF80, 0xBF32, 0xBF06, 0xBECA, 0xBE92, 0xBE3D, 0xBDBA, 0x0000,
    0x3DA3, 0x3E25, 0x3E7C, 0x3EAD, 0x3EE2, 0x3F10, 0x3F39, 0x3F80,
]  # fmt: skip
"""The bits of bitsandbytes' NF4 values, rounded to bf16."""
UNPACK_PTX = tl.constexpr(_unpacking(NF4_BF16))


@triton.jit
def place(column, PACKED: tl.constexpr):
    """Where a column of activations lies: for 4-bit weights, the even ones of a block first."""
    if PACKED:
        column = column // BLOCK * BLOCK + column % 2 * (BLOCK // 2) + column % BLOCK // 2
    return column


@triton.jit
def _dense(x, w, M, N, K: tl.constexpr, tile, start, STEPS: tl.constexpr,
           BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """BN weight rows times BM activation rows (BN, BM), over STEPS * BK columns from `start`."""
    # Beyond the edge the last row again: its results are never stored.
    n = tl.minimum(tile * BN + tl.arange(0, BN), N - 1)
    m = tl.minimum(tl.arange(0, BM), M - 1)
    k = start + tl.arange(0, BK)
    weights = w + n[:, None] * K + k[None, :]
    rows = x + m[None, :] * K + k[:, None]
    total = tl.zeros((BN, BM), tl.float32)
    for _ in range(STEPS):
        total = tl.dot(tl.load(weights), tl.load(rows), total, input_precision="ieee")
        weights += BK
        rows += BK
    return total


@triton.jit
def _packed(x, w, scales, code, M, N, K: tl.constexpr, tile, start, STEPS: tl.constexpr,
            BM: tl.constexpr, BN: tl.constexpr, PTX: tl.constexpr):  # fmt: skip
    """As `_dense` for STEPS blocks of 4-bit weights: (N, K / 2) bytes, (N, K / 64) scales."""
    n = tl.minimum(tile * BN + tl.arange(0, BN), N - 1)
    m = tl.minimum(tl.arange(0, BM), M - 1)
    k = tl.arange(0, BLOCK // 2)
    weights = w + n[:, None] * (K // 2) + (start // 2 + k)[None, :]
    even = x + m[None, :] * K + (start + k)[:, None]
    factors = scales + n * (K // BLOCK) + start // BLOCK
    total = tl.zeros((BN, BM), tl.float32)
    for _ in range(STEPS):
        bytes_ = tl.load(weights)
        if PTX:
            first, second = tl.inline_asm_elementwise(
                UNPACK_PTX,
                "=r,=r,=r,=r,r",
                [bytes_],
                dtype=(tl.bfloat16, tl.bfloat16),
                is_pure=True,
                pack=4,
            )
        else:
            first = tl.load(code + (bytes_ >> 4).to(tl.int32))
            second = tl.load(code + (bytes_ & 15).to(tl.int32))
        part = tl.dot(first, tl.load(even), input_precision="ieee")
        part = tl.dot(second, tl.load(even + BLOCK // 2), part, input_precision="ieee")
        total += part * tl.load(factors)[:, None]
        weights += BLOCK // 2
        even += BLOCK
        factors += 1
    return total


@triton.jit
def into_kernel(
    x, w, scales, code, bias, down, qkv, inner, z, M,
    N: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr, ATTENDED: tl.constexpr,
    INNER: tl.constexpr, RANKS: tl.constexpr, PACKED: tl.constexpr, PTX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A block's first product. x (M, K). Columns below SPLIT go to qkv (M, SPLIT), the others
    through GELU to inner (M, INNER) from column ATTENDED on; the adapters' first maps, down
    (RANKS, K), to z (M, RANKS). One program for every BN columns, and one for the adapters."""
    tile = tl.program_id(0)
    m = tl.arange(0, BM)[None, :]
    if RANKS > 0 and tile == tl.num_programs(0) - 1:
        total = _dense(x, down, M, RANKS, K, 0, 0, K // BK, BM, BN, BK)
        n = tl.arange(0, BN)[:, None]
        tl.store(z + m * RANKS + n, total.to(z.dtype.element_ty), mask=(m < M) & (n < RANKS))
    else:
        if PACKED:
            total = _packed(x, w, scales, code, M, N, K, tile, 0, K // BLOCK, BM, BN, PTX)
        else:
            total = _dense(x, w, M, N, K, tile, 0, K // BK, BM, BN, BK)
        n = tile * BN + tl.arange(0, BN)
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        n = n[:, None]
        kept = (m < M) & (n < N)
        tl.store(qkv + m * SPLIT + n, total.to(qkv.dtype.element_ty), mask=kept & (n < SPLIT))
        u = 0.7978845608028654 * (total + 0.044715 * total * total * total)
        active = total * tl.sigmoid(2 * u)  # the same as (1 + tanh(u)) / 2
        to = inner + m * INNER + place(ATTENDED + n - SPLIT, PACKED)
        tl.store(to, active.to(inner.dtype.element_ty), mask=kept & (n >= SPLIT))


@triton.jit
def out_kernel(
    x, w, scales, code, partial, M,
    N: tl.constexpr, K: tl.constexpr, STEPS: tl.constexpr, PACKED: tl.constexpr,
    PTX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A block's second product, in pieces along K to occupy the whole device. x (M, K) to partial
    (pieces, M, N) fp32, whose sum is the product. A piece is STEPS * BK columns."""
    tile, piece = tl.program_id(0), tl.program_id(1)
    start = piece * STEPS * BK
    if PACKED:
        steps: tl.constexpr = STEPS * BK // BLOCK
        total = _packed(x, w, scales, code, M, N, K, tile, start, steps, BM, BN, PTX)
    else:
        total = _dense(x, w, M, N, K, tile, start, STEPS, BM, BN, BK)
    m = tl.arange(0, BM)[None, :]
    n = (tile * BN + tl.arange(0, BN))[:, None]
    tl.store(partial + piece * M * N + m * N + n, total, mask=(m < M) & (n < N))


@triton.jit
def norm_kernel(
    x, partial, bias, weight, shift, normed, M, eps,
    N: tl.constexpr, PIECES: tl.constexpr, PACKED: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x (M, N) plus the second product of the block before and its bias, in place; its LayerNorm to
    normed (M, N). One program a row."""
    row = tl.program_id(0)
    n = tl.arange(0, BN)
    real = n < N
    value = tl.load(x + row * N + n, mask=real, other=0.0).to(tl.float32)
    if PIECES > 0:
        value += tl.load(bias + n, mask=real, other=0.0).to(tl.float32)
        for piece in tl.static_range(PIECES):
            value += tl.load(partial + (piece * M + row) * N + n, mask=real, other=0.0)
        rounded = value.to(x.dtype.element_ty)
        tl.store(x + row * N + n, rounded, mask=real)
        value = rounded.to(tl.float32)
    value -= tl.sum(value, 0) / N
    value = tl.where(real, value, 0.0)
    value *= tl.rsqrt(tl.sum(value * value, 0) / N + eps)
    value *= tl.load(weight + n, mask=real, other=0.0).to(tl.float32)
    value += tl.load(shift + n, mask=real, other=0.0).to(tl.float32)
    to = normed + row * N + place(n, PACKED)
    tl.store(to, value.to(normed.dtype.element_ty), mask=real)


@triton.jit
def _read(
    joined, up, mix, rows, real, columns, known,
    AT: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, RANK: tl.constexpr,
    BR: tl.constexpr, DENDRITES: tl.constexpr,
):  # fmt: skip
    """Some columns of queries, keys or values, (BL, columns), and what `_adapted` adds to them."""
    inside = real[:, None] & known[None, :]
    y = tl.load(joined + rows[:, None] * SPLIT + AT + columns[None, :], mask=inside)
    base, extra, factor = y, y, y
    if RANK > 0:
        weights = up + tl.arange(0, BR)[:, None] * WIDTH + columns[None, :]
        base = tl.load(weights, mask=known[None, :])
        if DENDRITES > 0:
            extra = tl.load(weights + BR * WIDTH, mask=known[None, :])
            factor = tl.load(mix + columns, mask=known, other=0.0)
    return y, base, extra, factor, inside, known


@triton.jit
def _adapted(
    read, low, RANK: tl.constexpr, DENDRITES: tl.constexpr, ACTIVATION: tl.constexpr
):  # fmt: skip
    """What `_read` found with the adapter's second map of low (BL, BR) added."""
    y, base, extra, factor, inside, known = read
    y = tl.where(inside, y, 0.0)
    if RANK > 0:
        base = tl.where(known[None, :], base, 0.0)
        total = tl.dot(low, base, y.to(tl.float32), input_precision="ieee")
        if DENDRITES > 0:
            extra = tl.where(known[None, :], extra, 0.0)
            drive = tl.dot(low, extra, input_precision="ieee")
            total += factor.to(tl.float32)[None, :] * activated(drive, ACTIVATION)
        y = total.to(y.dtype)
    return y


@triton.jit
def _turned(first, second, c1, s1, c2, s2):
    """Both halves of the columns that turn, by their angles' cosines and sines."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * c1 - b * s1).to(first.dtype), (b * c2 + a * s2).to(first.dtype)


@triton.jit
def attend_kernel(
    joined, z, up_q, up_k, up_v, mix_q, mix_k, mix_v, cos, sin, inner, L, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, TURNING: tl.constexpr,
    SPLIT: tl.constexpr, INNER: tl.constexpr, RANKS: tl.constexpr,
    RANK_Q: tl.constexpr, RANK_K: tl.constexpr, RANK_V: tl.constexpr, BR: tl.constexpr,
    DENDRITES: tl.constexpr, ACTIVATION: tl.constexpr, PACKED: tl.constexpr,
    BL: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Causal attention of one head of one text. joined (B * L, SPLIT): queries, keys, values; the
    result to inner (B * L, INNER). up_* (1 + DENDRITES, BR, width): an adapter's second map and its
    dendrites', with a row for every column of z (B * L, RANKS); mix_* (width,): what the dendrite
    adds. RANK_* 0: no adapter there. BT, BS: powers of two for half of the columns that turn and
    for those that stay.

    A program is short, and waits for memory: so everything is read before anything is computed,
    and each column once. Masks are applied after the barrier, not in the loads: else the compiler
    puts every load's way through shared memory, which waits for it, before the next load."""
    text, head = tl.program_id(0), tl.program_id(1)
    mine, its = head * SIZE, head // (HEADS // KV_HEADS) * SIZE
    at = tl.arange(0, BL)
    real = at < L
    rows = text * L + at
    half: tl.constexpr = TURNING // 2
    t, s, d = tl.arange(0, BT), TURNING + tl.arange(0, BS), tl.arange(0, BD)
    in_t, in_s, in_d = t < half, s < SIZE, d < SIZE
    q_at: tl.constexpr = HEADS * SIZE
    kv: tl.constexpr = KV_HEADS * SIZE
    low = rows[:, None]
    if RANKS > 0:
        r = tl.arange(0, BR)
        low = tl.load(
            z + rows[:, None] * RANKS + r[None, :],
            mask=real[:, None] & (r < RANKS)[None, :],
        )
    q1 = _read(joined, up_q, mix_q, rows, real, mine + t, in_t, 0, q_at, SPLIT, RANK_Q, BR,
               DENDRITES)  # fmt: skip
    q2 = _read(joined, up_q, mix_q, rows, real, mine + half + t, in_t, 0, q_at, SPLIT, RANK_Q, BR,
               DENDRITES)  # fmt: skip
    k1 = _read(joined, up_k, mix_k, rows, real, its + t, in_t, q_at, kv, SPLIT, RANK_K, BR,
               DENDRITES)  # fmt: skip
    k2 = _read(joined, up_k, mix_k, rows, real, its + half + t, in_t, q_at, kv, SPLIT, RANK_K, BR,
               DENDRITES)  # fmt: skip
    angles = at[:, None] * TURNING + t[None, :]
    turning = real[:, None] & in_t[None, :]
    c1 = tl.load(cos + angles, mask=turning)
    s1 = tl.load(sin + angles, mask=turning)
    c2 = tl.load(cos + half + angles, mask=turning)
    s2 = tl.load(sin + half + angles, mask=turning)
    if SIZE > TURNING:
        q3 = _read(joined, up_q, mix_q, rows, real, mine + s, in_s, 0, q_at, SPLIT, RANK_Q, BR,
                   DENDRITES)  # fmt: skip
        k3 = _read(joined, up_k, mix_k, rows, real, its + s, in_s, q_at, kv, SPLIT, RANK_K, BR,
                   DENDRITES)  # fmt: skip
    v = _read(joined, up_v, mix_v, rows, real, its + d, in_d, q_at + kv, kv, SPLIT, RANK_V, BR,
              DENDRITES)  # fmt: skip
    tl.debug_barrier()
    if RANKS > 0:
        low = tl.where(real[:, None] & (r < RANKS)[None, :], low, 0.0)
    c1, s1 = tl.where(turning, c1, 0.0).to(tl.float32), tl.where(turning, s1, 0.0).to(tl.float32)
    c2, s2 = tl.where(turning, c2, 0.0).to(tl.float32), tl.where(turning, s2, 0.0).to(tl.float32)
    qa, qb = _turned(_adapted(q1, low, RANK_Q, DENDRITES, ACTIVATION),
                     _adapted(q2, low, RANK_Q, DENDRITES, ACTIVATION), c1, s1, c2, s2)  # fmt: skip
    ka, kb = _turned(_adapted(k1, low, RANK_K, DENDRITES, ACTIVATION),
                     _adapted(k2, low, RANK_K, DENDRITES, ACTIVATION), c1, s1, c2, s2)  # fmt: skip
    scores = tl.dot(qa, tl.trans(ka), input_precision="ieee")
    scores = tl.dot(qb, tl.trans(kb), scores, input_precision="ieee")
    if SIZE > TURNING:
        qc = _adapted(q3, low, RANK_Q, DENDRITES, ACTIVATION)
        kc = _adapted(k3, low, RANK_K, DENDRITES, ACTIVATION)
        scores = tl.dot(qc, tl.trans(kc), scores, input_precision="ieee")
    seen = (at[None, :] <= at[:, None]) & real[None, :]
    scores = tl.where(seen, scores * scale, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights /= tl.sum(weights, 1)[:, None]
    values = _adapted(v, low, RANK_V, DENDRITES, ACTIVATION)
    attended = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    to = inner + rows[:, None] * INNER + place(mine + d, PACKED)[None, :]
    tl.store(to, attended.to(inner.dtype.element_ty), mask=real[:, None] & in_d[None, :])
