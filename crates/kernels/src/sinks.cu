// The formulas are those of sinks.rs.

struct Sinks {
    const float* sinks;
    void* out;
    float* lse;
    const float* delta;
    float* dsinks;
    u32 queries;
    u32 heads;
    u32 width;
};

template <class T> INLINE void forward(const Sinks& p) {
    u64 row = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= (u64)p.queries * p.heads) return;
    float lse = p.lse[row], sink = p.sinks[row % p.heads];
    float kept = 1.0f / (1.0f + expf(sink - lse));
    T* out = (T*)p.out + row * p.width;
    for (u32 i = threadIdx.x % 32; i < p.width; i += 32) out[i] = from_f32<T>(to_f32(out[i]) * kept);
    __syncwarp();
    if (threadIdx.x % 32 == 0) p.lse[row] = fmaxf(lse, sink) + log1pf(expf(-fabsf(lse - sink)));
}

extern "C" __global__ void sinks_forward_f32(Sinks p) { forward<f32>(p); }
extern "C" __global__ void sinks_forward_bf16(Sinks p) { forward<bf16>(p); }

extern "C" __global__ void sinks_backward(Sinks p) {
    __shared__ float partial[32];
    u32 head = blockIdx.x;
    float sink = p.sinks[head], sum = 0.0f;
    for (u32 query = threadIdx.x; query < p.queries; query += blockDim.x) {
        u64 at = (u64)query * p.heads + head;
        sum -= expf(sink - p.lse[at]) * p.delta[at];
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) p.dsinks[head] += sum;
}
