// The gradient of rows that were copied to several places: see copies.rs. A block for each row, whose threads share its
// columns, 16 bytes at a time where rows and addresses allow.

typedef float f32;

struct CopiesCollect {
    const void* dy;
    void* dx;
    const u32* starts;
    const u32* places;
    u64 columns;
};

template <int N, class E> INLINE void collect_by(const CopiesCollect& p) {
    u32 first = p.starts[blockIdx.x], end = p.starts[blockIdx.x + 1];
    E* dx = (E*)p.dx + blockIdx.x * p.columns;
    for (u64 column = (u64)threadIdx.x * N; column < p.columns; column += (u64)blockDim.x * N) {
        const E* dy = (const E*)p.dy + column;
        Vector<E, N> result;
        if (end == first + 1) {
            result = *(const Vector<E, N>*)(dy + p.places[first] * p.columns);
        } else {
            float sums[N] = {};
#pragma unroll 4
            for (u32 i = first; i < end; i++) {
                Vector<E, N> copy = *(const Vector<E, N>*)(dy + p.places[i] * p.columns);
#pragma unroll
                for (int k = 0; k < N; k++) sums[k] += to_f32(copy.at[k]);
            }
            round_into(result, sums);
        }
        *(Vector<E, N>*)(dx + column) = result;
    }
}

template <class E> INLINE void collect(const CopiesCollect& p) {
    constexpr int N = Width<E>::value;
    if (p.columns % N == 0 && is_aligned<E, N>(p.dy) && is_aligned<E, N>(p.dx)) {
        collect_by<N, E>(p);
    } else {
        collect_by<1, E>(p);
    }
}

extern "C" __global__ void copies_collect_f32(CopiesCollect p) { collect<f32>(p); }
extern "C" __global__ void copies_collect_bf16(CopiesCollect p) { collect<bf16>(p); }
