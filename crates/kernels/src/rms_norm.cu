// The formulas are those of rms_norm.rs; norm_rows.cuh shares rows among threads.

struct RmsNormForward {
    const void* x;
    // Of `rms_norm_add_forward`: m = x + r·t takes the place of x.
    const void* t;
    const void* w;
    void* m;
    void* y;
    float* rstd;
    u64 rows;
    u32 columns;
    u32 lanes;
    float eps;
    float offset;
    float r;
};

template <class X, class W, bool ADDS> INLINE void forward(const RmsNormForward& p) {
    constexpr int N = Width<X>::value;
    __shared__ float partial[32];
    bool aligned = is_aligned<X, N>(p.x) && is_aligned<X, N>(p.y) && is_aligned<W, N>(p.w) && is_aligned<X, N>(p.t) &&
                   is_aligned<X, N>(p.m);
    Team team = team_of_thread<N>(blockIdx.x, p.rows, p.columns, p.lanes, aligned);
    size_t start = team.row * p.columns;
    X* y = (X*)p.y + start;
    Kept<X> x;
    if constexpr (ADDS) {
        X* m = (X*)p.m + start;
        x.row = m;
        for_columns<N>(team, [&](int slot, Span columns) {
            float sum[N], t[N];
            load_span(sum, (const X*)p.x + start, columns);
            load_span(t, (const X*)p.t + start, columns);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] += p.r * t[i];
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
    // Of `rms_norm_backward_both`: sums for dw, [gridDim.x, columns].
    float* parts;
    u64 rows;
    u32 columns;
    u32 lanes;
    float offset;
    u32 accumulate;
};

// dx of a team's row; with SUMS, what the row adds to dw goes to `sums`.
template <class X, class W, bool SUMS, int S, int N>
INLINE void backward_row(const RmsNormBackward& p, const Team& team, float* partial, float (&sums)[S][N]) {
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
        float v[N], g[N], factors[N], to[N] = {};
        x.read(v, team, slot, columns);
        dy.read(g, team, slot, columns);
        load_factors(factors, (const W*)p.w, p.offset, columns);
        if (p.accumulate) load_span(to, dx, columns);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if constexpr (SUMS) sums[slot][i] += g[i] * v[i] * rstd;
            to[i] += rstd * (g[i] * factors[i] - v[i] * scale);
        }
        store_span(dx, to, columns);
    });
}

template <class X, class W> INLINE void backward(const RmsNormBackward& p) {
    constexpr int N = Width<X>::value;
    __shared__ float partial[32];
    bool aligned =
        is_aligned<X, N>(p.x) && is_aligned<X, N>(p.dy) && is_aligned<X, N>(p.dx) && is_aligned<W, N>(p.w);
    float no_sums[1][N];
    backward_row<X, W, false>(p, team_of_thread<N>(blockIdx.x, p.rows, p.columns, p.lanes, aligned), partial, no_sums);
}

// Of rows that stay in registers. A block goes through every gridDim.x-th block of rows, and what these add to dw stays in
// registers too.
template <class X, class W> INLINE void backward_both(const RmsNormBackward& p) {
    constexpr int N = Width<X>::value, MOST_OF_SMALL_TEAMS = 128 * KEPT * N;
    __shared__ float partial[32], of_teams[MOST_OF_SMALL_TEAMS];
    float sums[KEPT][N] = {};
    u32 teams = blockDim.x / p.lanes, team = threadIdx.x / p.lanes, lane = threadIdx.x % p.lanes;
    for (u64 block = blockIdx.x; block * teams < p.rows; block += gridDim.x) {
        Team of_row = team_of_thread<N>(block, p.rows, p.columns, p.lanes, true);
        of_row.keeps = true;
        backward_row<X, W, true>(p, of_row, partial, sums);
    }
    float* parts = p.parts + (size_t)blockIdx.x * p.columns;
    float* to = teams == 1 ? parts : of_teams + team * p.columns;
#pragma unroll
    for (int slot = 0; slot < KEPT; slot++) {
        u32 column = (slot * p.lanes + lane) * N;
        if (column < p.columns) store_floats(to + column, sums[slot]);
    }
    if (teams == 1) return;
    __syncthreads();
    for (u32 column = threadIdx.x; column < p.columns; column += blockDim.x) {
        float sum = 0.0f;
        for (u32 i = 0; i < teams; i++) sum += of_teams[i * p.columns + column];
        parts[column] = sum;
    }
}

#define BACKWARD(X, W)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_backward_##X##_##W(RmsNormBackward p) { backward<X, W>(p); } \
    extern "C" __global__ void __launch_bounds__(512, 2) rms_norm_backward_both_##X##_##W(RmsNormBackward p) {            \
        backward_both<X, W>(p);                                                                                           \
    }
BACKWARD(f32, f32)
BACKWARD(f32, bf16)
BACKWARD(bf16, f32)
BACKWARD(bf16, bf16)

extern "C" __global__ void rms_norm_weight_parts_f32(NormWeightParts p) { weight_parts<f32, 1>(p); }
extern "C" __global__ void rms_norm_weight_parts_bf16(NormWeightParts p) { weight_parts<bf16, 1>(p); }
