// AdamW, the norm of gradients and their zeros, of all tensors in one launch: see adamw.rs. Every tensor is cut into
// chunks, and a block finds the tensor of its chunk in a table.

constexpr u64 CHUNK = 8192;
constexpr int LANES = 4;

// The tensor that a chunk is of: the last that begins at it or before.
template <class Tensor> INLINE const Tensor& tensor_of(const Tensor* tensors, u32 count, u64 chunk) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (tensors[middle].first_chunk <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return tensors[low];
}

INLINE u64 smaller(u64 a, u64 b) { return a < b ? a : b; }

struct Trained {
    u64 first_chunk;
    u64 elements;
    const float* g;
    float* p;
    float* m;
    float* v;
    // Where p is written once more in bf16, or null.
    bf16* rounded;
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
    Vector<float, N> g = *(const Vector<float, N>*)(t.g + i);
    Vector<float, N> p = *(const Vector<float, N>*)(t.p + i);
    Vector<float, N> m = *(const Vector<float, N>*)(t.m + i);
    Vector<float, N> v = *(const Vector<float, N>*)(t.v + i);
    Vector<bf16, N> rounded;
#pragma unroll
    for (int k = 0; k < N; k++) {
        float scaled = g.at[k] * f.grad_scale;
        m.at[k] += (scaled - m.at[k]) * f.rest1;
        v.at[k] = v.at[k] * f.b2 + scaled * scaled * f.rest2;
        p.at[k] = p.at[k] * decay - f.step_size * (m.at[k] / (sqrtf(v.at[k]) / f.root2 + f.eps));
        rounded.at[k] = from_f32<bf16>(p.at[k]);
    }
    *(Vector<float, N>*)(t.p + i) = p;
    *(Vector<float, N>*)(t.m + i) = m;
    *(Vector<float, N>*)(t.v + i) = v;
    if (t.rounded) *(Vector<bf16, N>*)(t.rounded + i) = rounded;
}

extern "C" __global__ void adamw_update(AdamWUpdate p) {
    const Trained t = tensor_of(p.tensors, p.count, blockIdx.x);
    u64 start = (blockIdx.x - t.first_chunk) * CHUNK, end = smaller(start + CHUNK, t.elements);
    float decay = (float)(1.0 - p.learning_rate * t.weight_decay);
    bool aligned = ((u64)t.g | (u64)t.p | (u64)t.m | (u64)t.v | (u64)t.rounded) % 16 == 0;
    u64 whole = aligned ? start + (end - start) / LANES * LANES : start;
    for (u64 i = start + threadIdx.x * LANES; i < whole; i += blockDim.x * LANES) update_at<LANES>(p, t, decay, i);
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
