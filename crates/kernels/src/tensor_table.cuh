// Many tensors in one launch: see tensor_table.rs. Every tensor is cut into chunks, and a block finds the tensor of its
// chunk in a table.

constexpr u64 CHUNK = 8192;

// The tensor that a chunk is of: the last that begins at it or before.
template <class Tensor> INLINE const Tensor& tensor_of(const Tensor* tensors, u32 count, u64 chunk) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (tensors[middle].first_chunk <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return tensors[low];
}

INLINE u64 smaller(u64 a, u64 b) { return a < b ? a : b; }

// N elements of a trained weight: floats, or the high halves with the low ones in `halves`.
template <int N> INLINE void load_master(float (&x)[N], const void* p, const u16* halves, u64 i) {
    if (!halves) return load_floats(x, (const float*)p + i);
    Vector<bf16, N> high = *(const Vector<bf16, N>*)((const bf16*)p + i);
    Vector<u16, N> low = *(const Vector<u16, N>*)(halves + i);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] = whole_of(FloatHalves{high.at[k], low.at[k]});
}

template <int N> INLINE void store_master(void* p, u16* halves, const float (&x)[N], u64 i) {
    if (!halves) return store_floats((float*)p + i, x);
    Vector<bf16, N> high;
    Vector<u16, N> low;
#pragma unroll
    for (int k = 0; k < N; k++) {
        FloatHalves split = halves_of(x[k]);
        high.at[k] = split.high;
        low.at[k] = split.low;
    }
    *(Vector<bf16, N>*)((bf16*)p + i) = high;
    *(Vector<u16, N>*)(halves + i) = low;
}
