// The formulas are those of dora.rs.

struct DoraFactors {
    const float* squares;
    const float* magnitude;
    const float* a_wt;
    const float* gram;
    const void* b;
    float* factors;
    u64 outputs;
    u32 rank;
    float scale;
};

// A thread has one row of the weight.
template <class T> INLINE void factors(const DoraFactors& p) {
    u64 j = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= p.outputs) return;
    const T* b = (const T*)p.b + j * p.rank;
    float with_w = 0.0f, with_itself = 0.0f;
    for (u32 i = 0; i < p.rank; i++) {
        float inner = 0.0f;
        for (u32 k = 0; k < p.rank; k++) inner += p.gram[i * p.rank + k] * to_f32(b[k]);
        with_w += to_f32(b[i]) * p.a_wt[i * p.outputs + j];
        with_itself += to_f32(b[i]) * inner;
    }
    float square = p.squares[j] + p.scale * (2.0f * with_w + p.scale * with_itself);
    float inverse = 1.0f / sqrtf(fmaxf(square, 1.17549435e-38f));
    p.factors[j] = p.magnitude[j] * inverse;
    p.factors[p.outputs + j] = inverse;
}
extern "C" __global__ void dora_factors_f32(DoraFactors p) { factors<f32>(p); }
extern "C" __global__ void dora_factors_bf16(DoraFactors p) { factors<bf16>(p); }

struct DoraScale {
    const float* factors;
    const void* x;
    const void* bias;
    void* y;
    u64 elements;
    u64 columns;
    float shift;
    u32 accumulate;
};

template <class T, class B> INLINE void scale(const DoraScale& p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    u64 column = i % p.columns;
    float y = (p.factors[column] - p.shift) * to_f32(((const T*)p.x)[i]);
    if (p.bias) y += to_f32(((const B*)p.bias)[column]);
    T* to = (T*)p.y + i;
    *to = from_f32<T>(p.accumulate ? to_f32(*to) + y : y);
}
#define SCALE(T, B) extern "C" __global__ void dora_scale_##T##_##B(DoraScale p) { scale<T, B>(p); }
SCALE(f32, f32)
SCALE(f32, bf16)
SCALE(bf16, f32)
SCALE(bf16, bf16)

struct DoraRest {
    const void* x;
    void* part;
    u64 elements;
};

template <class T> INLINE void rest(const DoraRest& p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    T* part = (T*)p.part + i;
    *part = from_f32<T>(to_f32(((const T*)p.x)[i]) - to_f32(*part));
}
extern "C" __global__ void dora_rest_f32(DoraRest p) { rest<f32>(p); }
extern "C" __global__ void dora_rest_bf16(DoraRest p) { rest<bf16>(p); }

struct DoraMagnitudes {
    const float* factors;
    const void* dy;
    const void* u;
    float* partial;
    float* dm;
    u64 rows;
    u64 columns;
    u64 rows_per_part;
    u64 parts;
};

// partial[part] = Σ of dy·u over the rows of a part. Eight warps take turns at its rows, each of them with the same
// columns.
template <class T> INLINE void sum_rows(const DoraMagnitudes& p) {
    constexpr int WARPS = 8;
    __shared__ float sums[WARPS][32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 first = blockIdx.y * p.rows_per_part;
    u64 end = first + p.rows_per_part < p.rows ? first + p.rows_per_part : p.rows;
    u64 column = (u64)blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < p.columns) {
        for (u64 row = first + warp; row < end; row += WARPS) {
            u64 i = row * p.columns + column;
            sum += to_f32(((const T*)p.dy)[i]) * to_f32(((const T*)p.u)[i]);
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < p.columns) {
        float all = 0.0f;
        for (int w = 0; w < WARPS; w++) all += sums[w][lane];
        p.partial[blockIdx.y * p.columns + column] = all;
    }
}
extern "C" __global__ void dora_sum_rows_f32(DoraMagnitudes p) { sum_rows<f32>(p); }
extern "C" __global__ void dora_sum_rows_bf16(DoraMagnitudes p) { sum_rows<bf16>(p); }

// dm += Σ of the parts in their order, over the norm.
extern "C" __global__ void dora_add_parts(DoraMagnitudes p) {
    u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= p.columns) return;
    float sum = 0.0f;
    for (u64 part = 0; part < p.parts; part++) sum += p.partial[part * p.columns + column];
    p.dm[column] += sum * p.factors[p.columns + column];
}
