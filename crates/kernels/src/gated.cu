// The formulas are those of gated.rs; activation_functions.cuh has the activations.

struct GatedForward {
    const void* g;
    const void* u;
    void* y;
    u64 elements;
    u32 activation;
};

template <class T, class Act> INLINE void forward(const GatedForward& p) {
    constexpr int N = Width<T>::value;
    bool aligned = is_aligned<T, N>(p.g) && is_aligned<T, N>(p.u) && is_aligned<T, N>(p.y);
    Span span = span_of_thread<N>(p.elements, aligned);
    float g[N], u[N];
    load_span(g, (const T*)p.g, span);
    load_span(u, (const T*)p.u, span);
#pragma unroll
    for (int i = 0; i < N; i++) g[i] = Act::value(g[i], Act::sigmoid(g[i])) * Act::factor(u[i]);
    store_span((T*)p.y, g, span);
}

extern "C" __global__ void gated_forward_f32(GatedForward p) { WITH_ACTIVATION(forward, f32, p) }
extern "C" __global__ void gated_forward_bf16(GatedForward p) { WITH_ACTIVATION(forward, bf16, p) }

struct GatedBackward {
    // Replaced by y, with `leaves_y`, dg and du.
    void* dy;
    void* g;
    void* u;
    u64 elements;
    u32 activation;
    u32 leaves_y;
};

template <class T, class Act> INLINE void backward(const GatedBackward& p) {
    constexpr int N = Width<T>::value;
    bool aligned = is_aligned<T, N>(p.dy) && is_aligned<T, N>(p.g) && is_aligned<T, N>(p.u);
    Span span = span_of_thread<N>(p.elements, aligned);
    float dy[N], g[N], u[N];
    load_span(dy, (const T*)p.dy, span);
    load_span(g, (const T*)p.g, span);
    load_span(u, (const T*)p.u, span);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float s = Act::sigmoid(g[i]), value = Act::value(g[i], s), factor = Act::factor(u[i]);
        float du = dy[i] * value * Act::factor_slope(u[i]), y = value * factor;
        g[i] = dy[i] * factor * Act::slope(g[i], s);
        u[i] = du;
        dy[i] = y;
    }
    if (p.leaves_y) store_span((T*)p.dy, dy, span);
    store_span((T*)p.g, g, span);
    store_span((T*)p.u, u, span);
}

extern "C" __global__ void gated_backward_f32(GatedBackward p) { WITH_ACTIVATION(backward, f32, p) }
extern "C" __global__ void gated_backward_bf16(GatedBackward p) { WITH_ACTIVATION(backward, bf16, p) }
