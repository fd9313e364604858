// The formulas are those of layer_norm.rs; norm_rows.cuh shares rows among threads.

struct LayerNormForward {
    const void* x;
    // [groups, C]
    const void* w;
    const void* b;
    void* y;
    // Per row: rstd, mean.
    float* statistics;
    u64 rows;
    u32 columns;
    u32 groups;
    u32 lanes;
    float eps;
    float offset;
};

// The weight of a row, where rows take theirs in turn.
template <class W> INLINE const W* weight_of(const void* w, u64 row, u32 groups, u32 columns) {
    return w ? (const W*)w + row % groups * columns : nullptr;
}

template <class X, class W> INLINE void forward(const LayerNormForward& p) {
    constexpr int N = Width<X>::value;
    __shared__ float partial[32];
    bool aligned =
        is_aligned<X, N>(p.x) && is_aligned<X, N>(p.y) && is_aligned<W, N>(p.w) && is_aligned<W, N>(p.b);
    Team team = team_of_thread<N>(blockIdx.x, p.rows, p.columns, p.lanes, aligned);
    size_t start = team.row * p.columns;
    X* y = (X*)p.y + start;
    const W* w = weight_of<W>(p.w, team.row, p.groups, p.columns);
    const W* b = (const W*)p.b;
    Kept<X> x;
    x.row = (const X*)p.x + start;
    x.load(team);

    float sum = 0.0f;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N];
        x.read(v, team, slot, columns);
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[i];
    });
    float mean = team_sum(sum, team, partial) / p.columns, squares = 0.0f;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N];
        x.read(v, team, slot, columns);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i < columns.count) squares += (v[i] - mean) * (v[i] - mean);
        }
    });
    float rstd = 1.0f / sqrtf(team_sum(squares, team, partial) / p.columns + p.eps);
    if (team.writes_statistics()) {
        p.statistics[2 * team.row] = rstd;
        p.statistics[2 * team.row + 1] = mean;
    }
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N], factors[N], bias[N] = {};
        x.read(v, team, slot, columns);
        load_factors(factors, w, p.offset, columns);
        if (b) load_span(bias, b, columns);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = (v[i] - mean) * rstd * factors[i] + bias[i];
        store_span(y, v, columns);
    });
}

#define FORWARD(X, W) \
    extern "C" __global__ void __launch_bounds__(1024) layer_norm_forward_##X##_##W(LayerNormForward p) { forward<X, W>(p); }
FORWARD(f32, f32)
FORWARD(f32, bf16)
FORWARD(bf16, f32)
FORWARD(bf16, bf16)

struct LayerNormBackward {
    const void* dy;
    const void* x;
    const void* w;
    const float* statistics;
    void* dx;
    u64 rows;
    u32 columns;
    u32 groups;
    u32 lanes;
    float offset;
    u32 accumulate;
};

template <class X, class W> INLINE void backward(const LayerNormBackward& p) {
    constexpr int N = Width<X>::value;
    __shared__ float partial[32];
    bool aligned =
        is_aligned<X, N>(p.x) && is_aligned<X, N>(p.dy) && is_aligned<X, N>(p.dx) && is_aligned<W, N>(p.w);
    Team team = team_of_thread<N>(blockIdx.x, p.rows, p.columns, p.lanes, aligned);
    size_t start = team.row * p.columns;
    X* dx = (X*)p.dx + start;
    const W* w = weight_of<W>(p.w, team.row, p.groups, p.columns);
    Kept<X> x, dy;
    x.row = (const X*)p.x + start;
    dy.row = (const X*)p.dy + start;
    x.load(team);
    dy.load(team);
    float rstd = team.columns > 0 ? p.statistics[2 * team.row] : 0.0f;
    float mean = team.columns > 0 ? p.statistics[2 * team.row + 1] : 0.0f;

    float g_sum = 0.0f, gx_sum = 0.0f;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N], g[N], factors[N];
        x.read(v, team, slot, columns);
        dy.read(g, team, slot, columns);
        load_factors(factors, w, p.offset, columns);
#pragma unroll
        for (int i = 0; i < N; i++) {
            g_sum += g[i] * factors[i];
            gx_sum += g[i] * factors[i] * ((v[i] - mean) * rstd);
        }
    });
    float g_mean = team_sum(g_sum, team, partial) / p.columns;
    float gx_mean = team_sum(gx_sum, team, partial) / p.columns;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N], g[N], factors[N], before[N] = {};
        x.read(v, team, slot, columns);
        dy.read(g, team, slot, columns);
        load_factors(factors, w, p.offset, columns);
        if (p.accumulate) load_span(before, dx, columns);
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[i] = before[i] + rstd * (g[i] * factors[i] - g_mean - (v[i] - mean) * rstd * gx_mean);
        }
        store_span(dx, v, columns);
    });
}

#define BACKWARD(X, W) \
    extern "C" __global__ void __launch_bounds__(1024) layer_norm_backward_##X##_##W(LayerNormBackward p) { backward<X, W>(p); }
BACKWARD(f32, f32)
BACKWARD(f32, bf16)
BACKWARD(bf16, f32)
BACKWARD(bf16, bf16)

extern "C" __global__ void layer_norm_weight_parts_f32(NormWeightParts p) { weight_parts<f32, 2>(p); }
extern "C" __global__ void layer_norm_weight_parts_bf16(NormWeightParts p) { weight_parts<bf16, 2>(p); }
