"""Machine code for processors, by numba where it is installed, and matrix products in it.

Where blocks are small, a stage takes a few microseconds; so does a call of torch, which holds the
interpreter's lock, too, so that threads wait for each other. With numba, an optional package
(S. K. Lam, A. Pitrou & S. Seibert 2015, doi:10.1145/2833157.2833162), a whole sweep is one call
that needs no lock. What it compiles is kept on disk, until this file changes: what is compiled
together belongs into one file.

Real and imaginary parts lie in planes of their own, so that a complex product takes three real ones
instead of four (3M, N. J. Higham 1992, doi:10.1137/0613043), and what is done to waves between two
products is a single loop. The products are those of the BLAS that torch brings, whose arrays have
columns where these have rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

try:
    import llvmlite.binding
    import numba
# beside a numpy or a "coverage" that it does not know, numba is there and cannot be imported
except (ImportError, AttributeError):
    numba = None
if numba is not None and numba.config.DISABLE_JIT:
    numba = None

_PLAIN, _TRANSPOSED = ord("N"), ord("T")


def _gemm(name: str):
    """Return a matrix product, for compiled code, of torch's library or what it loads, or None."""
    if numba is None:
        return None
    folder = Path(torch.__file__).parent / "lib"
    for file in (*folder.glob("libtorch_cpu.so"), *folder.glob("libtorch_cpu.dylib")):
        function = getattr(ctypes.CDLL(str(file)), name, None)
        if function is not None:
            symbol, pointer = f"dials_hybrid_{name}", numba.types.voidptr
            llvmlite.binding.add_symbol(symbol, ctypes.cast(function, ctypes.c_void_p).value)
            return numba.types.ExternalFunction(symbol, numba.types.void(*[pointer] * 13))
    return None


_SGEMM, _DGEMM = _gemm("sgemm_"), _gemm("dgemm_")


def can_compile(x: Tensor) -> bool:
    """Tell whether there is machine code for tensors like this one."""
    found = _SGEMM is not None and _DGEMM is not None
    return found and x.device.type == "cpu" and x.real.dtype in (torch.float32, torch.float64)


def _compiled(function: Callable) -> Callable:
    """Return the function in machine code, which rounds as it is written here."""
    if numba is None:
        return function
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(**options, cache=True)(function)
    except RuntimeError:  # no folder that can be written to
        return numba.njit(**options)(function)


@_compiled
def gemm(turn_a, turn_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """Call BLAS with one-element arrays for its numbers."""
    if c.itemsize == 4:
        _SGEMM(
            turn_a.ctypes, turn_b.ctypes, m.ctypes, n.ctypes, k.ctypes, alpha.ctypes, a.ctypes,
            lda.ctypes, b.ctypes, ldb.ctypes, beta.ctypes, c.ctypes, ldc.ctypes,
        )  # fmt: skip
    else:
        _DGEMM(
            turn_a.ctypes, turn_b.ctypes, m.ctypes, n.ctypes, k.ctypes, alpha.ctypes, a.ctypes,
            lda.ctypes, b.ctypes, ldb.ctypes, beta.ctypes, c.ctypes, ldc.ctypes,
        )  # fmt: skip


@_compiled
def space(like, count):
    """Return an empty array on a boundary of 64 bytes.

    What BLAS rounds in which way depends on where arrays begin: results would be other ones in
    every run.
    """
    out = np.empty(count + 64 // like.itemsize, like.dtype)
    begin = -out.ctypes.data % 64 // like.itemsize
    return out[begin : begin + count]


@_compiled
def combine(out, rows, matrix, kept):
    """Set `out` (K rows of M) to `kept` times itself and rows (K of N) @ matrix (N, M)."""
    sizes = np.array([rows.size // len(matrix), len(matrix), matrix.shape[1]], np.int32)
    k, n, m = sizes, sizes[1:], sizes[2:]
    plain, numbers = np.array([_PLAIN], np.uint8), np.array([1, kept], out.dtype)
    gemm(plain, plain, m, k, n, numbers, matrix, m, rows, n, numbers[1:], out, m)


@_compiled
def add_outer(out, left, right):
    """Add left^T @ right to `out` (N, N): of as many rows of N numbers as `left` has."""
    sizes = np.array([left.size // len(out), len(out)], np.int32)
    k, n = sizes, sizes[1:]
    turn, one = np.array([_PLAIN, _TRANSPOSED], np.uint8), np.array([1], out.dtype)
    gemm(turn, turn[1:], n, n, k, one, right, n, left, n, one, out, n)


@_compiled
def change_of(change, x, y, both, matrix):
    """Set `change` (3, ...) to the products of the waves' parts and of their sum."""
    combine(change[0], x, matrix[0], 0)
    combine(change[1], y, matrix[1], 0)
    combine(change[2], both, matrix[2], 0)


@_compiled
def carry(incident, phases, matrices, beams, weight, before, seen, profiles, stages, steps):
    """Sweep over all stages, see `compiled_stages.carry`."""
    _, f, _, t, n = phases.shape
    between, kept = steps // profiles.shape[2], before.shape[2] // len(stages)
    both, start = space(phases, t * n), space(phases, 2 * t * n).reshape(2, t, n)
    change = space(phases, 3 * t * n).reshape(3, t * n)
    for block in range(f):
        change[:], start[:] = 0, 0
        start[0, :, incident[block]] = 1
        last_x, last_y = start[0].ravel(), start[1].ravel()
        for step in range(steps):
            for phase, matrix, first, uses, use in stages:
                place = first * kept + step % kept * uses + use
                x, y = before[block, 0, place].ravel(), before[block, 1, place].ravel()
                cos, sin = phases[phase, block, 0].ravel(), phases[phase, block, 1].ravel()
                for i in range(t * n):
                    u = last_x[i] + (change[0, i] - change[1, i])
                    v = last_y[i] + (change[2, i] - change[0, i] - change[1, i])
                    x[i] = u * cos[i] - v * sin[i]
                    y[i] = u * sin[i] + v * cos[i]
                    both[i] = x[i] + y[i]
                change_of(change, x, y, both, matrices[matrix, block])
                last_x, last_y = x, y
            if (step + 1) % between == 0:
                depth = step // between
                psi = seen[block, depth % seen.shape[1]]
                for k in range(t):
                    for slot, beam in enumerate(beams[block]):
                        i = k * n + beam
                        u = last_x[i] + (change[0, i] - change[1, i])
                        v = last_y[i] + (change[2, i] - change[0, i] - change[1, i])
                        psi[k, slot, 0], psi[k, slot, 1] = u, v
                        share = weight[block, k, slot] * (u * u + v * v)
                        profiles[block, slot, depth] += share


@_compiled
def add_slopes(slopes, before, after, sums, stages, begin, end, group):
    """Add what the steps of a group give to the gradients by matrices (M, 3, N, N) of a block."""
    _, kept, t, n = before.shape
    steps = kept // len(stages)
    for _, matrix, first, uses, use in stages:
        if use == 0:
            here, there = first * steps + begin * uses, first * group
            numbers = (end - begin) * uses * t * n
            x, y = before[0, here:].ravel()[:numbers], before[1, here:].ravel()[:numbers]
            both, out = sums[:numbers], slopes[matrix]
            for i in range(numbers):
                both[i] = x[i] + y[i]
            add_outer(out[0], x, after[0, there:])
            add_outer(out[1], y, after[1, there:])
            add_outer(out[2], both, after[2, there:])


@_compiled
def adjoint(
    phases, before, seen, matrices, times, beams, weight, grad, slopes, flow,
    stages, steps, group,
):  # fmt: skip
    """Sweep over all stages, see `compiled_stages.adjoint`."""
    f, _, _, t, n = before.shape
    count, between = len(stages), steps // grad.shape[2]
    change = space(before, 3 * t * n).reshape(3, t * n)
    last = space(before, 2 * t * n).reshape(2, t * n)
    after = space(before, 3 * group * count * t * n).reshape(3, group * count, t * n)
    sums = space(before, group * stages[:, 3].max() * t * n)
    for block in range(f):
        # what was last multiplied, and its waves before the matrix; first nothing
        change[:], last[:] = 0, 0
        last_x, last_y, time = last[0], last[1], times[0]
        psi_x, psi_y = before[block, 0, 0].ravel(), before[block, 1, 0].ravel()
        turned = flow[block].ravel()
        turned[:], slopes[:, block] = 0, 0
        for end in range(steps, 0, -group):
            begin = max(0, end - group)
            for step in range(end - 1, begin - 1, -1):
                for stage in range(count - 1, -1, -1):
                    phase, matrix, first, uses, use = stages[stage]
                    place = first * group + (step - begin) * uses + use
                    x, y, both = after[0, place], after[1, place], after[2, place]
                    turn = phases[stages[(stage + 1) % count, 0], block]
                    cos, sin = turn[0].ravel(), turn[1].ravel()
                    for i in range(t * n):
                        u = last_x[i] + (change[0, i] - change[1, i])
                        v = last_y[i] + (change[2, i] - change[0, i] - change[1, i])
                        # Im(mu psi) is the same on both sides of the phase
                        turned[i] -= time * (u * psi_y[i] + v * psi_x[i])
                        x[i] = u * cos[i] - v * sin[i]
                        y[i] = u * sin[i] + v * cos[i]
                        both[i] = x[i] + y[i]
                    if stage == count - 1 and (step + 1) % between == 0:
                        depth = step // between
                        psi = seen[block, depth]
                        for k in range(t):
                            for slot, beam in enumerate(beams[block]):
                                i = k * n + beam
                                share = weight[block, k, slot] * grad[block, slot, depth]
                                x[i] += 2 * share * psi[k, slot, 0]
                                y[i] -= 2 * share * psi[k, slot, 1]
                                both[i] = x[i] + y[i]
                    change_of(change, x, y, both, matrices[matrix, block])
                    last_x, last_y, time = x, y, times[phase]
                    place = first * steps + step * uses + use
                    psi_x = before[block, 0, place].ravel()
                    psi_y = before[block, 1, place].ravel()
            # `after` is used again
            last[0], last[1] = last_x, last_y
            last_x, last_y = last[0], last[1]
            add_slopes(slopes[:, block], before[block], after, sums, stages, begin, end, group)
        for i in range(t * n):
            u = last_x[i] + (change[0, i] - change[1, i])
            v = last_y[i] + (change[2, i] - change[0, i] - change[1, i])
            turned[i] -= time * (u * psi_y[i] + v * psi_x[i])
        for matrix in range(len(slopes)):
            x, y = slopes[matrix, block, 0].ravel(), slopes[matrix, block, 1].ravel()
            both = slopes[matrix, block, 2].ravel()
            for i in range(n * n):
                u, v = x[i], y[i]
                x[i], y[i] = u - v, both[i] - u - v


@_compiled
def settle_parts(x, y, both, change):
    """Add products of a matrix with parts to the parts, and form their sum again."""
    for i in range(x.size):
        x[i] += change[0, i] - change[1, i]
        y[i] += change[2, i] - change[0, i] - change[1, i]
        both[i] = x[i] + y[i]


@_compiled
def largest(x):
    """Return the largest real and imaginary part of matrices (F, N, N), NaN if there is one."""
    real, imaginary = 0.0, 0.0
    for value in x.ravel():
        u, v = abs(value.real), abs(value.imag)
        if u > real or u != u:
            real = u
        if v > imaginary or v != v:
            imaginary = v
    return real, imaginary


@_compiled
def set_parts(parts, x, factor, noise):
    """Set `parts` (F, P, N, N) to those of `factor` times x^T, without those below `noise`.

    They are the real one alone, or the real and imaginary one and their sum.
    """
    for block in range(len(x)):
        for i, row in enumerate(x[block]):
            for j, value in enumerate(row):
                # NaN stays
                u = 0 if abs(value.real) <= noise else factor * value.real
                parts[block, 0, j, i] = u
                if parts.shape[1] > 1:
                    v = 0 if abs(value.imag) <= noise else factor * value.imag
                    parts[block, 1, j, i], parts[block, 2, j, i] = v, u + v


@_compiled
def add_up(out, parts, real, imaginary, first, last, begin, end):
    """Set rows of `out` (M, F, P, N, N) to sums of parts (K, F, Q, N, N) by a table (M, K).

    Either has real and imaginary parts, and may have their sum; one of them may be real alone.
    """
    for block in range(first, last):
        for row in range(begin, end):
            for m in range(len(real)):
                x, y = out[m, block, 0, row], out[m, block, min(1, out.shape[2] - 1), row]
                x[:], y[:] = 0, 0
                for k in range(len(parts)):
                    u, v = parts[k, block, 0, row], parts[k, block, min(1, parts.shape[2] - 1), row]
                    c, s = real[m, k], imaginary[m, k]
                    if parts.shape[2] == 1:
                        for i in range(x.size):
                            x[i] += c * u[i]
                            y[i] += s * u[i]
                    elif out.shape[2] == 1:
                        for i in range(x.size):
                            x[i] += c * u[i] - s * v[i]
                    else:
                        for i in range(x.size):
                            x[i] += c * u[i] - s * v[i]
                            y[i] += c * v[i] + s * u[i]
                if out.shape[2] == 3:
                    both = out[m, block, 2, row]
                    for i in range(x.size):
                        both[i] = x[i] + y[i]


@_compiled
def multiply(powers, known, first, last, begin, end):
    """Fill rows of the powers (K, F, P, N, N) of some blocks' matrices, of which some are known."""
    for block in range(first, last):
        for k in range(known, len(powers)):
            powers[k, block, :, begin:end] = 0
            add_product(powers[k, block], powers[k - 1, block], powers[0, block], begin, end)


@_compiled
def add_right(terms, matrices, first, last, begin, end):
    """Replace rows of terms_k (K, F, Q, N, N) by those of sum_(j >= k) terms_j W^(j - k)."""
    for block in range(first, last):
        for k in range(len(terms) - 2, -1, -1):
            add_product(terms[k, block], terms[k + 1, block], matrices[block], begin, end)


@_compiled
def add_product(out, left, right, begin, end):
    """Add rows of products of parts, real alone or all three on the right, to those of `out`."""
    if len(right) == 1:
        for part in range(len(out)):
            combine(out[part, begin:end], left[part, begin:end], right[0], 1)
    else:
        n = right.shape[2]
        change = space(right, 3 * (end - begin) * n).reshape(3, (end - begin) * n)
        x, y, both = left[0, begin:end], left[1, begin:end], left[2, begin:end]
        change_of(change, x, y, both, right)
        x, y, both = out[0, begin:end], out[1, begin:end], out[2, begin:end]
        settle_parts(x.ravel(), y.ravel(), both.ravel(), change)


@_compiled
def add_left(terms, matrices, first, last, begin, end):
    """Replace columns of terms_k (K, F, Q, N, N) by those of sum_(j >= k) W^(j - k) terms_j."""
    n, few = terms.shape[4], end - begin
    # the three products lie side by side
    change = space(terms, 3 * few * n).reshape(n, 3, few)
    for block in range(first, last):
        w = matrices[block]
        for k in range(len(terms) - 2, -1, -1):
            columns, out = terms[k + 1, block], terms[k, block]
            if len(w) == 1:
                for part in range(len(out)):
                    combine_columns(out[part, 0, begin:], w[0], columns[part, 0, begin:], few, n, 1)
            else:
                for part in range(3):
                    to = change[0, part]
                    combine_columns(to, w[part], columns[part, 0, begin:], few, 3 * few, 0)
                for i in range(n):
                    x, y, both = out[0, i, begin:end], out[1, i, begin:end], out[2, i, begin:end]
                    settle_parts(x, y, both, change[i])


@_compiled
def combine_columns(out, matrix, columns, few, apart, kept):
    """Set columns that begin at `out`, in rows so far apart, to `kept` times themselves and more.

    That is `matrix` (N, N) times columns of another matrix (N, N), from which on `columns` is.
    """
    sizes = np.array([few, len(matrix), apart], np.int32)
    m, n, ld = sizes, sizes[1:], sizes[2:]
    plain, numbers = np.array([_PLAIN], np.uint8), np.array([1, kept], matrix.dtype)
    gemm(plain, plain, m, n, n, numbers, columns, n, matrix, n, numbers[1:], out, ld)


@_compiled
def settle(x, y, by_x, by_y, by_both):
    """Add products of a matrix with the parts of waves, and their sum, to the waves."""
    for i in range(x.size):
        x[i] += by_x[i] - by_y[i]
        y[i] += by_both[i] - by_x[i] - by_y[i]


@_compiled
def spin(x, y, over, under, turn, time):
    """Add i turn time psi to a derivative, by the parts of psi, `over` and `under`."""
    for i in range(x.size):
        x[i] -= time * turn[i] * under[i]
        y[i] += time * turn[i] * over[i]


@_compiled
def rotate(x, y, both, cos, sin):
    """Multiply waves by a phase, and form the sum of their parts."""
    for i in range(x.size):
        u, v = x[i], y[i]
        x[i] = u * cos[i] - v * sin[i]
        y[i] = u * sin[i] + v * cos[i]
        both[i] = x[i] + y[i]


@_compiled
def forward(
    incident, phases, times, matrices, changes, turns, beams, weight, found, stages, steps
):  # fmt: skip
    """Sweep over all stages, see `compiled_stages.forward`."""
    f, q, t, n = turns.shape
    p, rows, between = changes.shape[2], found.shape[1], steps // found.shape[3]
    parts = space(phases, 3 * rows * t * n).reshape(3, rows, t * n)
    change = space(phases, 3 * rows * t * n).reshape(3, rows, t * n)
    for block in range(f):
        parts[:] = 0
        parts[0, 0].reshape(t, n)[:, incident[block]] = 1
        x, y, both = parts[0], parts[1], parts[2]
        for step in range(steps):
            for stage in range(len(stages)):
                phase, matrix = stages[stage, 0], stages[stage, 1]
                cos, sin = phases[phase, block, 0].ravel(), phases[phase, block, 1].ravel()
                for r in range(q):
                    turn, own = turns[block, r].ravel(), 1 + p + r
                    spin(x[own], y[own], x[0], y[0], turn, times[phase])
                for r in range(rows):
                    rotate(x[r], y[r], both[r], cos, sin)
                change_of(change, x, y, both, matrices[matrix, block])
                for r in range(p):
                    for part in range(3):
                        factor = changes[matrix, block, r, part]
                        combine(change[part, 1 + r], parts[part, 0], factor, 1)
                for r in range(rows):
                    settle(x[r], y[r], change[0, r], change[1, r], change[2, r])
            if (step + 1) % between == 0:
                depth = step // between
                for k in range(t):
                    for slot, beam in enumerate(beams[block]):
                        i, share = k * n + beam, weight[block, k, slot]
                        for r in range(rows):
                            product = x[0, i] * x[r, i] + y[0, i] * y[r, i]
                            found[block, r, slot, depth] += share * product
