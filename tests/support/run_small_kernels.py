"""Run small kernels by the interpreter of PTX, and check their results and errors.

``python tests/support/run_small_kernels.py`` raises if one is wrong; see test_interpreter.py.
"""

import functools
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from llvmlite import ir
from numba import types
from numba.cuda import dispatcher

from tests.support import ptx, threads

dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))

import numba_cuda  # noqa: E402, F401
from numba import cuda  # noqa: E402
from numba.cuda.extending import intrinsic  # noqa: E402

FLOATS, INTS = types.CPointer(types.float64), types.CPointer(types.int64)
FULL = 0xFFFFFFFF


def run(function, kinds, *arguments, n_threads=32, blocks=1, shared_bytes=0, **options):
    """Run a kernel on NumPy arrays and numbers, with checks of races."""
    kernel = translated(function, kinds)
    memory, passed = threads.Memory(), []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            memory.add(argument)
            argument = argument.ctypes.data
        passed.append(argument)
    options = {"observer": threads.Races()} | options
    grid, block = (blocks, 1, 1), (n_threads, 1, 1)
    threads.launch(kernel, grid, block, passed, memory, shared_bytes, **options)


@functools.cache
def translated(function, kinds):
    return ptx.Kernel(cuda.compile_ptx(function, kinds, cc=(9, 0))[0])


def fails_with(text, *args, **keywords):
    with pytest.raises(threads.KernelError, match=re.escape(text)):
        run(*args, **keywords)


def aligned(n, dtype):
    """Return zeros at a multiple of 16 bytes, with other memory around."""
    memory = np.zeros(n + 32, dtype)
    start = -memory.ctypes.data % 16 // memory.itemsize
    return memory[start : start + n]


@intrinsic
def load_two(typingctx, memory, index):
    """Return the sum of two float64, which are loaded at once."""

    def codegen(context, builder, sig, args):
        place = builder.gep(args[0], [args[1]])
        kind = ir.VectorType(ir.DoubleType(), 2).as_pointer()
        vector = builder.load(builder.bitcast(place, kind), align=16)
        lanes = [builder.extract_element(vector, ir.IntType(32)(i)) for i in range(2)]
        return builder.fadd(*lanes)

    return types.float64(memory, types.int64), codegen


def shuffles(out):
    i = cuda.threadIdx.x
    out[i] = cuda.shfl_xor_sync(FULL, i, 5)
    out[32 + i] = cuda.shfl_up_sync(FULL, i, 3)


@functools.cache
def reverse(with_barrier):
    def kernel(x):
        shared, i = cuda.shared.array(0, types.float64), cuda.threadIdx.x
        shared[i] = x[i]
        if with_barrier:
            cuda.syncthreads()
        x[i] = shared[cuda.blockDim.x - 1 - i]

    return kernel


@functools.cache
def reverse_by_warp(barrier):
    def kernel(x):
        shared, i = cuda.shared.array(0, types.float64), cuda.threadIdx.x
        shared[i] = x[i]
        if barrier == "warp":
            cuda.syncwarp()
        else:
            x[i] = cuda.shfl_xor_sync(FULL, x[i], 0)
        x[i] = shared[31 - i]

    return kernel


def load_pairs(x, start):
    x[0] = load_two(x, start)


def write_row(x, n):
    i = cuda.threadIdx.x
    if i < n:
        x[i] = i


def same_number(x, by_block):
    if cuda.threadIdx.x == 0:
        x[0] = by_block * cuda.blockIdx.x


def read_and_write(x):
    if cuda.threadIdx.x == 0:
        x[1] = x[0]
    else:
        x[0] = 1.0


def leave_before_barrier(x):
    if cuda.threadIdx.x < 32:
        cuda.syncthreads()
    x[cuda.threadIdx.x] = 1.0


def smallest(x):
    cuda.atomic.min(x, 0, cuda.threadIdx.x + 32 * cuda.blockIdx.x - 5)


def numbers(x, i, j, out, whole):
    a, b = x[0], x[1]
    out[0], out[1], out[2] = a + b, a * b, a / b
    out[3], out[4], out[5] = min(a, b), max(a, b), math.copysign(a, b)
    out[6], out[7], out[8] = math.exp(a), math.log(abs(b)), abs(a) ** b
    out[9], out[10], out[11] = np.float64(np.float32(a)), -a - b, a * b + a
    out[12], out[13], out[14] = a < b, a == b, a != b
    whole[0], whole[1], whole[2] = i // j, -i * j, i >> 2
    whole[3], whole[4], whole[5] = min(i, j), i << 3, i > j


def strided_reads(x, step):
    shared, i = cuda.shared.array(0, types.float64), cuda.threadIdx.x
    x[step * i] = shared[step * i]


def check_results():
    out = np.zeros(64, np.int64)
    run(shuffles, (INTS,), out)
    i = np.arange(32)
    np.testing.assert_array_equal(out, np.concatenate([i ^ 5, np.where(i < 3, i, i - 3)]))
    for seed in range(3):
        x = np.arange(96.0)
        run(reverse(True), (FLOATS,), x, n_threads=96, shared_bytes=96 * 8, seed=seed)
        np.testing.assert_array_equal(x, np.arange(96.0)[::-1])
        x = np.arange(32.0)
        run(reverse_by_warp("warp"), (FLOATS,), x, shared_bytes=32 * 8, seed=seed)
        np.testing.assert_array_equal(x, np.arange(32.0)[::-1])
    x = aligned(4, float)
    x[:] = 1, 2, 3, 4
    run(load_pairs, (FLOATS, types.int64), x, 2, n_threads=1)
    assert x[0] == 7
    x = np.zeros(1, np.int64)
    run(smallest, (types.int64[::1],), 0, 0, 1, 8, x, 1, 8, blocks=2)
    assert x[0] == -5
    run(same_number, (FLOATS, types.float64), np.zeros(1), 0.0, blocks=2)


def check_errors():
    x = np.arange(96.0)
    missing = reverse(False)
    fails_with("race with", missing, (FLOATS,), x, n_threads=96, shared_bytes=96 * 8)
    wrong = set()
    for seed in range(3):
        x = np.arange(96.0)
        options = {"n_threads": 96, "shared_bytes": 96 * 8, "seed": seed, "observer": None}
        run(missing, (FLOATS,), x, **options)
        wrong.add(tuple(x))
    assert len(wrong) == 3  # the order of the threads shows
    x = np.arange(32.0)
    fails_with("race with", reverse_by_warp("shuffle"), (FLOATS,), x, shared_bytes=32 * 8)
    for seed in range(4):  # either thread is the first one
        fails_with("race with", read_and_write, (FLOATS,), np.zeros(2), n_threads=2, seed=seed)
    fails_with("race with", same_number, (FLOATS, types.float64), np.zeros(1), 1.0, blocks=2)
    x = aligned(4, float)
    fails_with("multiple of 16", load_pairs, (FLOATS, types.int64), x, 1, n_threads=1)
    fails_with("out of bounds", load_pairs, (FLOATS, types.int64), x, 4, n_threads=1)
    x = np.zeros(20)
    run(write_row, (FLOATS, types.int64), x, 20)
    fails_with("(20, 0, 0)", write_row, (FLOATS, types.int64), x, 21)
    fails_with("out of bounds", reverse(True), (FLOATS,), np.zeros(32), shared_bytes=31 * 8)
    fails_with("never meets", leave_before_barrier, (FLOATS,), np.zeros(64), n_threads=64)
    fails_with("arguments", write_row, (FLOATS, types.int64), x)


def check_counts():
    for step, wavefronts in ((1, 2), (2, 4), (16, 32), (0, 2)):
        x = aligned(32 * 16, float)
        shift = -x.ctypes.data % 32 // 8
        counts = threads.Counts()
        run(strided_reads, (FLOATS, types.int64), x[shift:], step, shared_bytes=32 * 128,
            observer=counts)  # fmt: skip
        assert counts.requests == {("load", "shared"): 1, ("store", "global"): 1}
        assert counts.shared_wavefronts == wavefronts
        assert counts.global_sectors == {1: 8, 2: 16, 16: 32, 0: 1}[step]
        assert counts.warps == 1


def check_numbers():
    """Compare arithmetic with that of Python."""
    kinds = FLOATS, types.int64, types.int64, FLOATS, INTS
    for a, b in ((1.5, -2.25), (math.nan, 1.0), (1e308, 10.0), (-0.0, 0.0), (1 / 3, 7.1)):
        for i in (17, -17, 1 << 40):
            out, whole, x = np.zeros(15), np.zeros(6, np.int64), np.array([a, b])
            run(numbers, kinds, x, i, 3, out, whole, n_threads=1)
            np.testing.assert_array_equal(whole, [i // 3, -i * 3, i >> 2, min(i, 3), i << 3, i > 3])
            with np.errstate(all="ignore"):
                p, q = np.float64(a), np.float64(b)
                expected = [
                    p + q, p * q, p / q, np.fmin(p, q), np.fmax(p, q), np.copysign(p, q),
                    np.exp(p), np.log(abs(q)), abs(p) ** q, np.float64(np.float32(p)),
                    -p - q, out[11], p < q, p == q, p != q,
                ]  # fmt: skip
            np.testing.assert_allclose(out, expected, rtol=4e-16)


NAN = "0d7FF8000000000000"
INSTRUCTIONS = {
    "min.u32 %rd1, -3, 2": 2, "min.s32 %rd1, -3, 2": 2**32 - 3, "max.s64 %rd1, -3, 2": 2,
    "shr.u32 %rd1, -4, 1": 2**31 - 2, "shl.b32 %rd1, 3, 31": 2**31, "shl.b64 %rd1, 1, 64": 0,
    "bfi.b64 %rd1, 5, 7, 32, 32": 5 << 32 | 7,
    "mul.wide.s32 %rd1, -3, 2": 2**64 - 6, "mul.wide.u32 %rd1, -3, 2": 2**33 - 6,
    "mad.lo.s32 %rd1, -3, 2, 7": 1, "cvt.s64.s32 %rd1, -3": 2**64 - 3, "not.b32 %rd1, 5": 2**32 - 6,
    "add.f32 %f1, 0f3F800000, 0f31800000; mov.b32 %rd1, %f1": 0x3F800000,  # 1 + 2**-28
    "sub.f32 %f1, 0f3F800000, 0f31800000; mov.b32 %rd1, %f1": 0x3F800000,
    f"setp.num.f64 %p1, {NAN}, {NAN}; selp.u64 %rd1, 3, 4, %p1": 4,
    f"setp.leu.f64 %p1, {NAN}, {NAN}; selp.u64 %rd1, 3, 4, %p1": 3,
    "setp.leu.f64 %p1, 0d0000000000000000, 0d0000000000000000; selp.u64 %rd1, 3, 4, %p1": 3,
    "setp.lt.s64 %p1, -3, 2; selp.u64 %rd1, 3, 4, %p1": 3,
    "setp.lt.u64 %p1, -3, 2; selp.u64 %rd1, 3, 4, %p1": 4,
}  # fmt: skip


def check_instructions():
    out, memory = np.zeros(1, np.uint64), threads.Memory()
    memory.add(out)
    head, tail = (
        ".entry small() {\n.reg .b64 %rd<2>;\n.reg .f32 %f<2>;",
        f"st.global.u64 [{out.ctypes.data}], %rd1;",
    )
    for instruction, expected in INSTRUCTIONS.items():
        kernel = ptx.Kernel(f"{head}\n{instruction};\n{tail}\nret;\n}}")
        threads.launch(kernel, (1, 1, 1), (1, 1, 1), [], memory)
        assert out == expected, instruction
    with pytest.raises(NotImplementedError, match=r"tanh\.approx\.f32"):
        ptx.Kernel(f"{head}\ntanh.approx.f32 %fd1, %fd1;\n}}")


if __name__ == "__main__":
    for check in (check_results, check_errors, check_counts, check_numbers, check_instructions):
        check()
