// Numbers as in random.rs, but for the last digits of the machine's logarithm and cosine.

struct FillNormal {
    void* out;
    u64 elements;
    u64 key;
    double scale;
};

INLINE double uniform(u64 key, u64 index) { return (double)(hash(key, index) >> 11) * (1.0 / 9007199254740992.0); }

template <class T> INLINE void fill(const FillNormal& p) {
    constexpr int N = Width<T>::value;
    Span span = span_of_thread<N>(p.elements, is_aligned<T, N>(p.out));
    float x[N] = {};
#pragma unroll
    for (int i = 0; i < N; i++) {
        u64 index = span.first + i;
        double u = uniform(p.key, 2 * index), v = uniform(p.key, 2 * index + 1);
        x[i] = (float)(sqrt(-2.0 * log(1.0 - u)) * cos(6.283185307179586 * v) * p.scale);
    }
    store_span((T*)p.out, x, span);
}

extern "C" __global__ void fill_normal_f32(FillNormal p) { fill<f32>(p); }
extern "C" __global__ void fill_normal_bf16(FillNormal p) { fill<bf16>(p); }

struct AddUniform {
    void* out;
    u64 elements;
    u64 key;
    u64 first;
    float scale;
};

template <class T> INLINE void add_uniform(const AddUniform& p) {
    constexpr int N = Width<T>::value;
    Span span = span_of_thread<N>(p.elements, is_aligned<T, N>(p.out));
    float x[N];
    load_span(x, (const T*)p.out, span);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] += p.scale * (float)(2.0 * uniform(p.key, p.first + span.first + i) - 1.0);
    store_span((T*)p.out, x, span);
}

extern "C" __global__ void add_uniform_f32(AddUniform p) { add_uniform<f32>(p); }
extern "C" __global__ void add_uniform_bf16(AddUniform p) { add_uniform<bf16>(p); }
