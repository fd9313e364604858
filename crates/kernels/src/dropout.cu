// The mask is that of dropout.rs, bit for bit.

struct Dropout {
    const void* x;
    void* y;
    u64 elements;
    u64 key;
    u64 threshold;
    float scale;
    u32 accumulate;
};

template <class T> INLINE void apply(const Dropout& p) {
    constexpr int N = Width<T>::value;
    Span span = span_of_thread<N>(p.elements, is_aligned<T, N>(p.x) && is_aligned<T, N>(p.y));
    float x[N], before[N] = {};
    load_span(x, (const T*)p.x, span);
    if (p.accumulate) load_span(before, (const T*)p.y, span);
#pragma unroll
    for (int i = 0; i < N; i++) {
        bool keep = (hash(p.key, span.first + i) >> 32) >= p.threshold;
        x[i] = before[i] + (keep ? x[i] * p.scale : 0.0f);
    }
    store_span((T*)p.y, x, span);
}

extern "C" __global__ void dropout_f32(Dropout p) { apply<f32>(p); }
extern "C" __global__ void dropout_bf16(Dropout p) { apply<bf16>(p); }
