// AdamW, the norm of gradients and their zeros, of all tensors in one launch: see adamw.rs. Every tensor is cut into
// chunks, and a block finds the tensor of its chunk in a table.

constexpr int LANES = 4;
// Elements that an update handles at once: 16 bytes of a half.
constexpr int TOGETHER = 8;

struct Trained {
    u64 first_chunk;
    u64 elements;
    const float* g;
    // float, or the high halves with the low ones in `low`.
    void* p;
    u16* low;
    float* m;
    float* v;
    double weight_decay;
};

struct AdamWUpdate {
    const Trained* tensors;
    double learning_rate;
    float grad_scale;
    float rest1;
    float b2;
    float rest2;
    float step_size;
    float root2;
    float eps;
    u32 count;
};

template <int N> INLINE void update_at(const AdamWUpdate& f, const Trained& t, float decay, u64 i) {
    float p[N], g[N], m[N], v[N];
    load_floats(g, t.g + i);
    load_master(p, t.p, t.low, i);
    load_floats(m, (const float*)t.m + i);
    load_floats(v, (const float*)t.v + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float scaled = g[k] * f.grad_scale;
        m[k] += (scaled - m[k]) * f.rest1;
        v[k] = v[k] * f.b2 + scaled * scaled * f.rest2;
        p[k] = p[k] * decay - f.step_size * (m[k] / (sqrtf(v[k]) / f.root2 + f.eps));
    }
    store_master(t.p, t.low, p, i);
    store_floats(t.m + i, m);
    store_floats(t.v + i, v);
}

extern "C" __global__ void adamw_update(AdamWUpdate p) {
    const Trained t = tensor_of(p.tensors, p.count, blockIdx.x);
    u64 start = (blockIdx.x - t.first_chunk) * CHUNK, end = smaller(start + CHUNK, t.elements);
    float decay = (float)(1.0 - p.learning_rate * t.weight_decay);
    bool aligned = ((u64)t.g | (u64)t.p | (u64)t.low | (u64)t.m | (u64)t.v) % 16 == 0;
    u64 whole = aligned ? start + (end - start) / TOGETHER * TOGETHER : start;
    for (u64 i = start + threadIdx.x * TOGETHER; i < whole; i += blockDim.x * TOGETHER) update_at<TOGETHER>(p, t, decay, i);
    for (u64 i = whole + threadIdx.x; i < end; i += blockDim.x) update_at<1>(p, t, decay, i);
}

struct Summed {
    u64 first_chunk;
    u64 elements;
    const float* g;
};

struct AdamWSquares {
    const Summed* tensors;
    // Of each chunk.
    double* sums;
    u32 count;
};

extern "C" __global__ void adamw_squares(AdamWSquares p) {
    __shared__ float partial[32];
    const Summed t = tensor_of(p.tensors, p.count, blockIdx.x);
    u64 start = (blockIdx.x - t.first_chunk) * CHUNK, end = smaller(start + CHUNK, t.elements);
    u64 whole = (u64)t.g % 16 == 0 ? start + (end - start) / LANES * LANES : start;
    float sum = 0.0f;
#pragma unroll 4
    for (u64 i = start + threadIdx.x * LANES; i < whole; i += blockDim.x * LANES) {
        Vector<float, LANES> g = *(const Vector<float, LANES>*)(t.g + i);
#pragma unroll
        for (int k = 0; k < LANES; k++) sum += g.at[k] * g.at[k];
    }
    for (u64 i = whole + threadIdx.x; i < end; i += blockDim.x) sum += t.g[i] * t.g[i];
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) p.sums[blockIdx.x] = (double)sum;
}

struct AdamWTotal {
    const double* sums;
    double* total;
    u64 count;
};

constexpr u32 TOTAL_THREADS = 1024;

// One block: each thread adds the sums of its own, then they add up in pairs.
extern "C" __global__ void adamw_total(AdamWTotal p) {
    __shared__ double partial[TOTAL_THREADS];
    double sum = 0.0;
#pragma unroll 4
    for (u64 i = threadIdx.x; i < p.count; i += TOTAL_THREADS) sum += p.sums[i];
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (u32 half = TOTAL_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) *p.total = partial[0];
}

struct Zeroed {
    u64 first_chunk;
    u64 elements;
    float* values;
};

struct AdamWZero {
    const Zeroed* tensors;
    u32 count;
};

extern "C" __global__ void adamw_zero(AdamWZero p) {
    const Zeroed t = tensor_of(p.tensors, p.count, blockIdx.x);
    u64 start = (blockIdx.x - t.first_chunk) * CHUNK, end = smaller(start + CHUNK, t.elements);
    u64 whole = (u64)t.values % 16 == 0 ? start + (end - start) / LANES * LANES : start;
    Vector<float, LANES> zeros{};
    for (u64 i = start + threadIdx.x * LANES; i < whole; i += blockDim.x * LANES) {
        *(Vector<float, LANES>*)(t.values + i) = zeros;
    }
    for (u64 i = whole + threadIdx.x; i < end; i += blockDim.x) t.values[i] = 0.0f;
}
