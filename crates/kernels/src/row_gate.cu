// The formulas are those of row_gate.rs. A block has one row.

struct RowGate {
    // Replaced by their gradients backward.
    void* g;
    void* x;
    // dy backward.
    void* y;
    u64 columns;
};

INLINE float sigmoid(float g) { return 1.0f / (1.0f + expf(-g)); }

template <class T> INLINE void forward(const RowGate& p) {
    float s = sigmoid(to_f32(((const T*)p.g)[blockIdx.x]));
    const T* x = (const T*)p.x + blockIdx.x * p.columns;
    T* y = (T*)p.y + blockIdx.x * p.columns;
    for (u64 i = threadIdx.x; i < p.columns; i += blockDim.x) y[i] = from_f32<T>(s * to_f32(x[i]));
}

template <class T> INLINE void backward(const RowGate& p, float* partial) {
    T* g = (T*)p.g + blockIdx.x;
    T* x = (T*)p.x + blockIdx.x * p.columns;
    const T* dy = (const T*)p.y + blockIdx.x * p.columns;
    float s = sigmoid(to_f32(*g)), sum = 0.0f;
    for (u64 i = threadIdx.x; i < p.columns; i += blockDim.x) {
        sum += to_f32(dy[i]) * to_f32(x[i]);
        x[i] = from_f32<T>(s * to_f32(dy[i]));
    }
    // Every thread has read g before the first barrier in it.
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) *g = from_f32<T>(s * (1.0f - s) * sum);
}

extern "C" __global__ void row_gate_forward_f32(RowGate p) { forward<f32>(p); }
extern "C" __global__ void row_gate_forward_bf16(RowGate p) { forward<bf16>(p); }
extern "C" __global__ void row_gate_backward_f32(RowGate p) {
    __shared__ float partial[32];
    backward<f32>(p, partial);
}
extern "C" __global__ void row_gate_backward_bf16(RowGate p) {
    __shared__ float partial[32];
    backward<bf16>(p, partial);
}
