// A tensor in another element type: see convert.rs.

typedef float f32;

struct f16 {
    u16 bits;
};

// Exact. Moving exponent and mantissa to their places in f32 leaves the exponent 112 too small, which a product
// mends for subnormal numbers too.
INLINE float to_f32(f16 x) {
    u32 sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
    u32 magnitude = rest >= 0x7c00u ? 0x7f800000u | rest << 13
                                    : __float_as_uint(__uint_as_float(rest << 13) * __uint_as_float(0x77800000u));
    return __uint_as_float(sign | magnitude);
}

template <> struct Rounding<f16> {
    static __device__ __forceinline__ f16 of(float x) {
        u32 bits = __float_as_uint(x), sign = bits >> 31 << 15;
        bits &= 0x7fffffffu;
        if (bits > 0x7f800000u) return f16{(u16)(sign | 0x7e00u)};
        if (bits >= 0x47800000u) return f16{(u16)(sign | 0x7c00u)};
        if (bits < 0x38800000u) {
            // A subnormal result: 0.5 has its last place where they have theirs, so that the sum rounds as they do.
            u32 rounded = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000u;
            return f16{(u16)(sign | rounded)};
        }
        u32 odd = bits >> 13 & 1u;
        return f16{(u16)(sign | (bits - 0x38000000u + 0xfffu + odd) >> 13)};
    }
};

struct Convert {
    const void* from;
    void* to;
    u64 elements;
};

template <int N, class A, class B> INLINE void convert_at(const Convert& p, u64 i) {
    Vector<A, N> from = *(const Vector<A, N>*)((const A*)p.from + i);
    Vector<B, N> to;
#pragma unroll
    for (int k = 0; k < N; k++) to.at[k] = from_f32<B>(to_f32(from.at[k]));
    *(Vector<B, N>*)((B*)p.to + i) = to;
}

template <class A, class B> INLINE void convert(const Convert& p) {
    constexpr int N = 16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x, threads = (u64)gridDim.x * blockDim.x;
    u64 vectors = ((u64)p.from | (u64)p.to) % 16 == 0 ? p.elements / N : 0;
    for (u64 i = thread; i < vectors; i += threads) convert_at<N, A, B>(p, i * N);
    for (u64 i = vectors * N + thread; i < p.elements; i += threads) convert_at<1, A, B>(p, i);
}

#define CONVERT(A, B) extern "C" __global__ void tensor_convert_##A##_##B(Convert p) { convert<A, B>(p); }
CONVERT(f32, bf16)
CONVERT(f32, f16)
CONVERT(bf16, f32)
CONVERT(bf16, f16)
CONVERT(f16, f32)
CONVERT(f16, bf16)
