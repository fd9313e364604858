// The formulas are those of latent.rs. A block has one token, its threads share the columns of all heads.

struct LatentHeads {
    void* queries;
    void* key_values;
    void* shared;
    void* q;
    void* k;
    void* v;
    u32 heads;
    u32 passed;
    u32 rotated;
    u32 value;
};

#define FOR_ITEMS(i, count) for (u32 i = threadIdx.x; i < (count); i += blockDim.x)

template <class T> INLINE void forward(const LatentHeads& p) {
    u32 d = p.passed + p.rotated, kv_width = p.passed + p.value;
    u64 token = blockIdx.x, first = token * p.heads * d;
    const T* queries = (const T*)p.queries + first;
    const T* kv = (const T*)p.key_values + token * p.heads * kv_width;
    const T* shared = (const T*)p.shared + token * p.rotated;
    T* q = (T*)p.q + first;
    T* k = (T*)p.k + first;
    T* v = (T*)p.v + first;
    FOR_ITEMS(i, p.heads * d) {
        u32 head = i / d, column = i % d;
        bool turns = column < p.rotated;
        q[i] = queries[head * d + (turns ? p.passed + column : column - p.rotated)];
        k[i] = turns ? shared[column] : kv[head * kv_width + column - p.rotated];
        v[i] = column < p.value ? kv[head * kv_width + p.passed + column] : from_f32<T>(0.0f);
    }
}

template <class T> INLINE void backward(const LatentHeads& p) {
    u32 d = p.passed + p.rotated, kv_width = p.passed + p.value;
    u64 token = blockIdx.x, first = token * p.heads * d;
    T* queries = (T*)p.queries + first;
    T* kv = (T*)p.key_values + token * p.heads * kv_width;
    T* shared = (T*)p.shared + token * p.rotated;
    const T* dq = (const T*)p.q + first;
    const T* dk = (const T*)p.k + first;
    const T* dv = (const T*)p.v + first;
    FOR_ITEMS(i, p.heads * d) {
        u32 head = i / d, column = i % d;
        queries[head * d + (column < p.rotated ? p.passed + column : column - p.rotated)] = dq[i];
    }
    FOR_ITEMS(i, p.heads * kv_width) {
        u32 head = i / kv_width, column = i % kv_width;
        kv[i] = column < p.passed ? dk[head * d + p.rotated + column] : dv[head * d + column - p.passed];
    }
    FOR_ITEMS(i, p.rotated) {
        float sum = 0.0f;
        for (u32 head = 0; head < p.heads; head++) sum += to_f32(dk[head * d + i]);
        shared[i] = from_f32<T>(sum);
    }
}

extern "C" __global__ void latent_forward_f32(LatentHeads p) { forward<f32>(p); }
extern "C" __global__ void latent_forward_bf16(LatentHeads p) { forward<bf16>(p); }
extern "C" __global__ void latent_backward_f32(LatentHeads p) { backward<f32>(p); }
extern "C" __global__ void latent_backward_bf16(LatentHeads p) { backward<bf16>(p); }
