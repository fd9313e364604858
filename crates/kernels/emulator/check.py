#!/usr/bin/env python3
"""Checks the emulated CUDA on its own: `check.py OUT_DIR`, the folder that build.sh wrote to."""

import ctypes
import os
import pathlib
import random
import struct
import sys
import tempfile
from ctypes import byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

libraries = pathlib.Path(sys.argv[1])
cuda, nvrtc, blas = (ctypes.CDLL(str(libraries / name)) for name in ("libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.13"))
shared_headers = pathlib.Path(__file__).resolve().parent.parent / "src" / "cuda"
HEADERS = "".join((shared_headers / name).read_text() for name in ("ptx.cuh", "prelude.cuh"))

ILLEGAL_ADDRESS, MISALIGNED_ADDRESS, LAUNCH_FAILED, OUT_OF_RESOURCES, INVALID_VALUE = 700, 716, 719, 701, 1


def ok(status):
    assert status == 0, f"status {status}: {explanation(status)}"


def explanation(status):
    text = c_char_p()
    cuda.cuGetErrorString(status, byref(text))
    return text.value.decode()


# ----------------------------------------------------------------------------------------------------------------------
# Device memory and numbers


class Buffer:
    def __init__(self, data):
        """Bytes, or a size."""
        size = data if isinstance(data, int) else len(data)
        self.size, self.address = size, c_uint64()
        ok(cuda.cuMemAlloc_v2(byref(self.address), c_size_t(size)))
        if not isinstance(data, int):
            ok(cuda.cuMemcpyHtoD_v2(self.address, data, c_size_t(size)))

    def bytes(self):
        out = ctypes.create_string_buffer(self.size)
        ok(cuda.cuMemcpyDtoH_v2(out, self.address, c_size_t(self.size)))
        return out.raw

    def floats(self):
        return list(struct.unpack(f"{self.size // 4}f", self.bytes()))

    def bf16s(self):
        return [struct.unpack("f", struct.pack("I", b << 16))[0] for b in struct.unpack(f"{self.size // 2}H", self.bytes())]


def f32(values):
    return struct.pack(f"{len(values)}f", *values)


def bf16(values):
    bits = struct.unpack(f"{len(values)}I", f32(values))
    return struct.pack(f"{len(values)}H", *((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits))


def small(count):
    """Numbers that bf16 has, whose products and sums are exact."""
    return [random.randint(-8, 8) / 4 for _ in range(count)]


def product(a, b, m, n, k):
    return [sum(a[i * k + l] * b[l * n + j] for l in range(k)) for i in range(m) for j in range(n)]


def transposed(a, rows, columns):
    return [a[i * columns + j] for j in range(columns) for i in range(rows)]


# ----------------------------------------------------------------------------------------------------------------------
# Kernels


def compile_source(source):
    program, size = c_void_p(), c_size_t()
    ok(nvrtc.nvrtcCreateProgram(byref(program), (HEADERS + "\n#line 1\n" + source).encode(), b"check.cu", 0, None, None))
    options = (c_char_p * 2)(b"--gpu-architecture=sm_90", b"-std=c++17")
    status = nvrtc.nvrtcCompileProgram(program, 2, options)
    ok(nvrtc.nvrtcGetProgramLogSize(program, byref(size)))
    log = ctypes.create_string_buffer(size.value)
    ok(nvrtc.nvrtcGetProgramLog(program, log))
    if status != 0:
        return status, log.value.decode()
    ok(nvrtc.nvrtcGetCUBINSize(program, byref(size)))
    image = ctypes.create_string_buffer(size.value)
    ok(nvrtc.nvrtcGetCUBIN(program, image))
    ok(nvrtc.nvrtcDestroyProgram(byref(program)))
    return 0, image.raw


class Module:
    def __init__(self, source):
        status, image = compile_source(source)
        assert status == 0, image
        self.module = c_void_p()
        ok(cuda.cuModuleLoadData(byref(self.module), image))

    def launch(self, name, params, grid=1, block=32, shared=0, status=0, says=""):
        function = c_void_p()
        ok(cuda.cuModuleGetFunction(byref(function), self.module, name.encode()))
        packed = ctypes.create_string_buffer(params)
        arguments = (c_void_p * 1)(ctypes.addressof(packed))
        got = cuda.cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, None, arguments, None)
        if status is None:
            return got
        assert got == status, f"{name}: status {got}, expected {status}: {explanation(got)}"
        if status != 0:
            assert says in explanation(got) and name in explanation(got), f"{says!r} isn't in {explanation(got)!r}"


def pointers(*buffers):
    return struct.pack(f"{len(buffers)}Q", *(b if isinstance(b, int) else b.address.value for b in buffers))


SUMS = """
struct Sums { const float* x; float* out; int n; };
template <int BLOCK> INLINE void sums(Sums p) {
    __shared__ float partial[32];
    float sum = 0, most = -1e30f;
    for (int i = threadIdx.x; i < p.n; i += BLOCK) {
        float x = p.x[(size_t)blockIdx.x * p.n + i];
        sum += x;
        most = max(most, x);
    }
    sum = block_sum(sum, partial);
    most = block_max(most, partial);
    if (threadIdx.x == 0) p.out[2 * blockIdx.x] = sum, p.out[2 * blockIdx.x + 1] = most;
}
#define ENTRY(B) extern "C" __global__ void __launch_bounds__(B) sums_##B(Sums p) { sums<B>(p); }
ENTRY(64)
ENTRY(1024)

struct Lanes { u32* out; };
extern "C" __global__ void lanes(Lanes p) {
    u32 lane = threadIdx.x;
    u64 wide = __shfl_sync(ALL_LANES, (u64)lane << 40, 5);
    u32* out = p.out + 8 * lane;
    out[0] = __ballot_sync(ALL_LANES, lane % 3 == 0);
    out[1] = (u32)(wide >> 40);
    out[2] = __shfl_down_sync(ALL_LANES, lane, 3, 8);
    out[3] = __shfl_up_sync(ALL_LANES, lane, 3, 8);
    out[4] = __shfl_xor_sync(ALL_LANES, lane, 16);
    out[5] = __any_sync(ALL_LANES, lane == 31) + 2 * __all_sync(ALL_LANES, lane < 32);
    out[6] = lane < 16 ? __shfl_sync(0xffffu, lane, 15) : __shfl_sync(0xffff0000u, lane, 16);
    out[7] = __syncthreads_count(lane < 7);
}
"""


def sums_and_lanes():
    module = Module(SUMS)
    for block, n, rows in ((64, 100, 3), (1024, 5000, 2)):
        x = small(n * rows)
        out = Buffer(8 * rows)
        module.launch(f"sums_{block}", pointers(Buffer(f32(x)), out) + struct.pack("i", n), grid=rows, block=block)
        want = [f(x[r * n : r * n + n]) for r in range(rows) for f in (sum, max)]
        assert out.floats() == want, (out.floats(), want)
    module.launch("sums_64", pointers(0, 0) + struct.pack("i", 0), block=128, status=OUT_OF_RESOURCES, says="128 threads")

    out = Buffer(32 * 8 * 4)
    module.launch("lanes", pointers(out))
    got = struct.unpack("256I", out.bytes())
    for lane in range(32):
        want = (0x49249249, 5, lane + 3 if lane % 8 < 5 else lane, lane - 3 if lane % 8 > 2 else lane, lane ^ 16, 3,
                15 if lane < 16 else 16, 7)
        assert got[8 * lane : 8 * lane + 8] == want, (lane, got[8 * lane : 8 * lane + 8], want)


PRODUCTS = """
struct Product { const bf16* a; const bf16* b; float* d; };

// Fragments as the PTX ISA draws them, a row-major and b column-major.
extern "C" __global__ void product_from_fragments(Product p) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    auto pair = [](const bf16* at) { return (u32)at[0].bits | (u32)at[1].bits << 16; };
    u32 a[4] = {pair(p.a + g * 16 + 2 * t), pair(p.a + (g + 8) * 16 + 2 * t), pair(p.a + g * 16 + 2 * t + 8),
                pair(p.a + (g + 8) * 16 + 2 * t + 8)};
    u32 b[2] = {pair(p.b + g * 16 + 2 * t), pair(p.b + g * 16 + 2 * t + 8)};
    float d[4] = {1, 1, 1, 1};
    mma_bf16(d, a, b);
    p.d[g * 8 + 2 * t] = d[0], p.d[g * 8 + 2 * t + 1] = d[1];
    p.d[(g + 8) * 8 + 2 * t] = d[2], p.d[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// 16×16 by 16×16, both row-major, by way of cp.async and ldmatrix.
template <bool WAIT> INLINE void product_from_shared(Product p) {
    DYNAMIC_SHARED(memory);
    bf16(*a)[16] = (bf16(*)[16])memory;
    bf16(*b)[16] = a + 16;
    int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    copy_async_16(&a[lane / 2][lane % 2 * 8], p.a + lane * 8, true);
    copy_async_commit();
    copy_async_16(&b[lane / 2][lane % 2 * 8], p.b + lane * 8, true);
    copy_async_commit();
    copy_async_wait<1>();
    if (WAIT) copy_async_wait<0>();
    __syncwarp();
    u32 fragment_a[4], fragment_b[4];
    ldmatrix_x4(fragment_a, &a[lane % 16][lane / 16 * 8]);
    ldmatrix_x4_transposed(fragment_b, &b[lane % 16][lane / 16 * 8]);
    for (int half = 0; half < 2; half++) {
        float d[4] = {};
        u32 columns[2] = {fragment_b[2 * half], fragment_b[2 * half + 1]};
        mma_bf16(d, fragment_a, columns);
        for (int i = 0; i < 4; i++) p.d[(g + i / 2 * 8) * 16 + half * 8 + 2 * t + i % 2] = d[i];
    }
}
extern "C" __global__ void product_waits(Product p) { product_from_shared<true>(p); }
extern "C" __global__ void product_forgets_to_wait(Product p) { product_from_shared<false>(p); }

struct Round { const float* x; u16* y; float* e; };
extern "C" __global__ void rounding(Round p) {
    p.y[threadIdx.x] = from_f32<bf16>(p.x[threadIdx.x]).bits;
    p.e[threadIdx.x] = exp2_approx(p.x[threadIdx.x]);
}
"""


def products():
    module = Module(PRODUCTS)
    a, b = small(256), small(128)
    out = Buffer(16 * 8 * 4)
    module.launch("product_from_fragments", pointers(Buffer(bf16(a)), Buffer(bf16(b)), out))
    assert out.floats() == [1 + x for x in product(a, transposed(b, 8, 16), 16, 8, 16)]

    b, out = small(256), Buffer(16 * 16 * 4)
    operands = pointers(Buffer(bf16(a)), Buffer(bf16(b)), out)
    module.launch("product_waits", operands, shared=1024)
    assert out.floats() == product(a, b, 16, 16, 16)
    module.launch("product_forgets_to_wait", operands, shared=1024)
    assert all(x != x for x in out.floats())
    module.launch("product_waits", operands, shared=48, status=ILLEGAL_ADDRESS, says="beyond 48 bytes of dynamic shared memory, check.cu:23")
    module.launch("product_waits", operands, shared=100 << 10, status=INVALID_VALUE, says="dynamic shared memory")

    x = [0.0, 1.0, 1.00390625, 1.01171875, -2.5, 3e38, 3.4e38, float("inf"), float("nan"), 1e-39] + [-200.0] * 22
    y, e = Buffer(64), Buffer(128)
    module.launch("rounding", pointers(Buffer(f32(x)), y, e))
    want = [0, 0x3F80, 0x3F80, 0x3F82, 0xC020, 0x7F62, 0x7F80, 0x7F80, 0x7FFF, 0x000B]
    got = list(struct.unpack("32H", y.bytes()))[:10]
    assert got == want, [hex(b) for b in got]
    assert e.floats()[1] == 2 and e.floats()[31] == 0


WARPGROUP = """
// a 64×64 and b 128×64 by rows, c 64×128; first = a·bᵀ from shared memory, second = 1 + a·c with a in registers.
struct Products { const bf16 *a, *b, *c; float *first, *second; };

// Row `row` of `chunks` chunks, 64 columns after the other, each `rows` rows of 128 bytes.
INLINE void copy_rows(u8* to, const bf16* from, int rows, int chunks) {
    for (int i = threadIdx.x; i < rows * chunks; i += 128) {
        int row = i / chunks, chunk = i % chunks;
        copy_async_16(to + chunk / 8 * rows * 128 + row * 128 + ((chunk % 8) ^ (row % 8)) * 16, from + i * 8, true);
    }
}
enum Omission { NOTHING, FENCE_OF_COPIES, FENCE_OF_WAITERS, FENCE, WAIT, STAYS };
template <Omission OMITTED> INLINE void products(Products p) {
    DYNAMIC_SHARED(memory);
    u8* a = memory + (1024 - shared_address(memory) % 1024) % 1024;
    u8 *b = a + 64 * 128, *c = b + 128 * 128;
    copy_rows(a, p.a, 64, 8);
    copy_rows(b, p.b, 128, 8);
    copy_rows(c, p.c, 64, 16);
    if (OMITTED == NOTHING || OMITTED == FENCE_OF_WAITERS) {
        u64* there = (u64*)(c + 64 * 256);
        if (threadIdx.x == 0) mbarrier_init(there, 128);
        __syncthreads();
        copy_async_arrive(there);
        mbarrier_wait(there, 0);
        if (OMITTED == NOTHING) fence_for_wgmma();
    } else {
        copy_async_commit();
        copy_async_wait<0>();
        if (OMITTED != FENCE_OF_COPIES) fence_for_wgmma();
        __syncthreads();
    }
    float first[64], second[64];
    u32 left[4][4];
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 64; i++) second[i] = 1;
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) left[k][i] = *(const u32*)(p.a + (warp * 16 + i % 2 * 8 + g) * 64 + k * 16 + i / 2 * 8 + 2 * t);
    if (OMITTED != FENCE) wgmma_fence();
    u64 a_matrix = wgmma_matrix(a, 0), b_matrix = wgmma_matrix(b, 0), c_matrix = wgmma_matrix(c, 64 * 128);
    wgmma<false>(first, a_matrix, b_matrix);
    for (int k = 1; k < 4; k++) wgmma<true>(first, a_matrix + 2 * k, b_matrix + 2 * k);
    wgmma_commit();
    for (int k = 0; k < 4; k++) wgmma(second, left[k], c_matrix + 128 * k);
    wgmma_commit();
    if (OMITTED == STAYS) left[3][0] = 0;
    wgmma_wait<1>(first);
    if (OMITTED != WAIT) wgmma_wait<0>(second);
    for (int i = 0; i < 64; i++) {
        int at = (warp * 16 + i / 2 % 2 * 8 + g) * 128 + i / 4 * 8 + 2 * t + i % 2;
        p.first[at] = first[i], p.second[at] = second[i];
    }
}
#define ENTRY(O) extern "C" __global__ void __launch_bounds__(128) products_without_##O(Products p) { products<O>(p); }
ENTRY(NOTHING)
ENTRY(FENCE_OF_COPIES)
ENTRY(FENCE_OF_WAITERS)
ENTRY(FENCE)
ENTRY(WAIT)
ENTRY(STAYS)
"""


def products_of_warpgroups():
    module = Module(WARPGROUP)
    a, b, c = small(64 * 64), small(128 * 64), small(64 * 128)
    first, second = Buffer(64 * 128 * 4), Buffer(64 * 128 * 4)
    operands = pointers(*(Buffer(bf16(x)) for x in (a, b, c)), first, second)

    def launch(name, status=0, says=""):
        module.launch("products_without_" + name, operands, block=128, shared=41 << 10, status=status, says=says)

    want = [1 + x for x in product(a, c, 64, 128, 64)]
    for _ in range(4):
        launch("NOTHING")
        assert first.floats() == product(a, transposed(b, 128, 64), 64, 128, 64)
        assert second.floats() == want
    launch("FENCE_OF_COPIES", LAUNCH_FAILED, "aren't fenced")
    launch("FENCE_OF_WAITERS", LAUNCH_FAILED, "were waited for aren't fenced")
    launch("FENCE", LAUNCH_FAILED, "wgmma without wgmma_fence")
    launch("WAIT")
    assert all(x != x for x in second.floats())
    wrong = False
    for _ in range(8):
        launch("STAYS")
        wrong |= second.floats() != want
    assert wrong, "a register that was overwritten under a product wasn't seen"


STAGES = """
// y = 2·x, 32 at a time: a warp copies to two stages in turn, another reads them.
struct Doubled { const float* x; float* y; int tiles; };
enum Omission { NOTHING, FULL, EMPTY, RELEASE };
template <Omission OMITTED> INLINE void doubled(Doubled p) {
    DYNAMIC_SHARED(memory);
    float(*stages)[32] = (float(*)[32])memory;
    u64 *full = (u64*)(memory + 256), *empty = full + 2;
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; i++) mbarrier_init(full + i, 32), mbarrier_init(empty + i, 1);
    __syncthreads();
    int lane = threadIdx.x % 32;
    for (int i = 0; i < p.tiles; i++) {
        u32 phase = i / 2 % 2;
        if (threadIdx.x < 32) {
            if (OMITTED != EMPTY) mbarrier_wait(empty + i % 2, phase ^ 1);
            copy_async_4(&stages[i % 2][lane], p.x + i * 32 + lane, true);
            copy_async_arrive(full + i % 2);
        } else {
            if (OMITTED != FULL) mbarrier_wait(full + i % 2, phase);
            p.y[i * 32 + lane] = 2 * stages[i % 2][lane];
            __syncwarp();
            if (lane == 0 && OMITTED != RELEASE) mbarrier_arrive(empty + i % 2);
        }
    }
}
#define ENTRY(O) extern "C" __global__ void __launch_bounds__(64) doubled_without_##O(Doubled p) { doubled<O>(p); }
ENTRY(NOTHING)
ENTRY(FULL)
ENTRY(EMPTY)
ENTRY(RELEASE)
"""


def barriers_in_shared_memory():
    module, tiles = Module(STAGES), 7
    x = small(32 * tiles)
    want = [2 * value for value in x]

    def launch(name, status=None, says=""):
        y = Buffer(4 * len(x))
        operands = pointers(Buffer(f32(x)), y) + struct.pack("i", tiles)
        got = module.launch("doubled_without_" + name, operands, block=64, shared=512, status=status, says=says)
        return got in (None, 0) and y.floats() == want

    assert all(launch("NOTHING", 0) for _ in range(8))
    # What isn't waited for is wrong, or a phase is missed and somebody waits for ever.
    assert not all(launch("FULL") for _ in range(8)), "a stage that was read before it was full wasn't seen"
    assert not all(launch("EMPTY") for _ in range(8)), "a stage that was filled before it was read wasn't seen"
    launch("RELEASE", LAUNCH_FAILED, "barrier in shared memory")


FAULTS = """
struct Pointer { float* x; int n; };
extern "C" __global__ void write(Pointer p) { p.x[p.n + threadIdx.x] = 1; }
extern "C" __global__ void read(Pointer p) { p.x[threadIdx.x] = p.x[p.n]; }
extern "C" __global__ void misaligned(Pointer p) { *(Vector<float, 4>*)(p.x + p.n) = Vector<float, 4>{}; }
extern "C" __global__ void bounds(Pointer p) {
    __shared__ float memory[32];
    memory[threadIdx.x + p.n] = 1;
    p.x[threadIdx.x] = memory[threadIdx.x];
}
extern "C" __global__ void unwritten(Pointer p) {
    __shared__ float memory[32];
    if (threadIdx.x < 8) memory[threadIdx.x] = 1;
    __syncthreads();
    p.x[threadIdx.x] = memory[threadIdx.x];
}
extern "C" __global__ void two_barriers(Pointer p) {
    if (threadIdx.x < 32) __syncthreads();
    else if (p.n > 0)
        __syncthreads();
}
extern "C" __global__ void barrier_and_warp(Pointer p) {
    if (threadIdx.x == 3) __syncthreads();
    else p.x[0] = warp_sum(1.0f);
}
extern "C" __global__ void returned(Pointer p) {
    if (threadIdx.x == 3) return;
    p.x[0] = warp_sum(1.0f);
}
extern "C" __global__ void no_barrier(Pointer p) {
    __shared__ float memory[64];
    for (int i = 0; i < p.n; i++) {
        memory[threadIdx.x] = (float)i;
        if (memory[63 - threadIdx.x] != (float)i) p.x[0] = 1;
        __syncthreads();
    }
}
extern "C" __global__ void deep(Pointer p) {
    volatile float much[40000];
    much[p.n] = 1;
    p.x[0] = much[0];
}
extern "C" __global__ void divide(Pointer p) { p.x[0] = (float)(1 / p.n); }
"""


def faults():
    module = Module(FAULTS)
    x = Buffer(4096)

    def fails(name, n, status, says, block=32, at=x):
        module.launch(name, pointers(at) + struct.pack("i", n), block=block, status=status, says=says)

    assert all(v != v for v in x.floats())
    fails("write", 1000, ILLEGAL_ADDRESS, "write of")
    fails("write", 1000, ILLEGAL_ADDRESS, "bytes beyond the end of an allocation of 4096")
    fails("write", 1000, ILLEGAL_ADDRESS, "check.cu:3")
    fails("write", 2, ILLEGAL_ADDRESS, "written beyond the end of an allocation of 8 bytes", block=2, at=Buffer(8))
    fails("read", 1100, ILLEGAL_ADDRESS, "read of")
    fails("read", 0, ILLEGAL_ADDRESS, "a null pointer", at=0)
    fails("misaligned", 1, MISALIGNED_ADDRESS, "check.cu:5")
    fails("bounds", 1, ILLEGAL_ADDRESS, "index 32 is out of the bounds of 'float [32]', check.cu:8")
    fails("two_barriers", 1, LAUNCH_FAILED, "32 threads, first (32, 0, 0): at the barrier of check.cu:20", block=64)
    fails("two_barriers", 1, 0, "", block=32)
    fails("barrier_and_warp", 1, LAUNCH_FAILED, "1 thread, first (3, 0, 0): at the barrier of check.cu:23")
    fails("returned", 1, LAUNCH_FAILED, "has lane 3, which has returned")
    fails("deep", 1, LAUNCH_FAILED, "stack overflow")
    fails("divide", 0, LAUNCH_FAILED, "division of integers by zero")
    freed = Buffer(64)
    ok(cuda.cuMemFree_v2(freed.address))
    fails("write", 0, ILLEGAL_ADDRESS, "0 bytes into a freed allocation of 64 bytes", block=1, at=freed)
    assert cuda.cuMemFree_v2(freed.address) == INVALID_VALUE
    assert cuda.cuMemcpyDtoH_v2(ctypes.create_string_buffer(8), freed.address, c_size_t(8)) == INVALID_VALUE

    fails("unwritten", 0, 0, "")
    assert [v == v for v in x.floats()[:32]] == [i < 8 for i in range(32)]
    ok(cuda.cuMemsetD32_v2(x.address, 0, c_size_t(1024)))
    fails("no_barrier", 16, 0, "", block=64)
    assert x.floats()[0] == 1, "a missing barrier wasn't seen"

    status, log = compile_source('extern "C" __global__ void bad(int n) {\n    undeclared = n;\n}\n')
    assert status == 6 and "check.cu:2" in log and "undeclared" in log, log


# ----------------------------------------------------------------------------------------------------------------------
# cublasLt

F32, BF16 = 0, 14


def matmul(a, b, out, m, n, k, transpose=(0, 0), types=(F32, F32), scales=(1, 0), bias=None, batch=1, alignment=16):
    desc, preference, handle, layouts = c_void_p(), c_void_p(), c_void_p(), []
    ok(blas.cublasLtCreate(byref(handle)))
    ok(blas.cublasLtMatmulDescCreate(byref(desc), 68, F32))
    for attribute, value in zip((3, 4), transpose):
        ok(blas.cublasLtMatmulDescSetAttribute(desc, attribute, byref(c_int(value)), c_size_t(4)))
    if bias:
        ok(blas.cublasLtMatmulDescSetAttribute(desc, 7, byref(c_int(4)), c_size_t(4)))
        ok(blas.cublasLtMatmulDescSetAttribute(desc, 8, byref(bias.address), c_size_t(8)))
    sizes = ((k, m) if transpose[0] else (m, k), (n, k) if transpose[1] else (k, n), (m, n))
    for (rows, columns), kind in zip(sizes, (types[0], types[0], types[1])):
        layout = c_void_p()
        ok(blas.cublasLtMatrixLayoutCreate(byref(layout), kind, c_uint64(rows), c_uint64(columns), c_int64(rows)))
        ok(blas.cublasLtMatrixLayoutSetAttribute(layout, 5, byref(c_int(batch)), c_size_t(4)))
        ok(blas.cublasLtMatrixLayoutSetAttribute(layout, 6, byref(c_int64(rows * columns)), c_size_t(8)))
        layouts.append(layout)
    ok(blas.cublasLtMatmulPreferenceCreate(byref(preference)))
    for attribute in range(5, 9):
        ok(blas.cublasLtMatmulPreferenceSetAttribute(preference, attribute, byref(c_uint32(alignment)), c_size_t(4)))
    heuristic, count = ctypes.create_string_buffer(96), c_int()
    la, lb, ld = layouts
    status = blas.cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, ld, ld, preference, 1, heuristic, byref(count))
    if status != 0:
        return status
    alpha, beta = c_float(scales[0]), c_float(scales[1])
    return blas.cublasLtMatmul(handle, desc, byref(alpha), a.address, la, b.address, lb, byref(beta), out.address, ld,
                               out.address, ld, heuristic, None, c_size_t(0), None)


def matrix_products():
    m, n, k, batch = 37, 6, 21, 3
    pack = {F32: (f32, Buffer.floats, 4), BF16: (bf16, Buffer.bf16s, 2)}
    for types in ((F32, F32), (BF16, F32), (BF16, BF16)):
        for transpose in ((0, 0), (0, 1), (1, 0), (1, 1)):
            a, b, c, bias = small(batch * m * k), small(batch * k * n), small(batch * m * n), small(m)
            # Row-major for the loops; column-major for cublasLt is the transpose of that.
            columns_a = [x for i in range(batch) for x in (lambda p: p if transpose[0] else transposed(p, m, k))(a[i * m * k : (i + 1) * m * k])]
            columns_b = [x for i in range(batch) for x in (lambda p: p if transpose[1] else transposed(p, k, n))(b[i * k * n : (i + 1) * k * n])]
            to_in, to_out, read = pack[types[0]][0], pack[types[1]][0], pack[types[1]][1]
            out = Buffer(to_out(c))
            ok(matmul(Buffer(to_in(columns_a)), Buffer(to_in(columns_b)), out, m, n, k, transpose, types, (0.5, 2), Buffer(to_out(bias)), batch))
            want = []
            for i in range(batch):
                plain = product(a[i * m * k : (i + 1) * m * k], b[i * k * n : (i + 1) * k * n], m, n, k)
                want += transposed([0.5 * plain[r * n + j] + 2 * c[i * m * n + j * m + r] + bias[r] for r in range(m) for j in range(n)], m, n)
            if types[1] == BF16:
                want = [struct.unpack("f", struct.pack("I", b << 16))[0] for b in struct.unpack(f"{len(want)}H", bf16(want))]
            assert read(out) == want, (types, transpose)
    x = Buffer(1 << 12)
    assert matmul(x, x, x, 4, 4, 4, types=(F32, BF16)) == 15
    assert matmul(x, x, x, 64, 4, 64) == 7, "an operand beyond its allocation wasn't seen"


if __name__ == "__main__":
    random.seed(1)
    context = c_void_p()
    ok(cuda.cuInit(0))
    ok(cuda.cuDevicePrimaryCtxRetain(byref(context), 0))
    for check in (sums_and_lanes, products, products_of_warpgroups, barriers_in_shared_memory, faults, matrix_products):
        check()
        print(f"{check.__name__}: ok")
