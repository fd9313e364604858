// Updates that treat every element alike, of all weights in one launch: see update/mod.rs and update/rules.rs.

constexpr int MOST_STATES = 3;
// Elements that a thread handles at once: 16 bytes of a half.
constexpr int TOGETHER = 8;
// Elements of a block of 8 bits, and entries of a table.
constexpr u32 BLOCK = 256;

struct Updated {
    u64 first_chunk;
    u64 elements;
    const float* g;
    // float, or the high halves with the low ones in `low`.
    void* p;
    u16* low;
    // floats, or bytes that are entries of a table.
    void* states[MOST_STATES];
    float* absmax[MOST_STATES];
    u64 group;
};

struct Update {
    const Updated* tensors;
    const float* tables[MOST_STATES];
    float constants[12];
    float factors[4][4];
    u32 count;
};

struct Sgd {
    static constexpr int STATES = 0;
    static __device__ __forceinline__ void apply(const float* c, const float* f, float g, float& p, float*) {
        g = g * c[0] + f[1] * p;
        p -= f[0] * g;
    }
};

struct Momentum {
    static constexpr int STATES = 1;
    static __device__ __forceinline__ void apply(const float* c, const float* f, float g, float& p, float* s) {
        g = g * c[0] + f[1] * p;
        s[0] = c[1] * s[0] + c[2] * g;
        p -= f[0] * (c[3] * s[0] + c[4] * g);
    }
};

struct AdamW {
    static constexpr int STATES = 2;
    static __device__ __forceinline__ void apply(const float* c, const float* f, float g, float& p, float* s) {
        g = g * c[0];
        s[0] += (g - s[0]) * c[1];
        s[1] = s[1] * c[2] + g * g * c[3];
        p = p * f[1] - f[0] * (s[0] / (sqrtf(s[1]) / c[4] + c[5]));
    }
};

struct Lion {
    static constexpr int STATES = 1;
    static __device__ __forceinline__ void apply(const float* c, const float* f, float g, float& p, float* s) {
        g = g * c[0];
        float direction = s[0] * c[1] + g * c[2];
        float step = direction > 0.0f ? f[0] : direction < 0.0f ? -f[0] : 0.0f;
        p = p * f[1] - step;
        s[0] = s[0] * c[3] + g * c[4];
    }
};

struct AdEMAMix {
    static constexpr int STATES = 3;
    static __device__ __forceinline__ void apply(const float* c, const float* f, float g, float& p, float* s) {
        g = g * c[0];
        s[0] = s[0] * c[1] + g * c[2];
        s[1] = s[1] * c[3] + g * c[4];
        s[2] = s[2] * c[5] + g * g * c[6];
        float mixed = s[0] / c[7] + c[8] * s[1];
        p = p * f[1] - f[0] * (mixed / (sqrtf(s[2]) / c[9] + c[10]));
    }
};

struct ScheduleFree {
    static constexpr int STATES = 2;
    static __device__ __forceinline__ void apply(const float* c, const float* f, float g, float& y, float* s) {
        g = g * c[0];
        s[1] = s[1] * c[1] + g * g * c[2];
        float d = g / (sqrtf(s[1] / c[3]) + c[4]) + f[2] * y;
        y = y + c[5] * (s[0] - y) + f[1] * d;
        s[0] -= f[0] * d;
    }
};

struct Average {
    static constexpr int STATES = 1;
    static __device__ __forceinline__ void apply(const float* c, const float*, float z, float& p, float* s) {
        s[0] = p;
        p += c[0] * (z - p);
    }
};

struct Replace {
    static constexpr int STATES = 0;
    static __device__ __forceinline__ void apply(const float*, const float*, float value, float& p, float*) { p = value; }
};

template <class Rule, int N> INLINE void update_at(const Update& u, const Updated& t, u64 i) {
    float p[N], g[N], states[MOST_STATES][N];
    load_floats(g, t.g + i);
    load_master(p, t.p, t.low, i);
#pragma unroll
    for (int s = 0; s < Rule::STATES; s++) load_floats(states[s], (const float*)t.states[s] + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float of_element[MOST_STATES];
#pragma unroll
        for (int s = 0; s < Rule::STATES; s++) of_element[s] = states[s][k];
        Rule::apply(u.constants, u.factors[t.group], g[k], p[k], of_element);
#pragma unroll
        for (int s = 0; s < Rule::STATES; s++) states[s][k] = of_element[s];
    }
    store_master(t.p, t.low, p, i);
#pragma unroll
    for (int s = 0; s < Rule::STATES; s++) store_floats((float*)t.states[s] + i, states[s]);
}

template <class Rule> INLINE void update(const Update& u) {
    const Updated t = tensor_of(u.tensors, u.count, blockIdx.x);
    u64 start = (blockIdx.x - t.first_chunk) * CHUNK, end = smaller(start + CHUNK, t.elements);
    u64 addresses = (u64)t.g | (u64)t.p | (u64)t.low;
#pragma unroll
    for (int s = 0; s < Rule::STATES; s++) addresses |= (u64)t.states[s];
    u64 whole = addresses % 16 == 0 ? start + (end - start) / TOGETHER * TOGETHER : start;
    for (u64 i = start + threadIdx.x * TOGETHER; i < whole; i += blockDim.x * TOGETHER) update_at<Rule, TOGETHER>(u, t, i);
    for (u64 i = whole + threadIdx.x; i < end; i += blockDim.x) update_at<Rule, 1>(u, t, i);
}

// `nearest` of update/blocks.rs.
INLINE u8 nearest(const float* table, float x) {
    u32 below = 0;
#pragma unroll
    for (u32 half = BLOCK / 2; half > 0; half /= 2) {
        if (table[below + half] <= x) below += half;
    }
    u32 above = below + 1 < BLOCK ? below + 1 : below;
    return (u8)(table[above] - x < x - table[below] ? above : below);
}

// Blocks of 256 threads: a thread has one element of a block of 8 bits at a time.
template <class Rule> INLINE void update_blocks(const Update& u) {
    __shared__ float tables[Rule::STATES][BLOCK];
    __shared__ float partial[32];
    const Updated t = tensor_of(u.tensors, u.count, blockIdx.x);
#pragma unroll
    for (int s = 0; s < Rule::STATES; s++) tables[s][threadIdx.x] = u.tables[s][threadIdx.x];
    __syncthreads();
    u64 start = (blockIdx.x - t.first_chunk) * CHUNK, end = smaller(start + CHUNK, t.elements);
    for (u64 first = start; first < end; first += BLOCK) {
        u64 i = first + threadIdx.x;
        bool inside = i < end;
        float p[1] = {0.0f}, states[Rule::STATES] = {};
        if (inside) {
#pragma unroll
            for (int s = 0; s < Rule::STATES; s++) {
                states[s] = tables[s][((const u8*)t.states[s])[i]] * t.absmax[s][first / BLOCK];
            }
            load_master(p, t.p, t.low, i);
            Rule::apply(u.constants, u.factors[t.group], t.g[i], p[0], states);
            store_master(t.p, t.low, p, i);
        }
#pragma unroll
        for (int s = 0; s < Rule::STATES; s++) {
            float absmax = block_max(fabsf(states[s]), partial);
            float factor = absmax > 0.0f ? 1.0f / absmax : 0.0f;
            if (inside) ((u8*)t.states[s])[i] = nearest(tables[s], states[s] * factor);
            // All have read the old one: the maximum took a barrier.
            if (threadIdx.x == 0) t.absmax[s][first / BLOCK] = absmax;
        }
    }
}

extern "C" __global__ void update_sgd(Update u) { update<Sgd>(u); }
extern "C" __global__ void update_momentum(Update u) { update<Momentum>(u); }
extern "C" __global__ void update_adamw(Update u) { update<AdamW>(u); }
extern "C" __global__ void update_adamw_blocks(Update u) { update_blocks<AdamW>(u); }
extern "C" __global__ void update_lion(Update u) { update<Lion>(u); }
extern "C" __global__ void update_lion_blocks(Update u) { update_blocks<Lion>(u); }
extern "C" __global__ void update_ademamix(Update u) { update<AdEMAMix>(u); }
extern "C" __global__ void update_ademamix_blocks(Update u) { update_blocks<AdEMAMix>(u); }
extern "C" __global__ void update_schedule_free(Update u) { update<ScheduleFree>(u); }
extern "C" __global__ void update_average(Update u) { update<Average>(u); }
extern "C" __global__ void update_replace(Update u) { update<Replace>(u); }
