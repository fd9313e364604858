// What all kernels share: element types, 16-byte access, sums over warps and blocks in a fixed order.

struct bf16 {
    u16 bits;
};

INLINE float to_f32(float x) { return x; }
INLINE float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class T> struct Rounding;
template <> struct Rounding<float> {
    static __device__ __forceinline__ float of(float x) { return x; }
};
template <> struct Rounding<bf16> {
    static __device__ __forceinline__ bf16 of(float x) { return bf16{bf16_bits(x)}; }
};

// x in type T, rounded to nearest even.
template <class T> INLINE T from_f32(float x) { return Rounding<T>::of(x); }

// N neighbouring elements that are read and written by one instruction where N·sizeof(T) is 16.
template <class T, int N> struct __align__(sizeof(T) * N) Vector {
    T at[N];
};

// Elements of T in 16 bytes.
template <class T> struct Width {
    static const int value = 16 / sizeof(T);
};

constexpr u32 ALL_LANES = 0xffffffffu;

INLINE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

INLINE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over all threads of a block, known to every one of them; `partial` is 32 floats of shared memory, free again
// after the next barrier. Blocks are whole warps.
INLINE float block_sum(float x, float* partial) {
    x = warp_sum(x);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

INLINE float block_max(float x, float* partial) {
    x = warp_max(x);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? partial[lane] : __uint_as_float(0xff800000u));
}
