// Losses beside cross-entropy, one row of logits by one block: see objective.rs. Positions hold what
// cross_entropy.cu's forward has left.

constexpr int STATISTICS = 4;
constexpr int TOP = 20;
constexpr float TOP_ENTROPY = 3.0f;

struct Objective {
    void* logits;
    const void* reference;
    const u32* targets;
    // nll, lse, whether the target is the largest, and the loss, of each row.
    float* positions;
    u64 vocabulary;
    // 1 smoothed, 2 DFT, 3 EAFT, 4 ASFT.
    u32 kind;
    // ε or α.
    float strength;
    float scale;
    // 0 where logits are not capped.
    float softcap;
};

INLINE float minus_infinity() { return __uint_as_float(0xff800000u); }

template <class T> INLINE float largest_of_row(const T* z, u64 v, float* partial) {
    float own = minus_infinity();
    for (u64 j = threadIdx.x; j < v; j += blockDim.x) own = fmaxf(own, to_f32(z[j]));
    return block_max(own, partial);
}

// Entropy of the softmax of the largest logits: the largest of all, then the largest below it, and so on.
template <class T> INLINE float entropy_of_largest(const T* z, u64 v, float* partial) {
    float top = largest_of_row(z, v, partial), at = top, sum = 0.0f, weighed = 0.0f;
    for (u64 left = v < TOP ? v : TOP; left > 0 && at > minus_infinity();) {
        float own_count = 0.0f, own_below = minus_infinity();
        for (u64 j = threadIdx.x; j < v; j += blockDim.x) {
            float value = to_f32(z[j]);
            if (value == at) own_count += 1.0f;
            if (value < at) own_below = fmaxf(own_below, value);
        }
        u64 count = (u64)block_sum(own_count, partial);
        if (count > left) count = left;
        sum += (float)count * expf(at - top);
        weighed += (float)count * expf(at - top) * (at - top);
        left -= count;
        at = block_max(own_below, partial);
    }
    return fmaxf(logf(sum) - weighed / sum, 0.0f);
}

template <class T> INLINE void backward(const Objective& p, float* partial) {
    u64 row = blockIdx.x, v = p.vocabulary;
    T* z = (T*)p.logits + row * v;
    const T* q = (const T*)p.reference + row * v;
    float* position = p.positions + row * STATISTICS;
    float nll = position[0], lse = position[1], value = nll;
    float softmax = 1.0f, of_target = 1.0f, everywhere = 0.0f, of_reference = 0.0f, lse_q = 0.0f;
    if (p.kind == 1) {
        float own = 0.0f;
        for (u64 j = threadIdx.x; j < v; j += blockDim.x) own += to_f32(z[j]);
        float mean = block_sum(own, partial) / (float)v;
        value = (1.0f - p.strength) * nll + p.strength * (lse - mean);
        of_target = 1.0f - p.strength;
        everywhere = p.strength / (float)v;
    } else if (p.kind == 2) {
        softmax = of_target = expf(-nll);
        value = softmax * nll;
    } else if (p.kind == 3) {
        softmax = of_target = powf(entropy_of_largest(z, v, partial) / TOP_ENTROPY, p.strength);
        value = softmax * nll;
    } else if (p.kind == 4) {
        float largest = largest_of_row(q, v, partial), own = 0.0f;
        for (u64 j = threadIdx.x; j < v; j += blockDim.x) own += expf(to_f32(q[j]) - largest);
        lse_q = largest + logf(block_sum(own, partial));
        own = 0.0f;
        for (u64 j = threadIdx.x; j < v; j += blockDim.x) {
            float log_q = to_f32(q[j]) - lse_q, of_q = expf(log_q);
            if (of_q > 0.0f) own += of_q * (log_q - (to_f32(z[j]) - lse));
        }
        of_target = expf(-nll);
        value = of_target * nll + p.strength * block_sum(own, partial);
        softmax = of_target + p.strength;
        of_reference = p.strength;
    }
    u32 target = p.targets[row];
    for (u64 j = threadIdx.x; j < v; j += blockDim.x) {
        float at = to_f32(z[j]);
        float d = softmax * expf(at - lse) - everywhere;
        if (p.kind == 4) d -= of_reference * expf(to_f32(q[j]) - lse_q);
        if (j == target) d -= of_target;
        if (p.softcap > 0.0f) d *= 1.0f - at / p.softcap * (at / p.softcap);
        z[j] = from_f32<T>(p.scale * d);
    }
    if (threadIdx.x == 0) position[3] = value;
}

extern "C" __global__ void objective_backward_f32(Objective p) {
    __shared__ float partial[32];
    backward<f32>(p, partial);
}
extern "C" __global__ void objective_backward_bf16(Objective p) {
    __shared__ float partial[32];
    backward<bf16>(p, partial);
}
