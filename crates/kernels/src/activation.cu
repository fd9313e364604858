// The formulas are those of activation.rs; activation_functions.cuh has the activations.

struct ActivationForward {
    const void* x;
    void* y;
    u64 elements;
    u32 activation;
};

template <class T, class Act> INLINE void forward(const ActivationForward& p) {
    constexpr int N = Width<T>::value;
    Span span = span_of_thread<N>(p.elements, is_aligned<T, N>(p.x) && is_aligned<T, N>(p.y));
    float x[N];
    load_span(x, (const T*)p.x, span);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = Act::value(x[i], Act::sigmoid(x[i]));
    store_span((T*)p.y, x, span);
}

extern "C" __global__ void activation_forward_f32(ActivationForward p) { WITH_ACTIVATION(forward, f32, p) }
extern "C" __global__ void activation_forward_bf16(ActivationForward p) { WITH_ACTIVATION(forward, bf16, p) }

struct ActivationBackward {
    // Replaced by y and dx.
    void* dy;
    void* x;
    u64 elements;
    u32 activation;
};

template <class T, class Act> INLINE void backward(const ActivationBackward& p) {
    constexpr int N = Width<T>::value;
    Span span = span_of_thread<N>(p.elements, is_aligned<T, N>(p.dy) && is_aligned<T, N>(p.x));
    float dy[N], x[N];
    load_span(dy, (const T*)p.dy, span);
    load_span(x, (const T*)p.x, span);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float s = Act::sigmoid(x[i]), y = Act::value(x[i], s);
        x[i] = dy[i] * Act::slope(x[i], s);
        dy[i] = y;
    }
    store_span((T*)p.dy, dy, span);
    store_span((T*)p.x, x, span);
}

extern "C" __global__ void activation_backward_f32(ActivationBackward p) { WITH_ACTIVATION(backward, f32, p) }
extern "C" __global__ void activation_backward_bf16(ActivationBackward p) { WITH_ACTIVATION(backward, bf16, p) }
