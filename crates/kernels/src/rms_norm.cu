// The formulas are those of rms_norm.rs; norm_rows.cuh shares rows among threads.

struct RmsNormForward {
    const void* x;
    // Added to x, scaled, before the norm: r and m of `rms_norm_add_forward`.
    const void* r;
    const void* w;
    void* m;
    void* y;
    float* rstd;
    u64 rows;
    u32 columns;
    u32 lanes;
    float eps;
    float offset;
    float scale;
};

template <class X, class W, bool ADDS> INLINE void forward(const RmsNormForward& p) {
    constexpr int N = Width<X>::value;
    __shared__ float partial[32];
    bool aligned = is_aligned<X, N>(p.x) && is_aligned<X, N>(p.y) && is_aligned<W, N>(p.w) && is_aligned<X, N>(p.r) &&
                   is_aligned<X, N>(p.m);
    Team team = team_of_thread<N>(p.rows, p.columns, p.lanes, aligned);
    size_t start = team.row * p.columns;
    X* y = (X*)p.y + start;
    Kept<X> x;
    if constexpr (ADDS) {
        X* m = (X*)p.m + start;
        x.row = m;
        for_columns<N>(team, [&](int slot, Span columns) {
            float sum[N], r[N];
            load_span(sum, (const X*)p.x + start, columns);
            load_span(r, (const X*)p.r + start, columns);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += p.scale * r[i];
            store_span(m, sum, columns);
            if (team.keeps) round_into(x.vectors[slot], sum);
        });
    } else {
        x.row = (const X*)p.x + start;
        x.load(team);
    }

    float squares = 0.0f;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N];
        x.read(v, team, slot, columns);
#pragma unroll
        for (int i = 0; i < N; i++) squares += v[i] * v[i];
    });
    float rstd = 1.0f / sqrtf(team_sum(squares, team, partial) / p.columns + p.eps);
    if (team.writes_statistics()) p.rstd[team.row] = rstd;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N], factors[N];
        x.read(v, team, slot, columns);
        load_factors(factors, (const W*)p.w, p.offset, columns);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = v[i] * rstd * factors[i];
        store_span(y, v, columns);
    });
}

#define FORWARD(NAME, X, W, ADDS) \
    extern "C" __global__ void __launch_bounds__(1024) NAME##_##X##_##W(RmsNormForward p) { forward<X, W, ADDS>(p); }
FORWARD(rms_norm_forward, f32, f32, false)
FORWARD(rms_norm_forward, f32, bf16, false)
FORWARD(rms_norm_forward, bf16, f32, false)
FORWARD(rms_norm_forward, bf16, bf16, false)
FORWARD(rms_norm_add_forward, f32, f32, true)
FORWARD(rms_norm_add_forward, f32, bf16, true)
FORWARD(rms_norm_add_forward, bf16, f32, true)
FORWARD(rms_norm_add_forward, bf16, bf16, true)

struct RmsNormBackward {
    const void* dy;
    const void* x;
    const void* w;
    const float* rstd;
    void* dx;
    u64 rows;
    u32 columns;
    u32 lanes;
    float offset;
    u32 accumulate;
};

template <class X, class W> INLINE void backward(const RmsNormBackward& p) {
    constexpr int N = Width<X>::value;
    __shared__ float partial[32];
    bool aligned =
        is_aligned<X, N>(p.x) && is_aligned<X, N>(p.dy) && is_aligned<X, N>(p.dx) && is_aligned<W, N>(p.w);
    Team team = team_of_thread<N>(p.rows, p.columns, p.lanes, aligned);
    size_t start = team.row * p.columns;
    X* dx = (X*)p.dx + start;
    Kept<X> x, dy;
    x.row = (const X*)p.x + start;
    dy.row = (const X*)p.dy + start;
    x.load(team);
    dy.load(team);
    float rstd = team.columns > 0 ? p.rstd[team.row] : 0.0f;

    float gx = 0.0f;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N], g[N], factors[N];
        x.read(v, team, slot, columns);
        dy.read(g, team, slot, columns);
        load_factors(factors, (const W*)p.w, p.offset, columns);
#pragma unroll
        for (int i = 0; i < N; i++) gx += g[i] * factors[i] * v[i];
    });
    float scale = team_sum(gx, team, partial) * rstd * rstd / p.columns;
    for_columns<N>(team, [&](int slot, Span columns) {
        float v[N], g[N], factors[N], before[N] = {};
        x.read(v, team, slot, columns);
        dy.read(g, team, slot, columns);
        load_factors(factors, (const W*)p.w, p.offset, columns);
        if (p.accumulate) load_span(before, dx, columns);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = before[i] + rstd * (g[i] * factors[i] - v[i] * scale);
        store_span(dx, v, columns);
    });
}

#define BACKWARD(X, W) \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward_##X##_##W(RmsNormBackward p) { backward<X, W>(p); }
BACKWARD(f32, f32)
BACKWARD(f32, bf16)
BACKWARD(bf16, f32)
BACKWARD(bf16, bf16)

extern "C" __global__ void rms_norm_weight_parts_f32(NormWeightParts p) { weight_parts<f32, 1>(p); }
extern "C" __global__ void rms_norm_weight_parts_bf16(NormWeightParts p) { weight_parts<bf16, 1>(p); }
extern "C" __global__ void rms_norm_weight_sum(NormWeightSum p) { weight_sum(p); }
