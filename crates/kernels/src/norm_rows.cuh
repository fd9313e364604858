// How threads share the rows of a norm, and the gradient of its weight: what rms_norm.cu and layer_norm.cu have in common.

// Vectors of a row that a thread keeps in registers between the row's sum and its use.
constexpr int KEPT = 2;

// The threads of one row: `lanes` neighbours, which are a power of two within a warp, or a whole block.
struct Team {
    u64 row;
    u32 lanes, lane;
    // Columns of the row; none for a team beyond the last row, which still takes part in barriers.
    u32 columns;
    // Whether rows can be read in vectors.
    bool aligned;
    // Whether the row stays in registers.
    bool keeps;

    __device__ __forceinline__ bool writes_statistics() const { return columns > 0 && lane == 0; }
};

// Of a block of rows, as many as the block of threads has teams.
template <int N> INLINE Team team_of_thread(u64 block, u64 rows, u32 columns, u32 lanes, bool aligned) {
    u64 row = block * (blockDim.x / lanes) + threadIdx.x / lanes;
    aligned = aligned && columns % N == 0;
    bool keeps = aligned && columns <= KEPT * N * lanes;
    return Team{row, lanes, threadIdx.x % lanes, row < rows ? columns : 0, aligned, keeps};
}

// The sum over a team, known to each of its threads.
INLINE float team_sum(float x, const Team& team, float* partial) {
    if (team.lanes > 32) return block_sum(x, partial);
    for (u32 step = team.lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// body(slot, columns) for this thread's columns, N at a time; `slot` is their place in `Kept`.
template <int N, class Body> INLINE void for_columns(const Team& team, Body body) {
    if (team.keeps) {
#pragma unroll
        for (int slot = 0; slot < KEPT; slot++) {
            u32 column = (slot * team.lanes + team.lane) * N;
            if (column < team.columns) body(slot, Span{column, N, true});
        }
    } else {
        for (u32 column = team.lane * N; column < team.columns; column += team.lanes * N) {
            u32 left = team.columns - column;
            body(0, Span{column, left < N ? left : N, team.aligned});
        }
    }
}

// A thread's part of a row: in registers if the team keeps it, else read again where it is needed.
template <class X> struct Kept {
    static const int N = Width<X>::value;
    const X* row;
    Vector<X, N> vectors[KEPT];

    __device__ __forceinline__ void load(const Team& team) {
        if (!team.keeps) return;
#pragma unroll
        for (int slot = 0; slot < KEPT; slot++) {
            u32 column = (slot * team.lanes + team.lane) * N;
            if (column < team.columns) vectors[slot] = *(const Vector<X, N>*)(row + column);
        }
    }

    __device__ __forceinline__ void read(float (&x)[N], const Team& team, int slot, Span columns) const {
        if (team.keeps) {
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = to_f32(vectors[slot].at[i]);
        } else {
            load_span(x, row, columns);
        }
    }
};

// offset + w; 1 without a weight.
template <class W, int N> INLINE void load_factors(float (&factors)[N], const W* w, float offset, Span columns) {
    if (w) load_span(factors, w, columns);
#pragma unroll
    for (int i = 0; i < N; i++) factors[i] = w ? offset + factors[i] : 1.0f;
}

// dw in two steps, each in a fixed order: sums over ranges of rows, then, in `rows_add_parts`, the sum of those. Weights in
// groups [G, C] are one of width G·C for rows of that width, of which the last may be short.
struct NormWeightParts {
    const void* dy;
    const void* x;
    // Per row of width C: rstd, or rstd and mean.
    const float* statistics;
    // [gridDim.y, columns]
    float* parts;
    // Rows of width C.
    u64 rows;
    // Rows of width `columns` in one part.
    u64 rows_per_part;
    u32 columns;
    u32 groups;
    u32 lanes;
};

constexpr int WEIGHT_THREADS = 256;

template <int STATISTICS> INLINE float normed(float x, const float* statistics) {
    if constexpr (STATISTICS == 1) return x * statistics[0];
    return (x - statistics[1]) * statistics[0];
}

// A block has lanes·N columns and the rows of one part; a thread N columns, or K of them one after the other.
template <class X, int STATISTICS, int K>
INLINE void sum_of_columns(float (&sum)[K], const NormWeightParts& p, u32 column, u32 team, u32 teams) {
    u32 group = column / (p.columns / p.groups);
    u64 end = (p.rows - group + p.groups - 1) / p.groups, part_end = (blockIdx.y + 1) * p.rows_per_part;
    if (end > part_end) end = part_end;
#pragma unroll 4
    for (u64 row = blockIdx.y * p.rows_per_part + team; row < end; row += teams) {
        float dy[K], x[K];
        load_floats(dy, (const X*)p.dy + row * p.columns + column);
        load_floats(x, (const X*)p.x + row * p.columns + column);
        const float* statistics = p.statistics + (row * p.groups + group) * STATISTICS;
#pragma unroll
        for (int i = 0; i < K; i++) sum[i] += dy[i] * normed<STATISTICS>(x[i], statistics);
    }
}

template <class X, int STATISTICS> INLINE void weight_parts(const NormWeightParts& p) {
    constexpr int N = Width<X>::value;
    __shared__ float sums[WEIGHT_THREADS * N];
    u32 lane = threadIdx.x % p.lanes, team = threadIdx.x / p.lanes, teams = WEIGHT_THREADS / p.lanes;
    u32 width = p.lanes * N, first = blockIdx.x * width, column = first + lane * N;
    bool aligned = is_aligned<X, N>(p.dy) && is_aligned<X, N>(p.x) && p.columns / p.groups % N == 0;
    float sum[N] = {};
    if (aligned && column < p.columns) {
        sum_of_columns<X, STATISTICS>(sum, p, column, team, teams);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            float one[1] = {};
            if (column + i < p.columns) sum_of_columns<X, STATISTICS>(one, p, column + i, team, teams);
            sum[i] = one[0];
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) sums[team * width + lane * N + i] = sum[i];
    __syncthreads();
    if (threadIdx.x < width && first + threadIdx.x < p.columns) {
        float total = 0.0f;
        for (u32 i = 0; i < teams; i++) total += sums[i * width + threadIdx.x];
        p.parts[(size_t)blockIdx.y * p.columns + first + threadIdx.x] = total;
    }
}
