// Values of a quantised weight: see quantized/mod.rs.

typedef float f32;

struct Decode {
    const u8* codes;
    // Of blocks, or of the blocks of their codes; of rows in int8.
    const float* scales;
    // Codes of scales, or null.
    const u8* nested;
    // What these stand for: 256 values.
    const float* map;
    void* to;
    u64 elements;
    u64 columns;
    float offset;
    u32 block_bits;
    float table[16];
    // Of blocks, or null.
    const float* zeros;
    u64 tile_rows;
    u64 tile_columns;
};

constexpr u64 NESTED_BLOCK = 256;

INLINE float scale_of(const Decode& p, u64 block) {
    if (!p.nested) return p.scales[block];
    // Two roundings, as on a CPU.
    return __fadd_rn(__fmul_rn(p.map[p.nested[block]], p.scales[block / NESTED_BLOCK]), p.offset);
}

// Eight elements a thread: of one block, since blocks are of at least sixteen.
template <class T> INLINE void four_bits(const Decode& p) {
    constexpr int N = 8;
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = p.table[threadIdx.x];
    __syncthreads();
    Span span = span_of_thread<N>(p.elements, true);
    if (span.count == 0) return;
    const u8* bytes = p.codes + span.first / 2;
    u64 block = span.first >> p.block_bits;
    float scale = scale_of(p, block), zero = p.zeros ? p.zeros[block] : 0.0f, x[N];
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        u32 byte = (u32)i < span.count ? bytes[i / 2] : 0u;
        x[i] = (table[byte >> 4] - zero) * scale;
        x[i + 1] = (table[byte & 15u] - zero) * scale;
    }
    store_span((T*)p.to, x, span);
}

template <class T> INLINE void eight_bits(const Decode& p) {
    constexpr int N = 8;
    constexpr float PER_INT8 = 7.8740157e-3f;
    Span span = span_of_thread<N>(p.elements, true);
    if (span.count == 0) return;
    float x[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        u64 at = span.first + i;
        if (i >= span.count) continue;
        x[i] = __fmul_rn(__fmul_rn((float)(signed char)p.codes[at], p.scales[at / p.columns]), PER_INT8);
    }
    store_span((T*)p.to, x, span);
}

template <class T> INLINE void fp8(const Decode& p) {
    constexpr int N = 8;
    Span span = span_of_thread<N>(p.elements, true);
    if (span.count == 0) return;
    u64 tiles = (p.columns + p.tile_columns - 1) / p.tile_columns;
    float x[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        u64 at = span.first + i;
        if (i >= span.count) continue;
        u64 row = at / p.columns, column = at % p.columns;
        float scale = p.scales[row / p.tile_rows * tiles + column / p.tile_columns];
        u32 code = p.codes[at];
        float value = __uint_as_float((code & 0x80u) << 24 | (code & 0x7fu) << 20) * __uint_as_float((120u + 127u) << 23);
        x[i] = value * scale;
    }
    store_span((T*)p.to, x, span);
}

#define DECODE(T)                                                                               \
    extern "C" __global__ void decode_four_bits_##T(Decode p) { four_bits<T>(p); }             \
    extern "C" __global__ void decode_fp8_##T(Decode p) { fp8<T>(p); }                         \
    extern "C" __global__ void decode_eight_bits_##T(Decode p) { eight_bits<T>(p); }
DECODE(f32)
DECODE(bf16)
