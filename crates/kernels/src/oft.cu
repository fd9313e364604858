// The formulas are those of oft.rs.

struct OftProduct {
    const void* a;
    const void* m;
    void* out;
    u64 elements;
    u64 columns;
    u64 size;
    u64 terms;
    u64 a_steps[3];
    u64 m_steps[3];
    u64 out_steps[2];
    float diagonal;
    u32 accumulate;
};

// A thread has one element of the result: the block, row and column of it are counted off its number.
template <class A, class M, class O> INLINE void product(const OftProduct& p) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= p.elements) return;
    u64 row = at / p.columns, block = at % p.columns / p.size, column = at % p.size;
    const A* a = (const A*)p.a + row * p.a_steps[0] + block * p.a_steps[2];
    const M* m = (const M*)p.m + column * p.m_steps[1] + block * p.m_steps[2];
    float sum = 0.0f;
    for (u64 t = 0; t < p.terms; t++) sum += to_f32(a[t * p.a_steps[1]]) * to_f32(m[t * p.m_steps[0]]);
    O* out = (O*)p.out + row * p.out_steps[0] + block * p.out_steps[1] + column;
    if (p.accumulate) sum += to_f32(*out);
    if (row == column) sum += p.diagonal;
    *out = from_f32<O>(sum);
}
extern "C" __global__ void oft_product_f32(OftProduct p) { product<f32, f32, f32>(p); }
extern "C" __global__ void oft_product_bf16(OftProduct p) { product<bf16, f32, bf16>(p); }
extern "C" __global__ void oft_inner_f32(OftProduct p) { product<f32, f32, f32>(p); }
extern "C" __global__ void oft_inner_bf16(OftProduct p) { product<bf16, bf16, f32>(p); }

struct OftSkew {
    void* numbers;
    void* matrices[2];
    u64 blocks;
    u64 size;
    u64 key;
    u64 most;
    u32 drops;
    float diagonal;
};

INLINE bool is_dropped(const OftSkew& p, u64 block) { return p.drops && hash(p.key, block) <= p.most; }

// Where the number of (i, j), i < j, is among those of a block.
INLINE u64 place(u64 i, u64 j, u64 size) { return i * (2 * size - i - 1) / 2 + (j - i - 1); }

extern "C" __global__ void oft_skew(OftSkew p) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, square = p.size * p.size;
    if (at >= p.blocks * square) return;
    u64 block = at / square, i = at % square / p.size, j = at % p.size;
    const float* numbers = (const float*)p.numbers + block * (p.size * (p.size - 1) / 2);
    float value = 0.0f;
    if (i == j) {
        value = p.diagonal;
    } else if (!is_dropped(p, block)) {
        value = i < j ? numbers[place(i, j, p.size)] : -numbers[place(j, i, p.size)];
    }
    ((float*)p.matrices[0])[at] = value;
}

// A thread has one number of the gradient. Its row is the one whose numbers begin before it and end behind it.
extern "C" __global__ void oft_add_skew(OftSkew p) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, each = p.size * (p.size - 1) / 2;
    if (at >= p.blocks * each) return;
    u64 block = at / each, number = at % each, i = 0;
    if (is_dropped(p, block)) return;
    while (place(i, p.size - 1, p.size) < number) i++;
    u64 j = number - place(i, i + 1, p.size) + i + 1;
    u64 above = block * p.size * p.size + i * p.size + j, below = block * p.size * p.size + j * p.size + i;
    const float* sum = (const float*)p.matrices[0];
    const float* rest = (const float*)p.matrices[1];
    ((float*)p.numbers)[at] += (sum[above] + rest[above]) - (sum[below] + rest[below]);
}
