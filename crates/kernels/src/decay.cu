// The formulas are those of decay.rs.

struct Decay {
    // In `decay_backward` replaced by their gradients.
    void* a;
    void* b;
    const void* a_log;
    const void* dt_bias;
    // In `decay_backward` their gradients, replaced by what those of dt_bias and a_log are the sums of.
    float* step;
    float* decay;
    u64 elements;
    u32 heads;
    float scale;
};

INLINE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
INLINE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class X, class W> INLINE void forward(const Decay& p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    u32 head = i % p.heads;
    float delta = softplus(p.scale * to_f32(((const X*)p.a)[i]) + to_f32(((const W*)p.dt_bias)[head]));
    p.decay[i] = -expf(to_f32(((const W*)p.a_log)[head])) * delta;
    p.step[i] = p.b ? sigmoid(to_f32(((const X*)p.b)[i])) : delta;
}

template <class X, class W> INLINE void backward(const Decay& p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    u32 head = i % p.heads;
    X* a = (X*)p.a + i;
    float u = p.scale * to_f32(*a) + to_f32(((const W*)p.dt_bias)[head]);
    float rate = -expf(to_f32(((const W*)p.a_log)[head]));
    float dstep = p.step[i], ddelta = rate * p.decay[i];
    if (p.b) {
        X* b = (X*)p.b + i;
        float s = sigmoid(to_f32(*b));
        *b = from_f32<X>(dstep * s * (1.0f - s));
    } else {
        ddelta += dstep;
    }
    float du = sigmoid(u) * ddelta;
    p.decay[i] *= rate * softplus(u);
    p.step[i] = du;
    *a = from_f32<X>(p.scale * du);
}

#define DECAY(NAME, BODY, X, W) extern "C" __global__ void NAME##_##X##_##W(Decay p) { BODY<X, W>(p); }
#define OF_TYPES(NAME, BODY)       \
    DECAY(NAME, BODY, f32, f32)    \
    DECAY(NAME, BODY, f32, bf16)   \
    DECAY(NAME, BODY, bf16, f32)   \
    DECAY(NAME, BODY, bf16, bf16)
OF_TYPES(decay_forward, forward)
OF_TYPES(decay_backward, backward)
