// Moving rows, and sums of tensors: see rows.rs. Memory-bound, so every kernel moves 16 bytes at a time where rows and
// addresses allow, and single elements where they do not.

typedef float f32;

// Neighbouring elements that one thread takes: 16 bytes of the wider type.
template <class X, class Y> struct Together {
    static const int value = 16 / (sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));
};

INLINE bool aligned(const void* a, const void* b) { return ((u64)a | (u64)b) % 16 == 0; }

// The threads of a block, and those of its neighbours in y, share the columns of one row.
#define FOR_COLUMNS(column, N, columns)                                            \
    for (u64 column = ((u64)blockIdx.y * blockDim.x + threadIdx.x) * N; column < columns; \
         column += (u64)gridDim.y * blockDim.x * N)

struct RowsGather {
    const void* x;
    void* y;
    const u32* index;
    u64 columns;
    float scale;
};

template <int N, class X, class Y> INLINE void gather_by(const RowsGather& p) {
    const X* x = (const X*)p.x + p.index[blockIdx.x] * p.columns;
    Y* y = (Y*)p.y + blockIdx.x * p.columns;
    FOR_COLUMNS(column, N, p.columns) {
        Vector<X, N> from = *(const Vector<X, N>*)(x + column);
        Vector<Y, N> to;
#pragma unroll
        for (int k = 0; k < N; k++) to.at[k] = from_f32<Y>(to_f32(from.at[k]) * p.scale);
        *(Vector<Y, N>*)(y + column) = to;
    }
}

template <class X, class Y> INLINE void gather(const RowsGather& p) {
    constexpr int N = Together<X, Y>::value;
    if (p.columns % (16 / sizeof(X)) == 0 && p.columns % (16 / sizeof(Y)) == 0 && aligned(p.x, p.y)) {
        gather_by<N, X, Y>(p);
    } else {
        gather_by<1, X, Y>(p);
    }
}

#define GATHER(X, Y) extern "C" __global__ void rows_gather_##X##_##Y(RowsGather p) { gather<X, Y>(p); }
GATHER(f32, f32)
GATHER(f32, bf16)
GATHER(bf16, f32)
GATHER(bf16, bf16)

// Segment s is rows order[starts[s]..starts[s + 1]] of dy, in the order in which they are added to row rows[s] of dx.
struct RowsScatterAdd {
    const void* dy;
    float* dx;
    const u32* starts;
    const u32* rows;
    const u32* order;
    u64 columns;
    float scale;
};

template <int N, class Y> INLINE void scatter_add_by(const RowsScatterAdd& p) {
    u32 first = p.starts[blockIdx.x], end = p.starts[blockIdx.x + 1];
    float* dx = p.dx + p.rows[blockIdx.x] * p.columns;
    FOR_COLUMNS(column, N, p.columns) {
        Vector<float, N> sum = *(const Vector<float, N>*)(dx + column);
#pragma unroll 4
        for (u32 i = first; i < end; i++) {
            Vector<Y, N> dy = *(const Vector<Y, N>*)((const Y*)p.dy + p.order[i] * p.columns + column);
#pragma unroll
            for (int k = 0; k < N; k++) sum.at[k] += to_f32(dy.at[k]) * p.scale;
        }
        *(Vector<float, N>*)(dx + column) = sum;
    }
}

template <class Y> INLINE void scatter_add(const RowsScatterAdd& p) {
    constexpr int N = Together<float, Y>::value;
    if (p.columns % (16 / sizeof(Y)) == 0 && aligned(p.dy, p.dx)) {
        scatter_add_by<N, Y>(p);
    } else {
        scatter_add_by<1, Y>(p);
    }
}

#define SCATTER_ADD(Y) extern "C" __global__ void rows_scatter_add_##Y(RowsScatterAdd p) { scatter_add<Y>(p); }
SCATTER_ADD(f32)
SCATTER_ADD(bf16)

struct RowsPlace {
    const void* x;
    void* y;
    const u32* index;
    u32 count;
    u64 columns;
};

// The place of `row` in ascending `index`, or `count`.
INLINE u32 place_of(u32 row, const u32* index, u32 count) {
    u32 low = 0, high = count;
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (index[middle] < row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && index[low] == row ? low : count;
}

template <int N, class E> INLINE void place_by(const RowsPlace& p) {
    u32 i = place_of(blockIdx.x, p.index, p.count);
    const E* x = (const E*)p.x + i * p.columns;
    E* y = (E*)p.y + blockIdx.x * p.columns;
    FOR_COLUMNS(column, N, p.columns) {
        Vector<E, N> value;
        if (i < p.count) {
            value = *(const Vector<E, N>*)(x + column);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) value.at[k] = from_f32<E>(0.0f);
        }
        *(Vector<E, N>*)(y + column) = value;
    }
}

template <class E> INLINE void place(const RowsPlace& p) {
    constexpr int N = Width<E>::value;
    if (p.columns % N == 0 && aligned(p.x, p.y)) {
        place_by<N, E>(p);
    } else {
        place_by<1, E>(p);
    }
}

#define PLACE(E) extern "C" __global__ void rows_place_##E(RowsPlace p) { place<E>(p); }
PLACE(f32)
PLACE(bf16)

struct RowsScaleEach {
    const float* scale;
    void* x;
    u64 columns;
};

template <int N, class E> INLINE void scale_each_by(const RowsScaleEach& p) {
    float scale = p.scale[blockIdx.x];
    E* x = (E*)p.x + blockIdx.x * p.columns;
    FOR_COLUMNS(column, N, p.columns) {
        Vector<E, N> value = *(const Vector<E, N>*)(x + column);
#pragma unroll
        for (int k = 0; k < N; k++) value.at[k] = from_f32<E>(to_f32(value.at[k]) * scale);
        *(Vector<E, N>*)(x + column) = value;
    }
}

template <class E> INLINE void scale_each(const RowsScaleEach& p) {
    constexpr int N = Width<E>::value;
    if (p.columns % N == 0 && aligned(p.x, p.x)) {
        scale_each_by<N, E>(p);
    } else {
        scale_each_by<1, E>(p);
    }
}

#define SCALE_EACH(E) extern "C" __global__ void rows_scale_each_##E(RowsScaleEach p) { scale_each<E>(p); }
SCALE_EACH(f32)
SCALE_EACH(bf16)

// y = a + scale · b; `a` may be `y` itself, and missing it counts as zero.
struct RowsSum {
    const void* a;
    const void* b;
    void* y;
    u64 elements;
    float scale;
};

template <int N, class B, class Y> INLINE void sum_at(const RowsSum& p, u64 i) {
    Vector<B, N> b = *(const Vector<B, N>*)((const B*)p.b + i);
    Vector<Y, N> y;
    if (p.a) {
        Vector<Y, N> a = *(const Vector<Y, N>*)((const Y*)p.a + i);
#pragma unroll
        for (int k = 0; k < N; k++) y.at[k] = from_f32<Y>(to_f32(a.at[k]) + p.scale * to_f32(b.at[k]));
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) y.at[k] = from_f32<Y>(p.scale * to_f32(b.at[k]));
    }
    *(Vector<Y, N>*)((Y*)p.y + i) = y;
}

template <class B, class Y> INLINE void sum(const RowsSum& p) {
    constexpr int N = Together<B, Y>::value;
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x, threads = (u64)gridDim.x * blockDim.x;
    u64 vectors = aligned(p.a, p.b) && aligned(p.y, p.y) ? p.elements / N : 0;
    for (u64 i = thread; i < vectors; i += threads) sum_at<N, B, Y>(p, i * N);
    for (u64 i = vectors * N + thread; i < p.elements; i += threads) sum_at<1, B, Y>(p, i);
}

#define SUM(B, Y) extern "C" __global__ void rows_sum_##B##_##Y(RowsSum p) { sum<B, Y>(p); }
SUM(f32, f32)
SUM(f32, bf16)
SUM(bf16, f32)
SUM(bf16, bf16)

// partial[part] = Σ of the rows of a part of dy. Eight warps take turns at its rows, each of them with the same columns.
struct RowsSumRows {
    const void* dy;
    float* partial;
    u64 rows;
    u64 columns;
    u64 rows_per_part;
};

template <int N, class Y> INLINE void sum_rows_by(const RowsSumRows& p) {
    constexpr int WARPS = 8;
    __shared__ float sums[WARPS][N][32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 first = blockIdx.y * p.rows_per_part;
    u64 end = first + p.rows_per_part < p.rows ? first + p.rows_per_part : p.rows;
    for (u64 base = (u64)blockIdx.x * 32 * N; base < p.columns; base += (u64)gridDim.x * 32 * N) {
        u64 column = base + lane * N;
        bool inside = column < p.columns;
        float sum[N];
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] = 0.0f;
        if (inside) {
#pragma unroll 4
            for (u64 row = first + warp; row < end; row += WARPS) {
                Vector<Y, N> dy = *(const Vector<Y, N>*)((const Y*)p.dy + row * p.columns + column);
#pragma unroll
                for (int k = 0; k < N; k++) sum[k] += to_f32(dy.at[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < N; k++) sums[warp][k][lane] = sum[k];
        __syncthreads();
        if (warp == 0 && inside) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                float all = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; w++) all += sums[w][k][lane];
                p.partial[blockIdx.y * p.columns + column + k] = all;
            }
        }
        __syncthreads();
    }
}

template <class Y> INLINE void sum_rows(const RowsSumRows& p) {
    constexpr int N = Width<Y>::value;
    if (p.columns % N == 0 && aligned(p.dy, p.dy)) {
        sum_rows_by<N, Y>(p);
    } else {
        sum_rows_by<1, Y>(p);
    }
}

#define SUM_ROWS(Y) extern "C" __global__ void rows_sum_rows_##Y(RowsSumRows p) { sum_rows<Y>(p); }
SUM_ROWS(f32)
SUM_ROWS(bf16)

struct RowsAddParts {
    // [parts, columns]
    const float* partial;
    float* sums;
    u64 columns;
    u32 parts;
};

// sums += Σ of the parts, in an order that their number fixes. A block has 32 columns, and its 32 warps take turns at
// the parts.
extern "C" __global__ void __launch_bounds__(1024) rows_add_parts(RowsAddParts p) {
    __shared__ float of_warps[32][32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 column = (u64)blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < p.columns) {
#pragma unroll 4
        for (u32 part = warp; part < p.parts; part += 32) sum += p.partial[part * p.columns + column];
    }
    of_warps[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < p.columns) {
        float all = 0.0f;
        for (u32 i = 0; i < 32; i++) all += of_warps[i][lane];
        p.sums[column] += all;
    }
}
