// The formulas are those of experts/mod.rs. A block has one row; 16 bytes at a time where rows and addresses allow.

#define FOR_COLUMNS(column, N, columns) for (u64 column = (u64)threadIdx.x * N; column < columns; column += (u64)blockDim.x * N)

struct ExpertsCombine {
    const void* x;
    void* y;
    const u32* rows;
    // One for each slot, or none: then all are 1.
    const float* weights;
    u64 columns;
    u32 top_k;
    u32 accumulate;
};

template <class T, int N> INLINE void combine_by(const ExpertsCombine& p) {
    u64 first = (u64)blockIdx.x * p.top_k;
    T* y = (T*)p.y + blockIdx.x * p.columns;
    FOR_COLUMNS(column, N, p.columns) {
        float sum[N];
        if (p.accumulate) {
            load_floats(sum, y + column);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = 0.0f;
        }
        for (u32 j = 0; j < p.top_k; j++) {
            float x[N], weight = p.weights ? p.weights[first + j] : 1.0f;
            load_floats(x, (const T*)p.x + p.rows[first + j] * p.columns + column);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += weight * x[i];
        }
        store_floats(y + column, sum);
    }
}

template <class T> INLINE void combine(const ExpertsCombine& p) {
    constexpr int N = Width<T>::value;
    if (p.columns % N == 0 && is_aligned<T, N>(p.x) && is_aligned<T, N>(p.y)) {
        combine_by<T, N>(p);
    } else {
        combine_by<T, 1>(p);
    }
}

extern "C" __global__ void experts_combine_f32(ExpertsCombine p) { combine<f32>(p); }
extern "C" __global__ void experts_combine_bf16(ExpertsCombine p) { combine<bf16>(p); }

struct ExpertsWeigh {
    // None where rows of z are scaled alone.
    const void* a;
    void* z;
    const u32* slots;
    const float* weights;
    float* dweights;
    u64 columns;
};

template <class T, int N> INLINE void weigh_by(const ExpertsWeigh& p, float* partial) {
    u32 slot = p.slots[blockIdx.x];
    float weight = p.weights[slot], sum = 0.0f;
    T* row = (T*)p.z + blockIdx.x * p.columns;
    FOR_COLUMNS(column, N, p.columns) {
        float z[N];
        load_floats(z, row + column);
        if (p.a) {
            float a[N];
            load_floats(a, (const T*)p.a + blockIdx.x * p.columns + column);
#pragma unroll
            for (int i = 0; i < N; i++) sum += a[i] * z[i];
        }
#pragma unroll
        for (int i = 0; i < N; i++) z[i] *= weight;
        store_floats(row + column, z);
    }
    if (!p.a) return;
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) p.dweights[slot] = sum;
}

template <class T> INLINE void weigh(const ExpertsWeigh& p, float* partial) {
    constexpr int N = Width<T>::value;
    if (p.columns % N == 0 && (!p.a || is_aligned<T, N>(p.a)) && is_aligned<T, N>(p.z)) {
        weigh_by<T, N>(p, partial);
    } else {
        weigh_by<T, 1>(p, partial);
    }
}

extern "C" __global__ void experts_weigh_f32(ExpertsWeigh p) {
    __shared__ float partial[32];
    weigh<f32>(p, partial);
}
extern "C" __global__ void experts_weigh_bf16(ExpertsWeigh p) {
    __shared__ float partial[32];
    weigh<bf16>(p, partial);
}

struct ExpertsWeighBias {
    const void* bias;
    const void* dy;
    const u32* slots;
    const u32* experts;
    float* dweights;
    u64 columns;
};

template <class B, class T> INLINE void weigh_bias(const ExpertsWeighBias& p, float* partial) {
    const B* bias = (const B*)p.bias + p.experts[blockIdx.x] * p.columns;
    const T* dy = (const T*)p.dy + blockIdx.x * p.columns;
    float sum = 0.0f;
    for (u64 i = threadIdx.x; i < p.columns; i += blockDim.x) sum += to_f32(bias[i]) * to_f32(dy[i]);
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) p.dweights[p.slots[blockIdx.x]] += sum;
}

extern "C" __global__ void experts_weigh_bias_f32_f32(ExpertsWeighBias p) {
    __shared__ float partial[32];
    weigh_bias<f32, f32>(p, partial);
}
extern "C" __global__ void experts_weigh_bias_f32_bf16(ExpertsWeighBias p) {
    __shared__ float partial[32];
    weigh_bias<f32, bf16>(p, partial);
}
extern "C" __global__ void experts_weigh_bias_bf16_bf16(ExpertsWeighBias p) {
    __shared__ float partial[32];
    weigh_bias<bf16, bf16>(p, partial);
}
