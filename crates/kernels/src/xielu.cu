// The formulas are those of xielu.rs.

// α₊, α₋, β, ε.
struct Constants {
    float positive;
    float negative;
    float beta;
    float eps;
};

struct XieluForward {
    const void* x;
    void* y;
    u64 elements;
    Constants constants;
};

template <class T> INLINE void forward(const XieluForward& p) {
    constexpr int N = Width<T>::value;
    const Constants& c = p.constants;
    Span span = span_of_thread<N>(p.elements, is_aligned<T, N>(p.x) && is_aligned<T, N>(p.y));
    float x[N];
    load_span(x, (const T*)p.x, span);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float v = x[i];
        float curved = v > 0.0f ? c.positive * v * v : c.negative * (expm1f(fminf(v, c.eps)) - v);
        x[i] = curved + c.beta * v;
    }
    store_span((T*)p.y, x, span);
}

extern "C" __global__ void xielu_forward_f32(XieluForward p) { forward<f32>(p); }
extern "C" __global__ void xielu_forward_bf16(XieluForward p) { forward<bf16>(p); }

struct XieluBackward {
    // Replaced by y and dx.
    void* dy;
    void* x;
    // Two for each block, without σ(p) and σ(n): dp and dn.
    float* sums;
    u64 elements;
    Constants constants;
    // Elements of a block.
    u32 chunk;
};

template <class T> INLINE void backward(const XieluBackward& p) {
    constexpr int N = Width<T>::value;
    __shared__ float partial[32];
    const Constants& c = p.constants;
    u64 start = (u64)blockIdx.x * p.chunk, left = p.elements - start;
    u32 elements = left < p.chunk ? (u32)left : p.chunk;
    T* dys = (T*)p.dy + start;
    T* xs = (T*)p.x + start;
    bool aligned = is_aligned<T, N>(dys) && is_aligned<T, N>(xs);
    float positive = 0.0f, negative = 0.0f;
    for (u32 first = threadIdx.x * N; first < elements; first += blockDim.x * N) {
        u32 count = elements - first < N ? elements - first : N;
        Span span{first, count, aligned && count == N};
        float dy[N], x[N];
        load_span(dy, dys, span);
        load_span(x, xs, span);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float v = x[i], slope, curved;
            if (v > 0.0f) {
                positive += dy[i] * (v * v);
                slope = 2.0f * c.positive * v;
                curved = c.positive * v * v;
            } else {
                float below = expm1f(fminf(v, c.eps)) - v;
                negative += dy[i] * below;
                slope = c.negative * ((v < c.eps ? expf(v) : 0.0f) - 1.0f);
                curved = c.negative * below;
            }
            x[i] = dy[i] * (slope + c.beta);
            dy[i] = curved + c.beta * v;
        }
        store_span(dys, dy, span);
        store_span(xs, x, span);
    }
    positive = block_sum(positive, partial);
    negative = block_sum(negative, partial);
    if (threadIdx.x == 0) {
        p.sums[2 * blockIdx.x] = positive;
        p.sums[2 * blockIdx.x + 1] = negative;
    }
}

extern "C" __global__ void xielu_backward_f32(XieluBackward p) { backward<f32>(p); }
extern "C" __global__ void xielu_backward_bf16(XieluBackward p) { backward<bf16>(p); }

struct XieluSums {
    float* sums;
    u32 count;
};

// One block leaves the sum of `count` pairs in the first.
extern "C" __global__ void xielu_sums(XieluSums p) {
    __shared__ float partial[32];
    float positive = 0.0f, negative = 0.0f;
    for (u32 i = threadIdx.x; i < p.count; i += blockDim.x) {
        positive += p.sums[2 * i];
        negative += p.sums[2 * i + 1];
    }
    positive = block_sum(positive, partial);
    negative = block_sum(negative, partial);
    if (threadIdx.x == 0) {
        p.sums[0] = positive;
        p.sums[1] = negative;
    }
}
