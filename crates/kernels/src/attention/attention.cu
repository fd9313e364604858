// Attention of bf16 on tensor cores in the manner of FlashAttention-2 (Dao, 2023); the formula is in mod.rs.
//
// A block has one tile of a row and one head: forward and dq a tile of queries that goes through the keys that they
// see, dk and dv a tile of keys that goes through the queries that see them, for all query heads of the group. So
// every sum stays in the registers of one warp, in an order that depends on the row alone. Each warp owns some bands
// of 16 rows of the block's tile. Scores, p and ds live in registers only: what a product leaves in them is laid out
// as the next product's left operand wants it.
//
// WIDTH is D rounded up to a width with kernels, the rest is filled with zeros. on_cuda.rs defines it and the sizes of
// tiles: FORWARD_BANDS and FORWARD_KEYS, DQ_BANDS and DQ_KEYS (four warps), DKDV_WARPS, DKDV_SHARE, DKDV_BANDS and
// DKDV_QUERIES.

constexpr int CHUNKS = WIDTH / 8;  // of 16 bytes
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

typedef Vector<bf16, 8> Chunk;

// Tiles in shared memory: rows of WIDTH, their chunks shuffled so that the same chunk of eight rows lies in all banks.
INLINE int place(int row, int chunk) {
    int shuffle = WIDTH % 64 == 0 ? row % 8 : row / 2 % 4;
    return row * WIDTH + (chunk ^ shuffle) * 8;
}

// Starts to copy `count` rows, `stride` elements apart and the first of them at from[start]; zeros come for rows and
// columns that are not there. A thread has one column of chunks, and thus one address that moves on.
template <int ROWS, int THREADS>
INLINE void load_rows(bf16* tile, const bf16* from, size_t start, u32 stride, int count, int width) {
    constexpr int FIT = THREADS / CHUNKS, STEP = FIT >= 32 ? 32 : FIT >= 16 ? 16 : FIT >= 8 ? 8 : 4;
    static_assert(FIT >= 4 && ROWS % STEP == 0, "whole steps");
    const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    if (STEP * CHUNKS < THREADS && first >= STEP) return;
    const bool inside = chunk * 8 < width;
    from += start + first * stride + chunk * 8;
#pragma unroll
    for (int row = 0; row < ROWS; row += STEP) {
        bool valid = inside && first + row < count;
        copy_async_16(tile + place(first + row, chunk), from, valid);
        from += STEP * stride;
    }
}

// Writes the rows of a warp, rounded, through rows of shared memory that no other warp uses.
template <int BANDS, int COLUMNS>
INLINE void store_rows(bf16* rows, size_t stride, int count, int width, bf16* stage, int stage_row, int first_chunk,
                       const float (&d)[BANDS][COLUMNS][4]) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < BANDS; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                bf16* chunk = stage + place(stage_row + m * 16 + half * 8 + lane / 4, first_chunk + n);
                *(u32*)(chunk + lane % 4 * 2) = bf16_pair(d[m][n][2 * half], d[m][n][2 * half + 1]);
            }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < BANDS * 16 * COLUMNS; i += 32) {
        int row = i / COLUMNS, chunk = first_chunk + i % COLUMNS;
        if (row < count && chunk * 8 < width)
            *(Chunk*)(rows + row * stride + chunk * 8) = *(const Chunk*)(stage + place(stage_row + row, chunk));
    }
}

// Where in a tile a lane finds its row of a fragment, for chunk 0. Fragments are 16 rows × 2 chunks: of a left operand,
// or, transposed, of two right operands whose sum goes over the rows; `right_place` is for two right operands whose sum
// goes over the columns.
INLINE int left_place(int row) {
    int lane = threadIdx.x % 32;
    return place(row + lane % 16, lane / 16);
}

INLINE int right_place() {
    int lane = threadIdx.x % 32;
    return place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

// The same, 16·`sixteen` rows below and `chunk` (even) to the right: one operation with known bits and a known distance.
INLINE int moved(int from, int sixteen, int chunk) {
    constexpr int SHUFFLED = WIDTH % 64 == 0 ? 56 : 24;
    return (from ^ (chunk * 8 & SHUFFLED)) + (chunk * 8 & ~SHUFFLED) + sixteen * 16 * WIDTH;
}

INLINE void multiply(float (&left)[4], float (&right)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    const u32 b_left[2] = {b[0], b[1]}, b_right[2] = {b[2], b[3]};
    mma_bf16(left, a, b_left);
    mma_bf16(right, a, b_right);
}

template <int BANDS, int COLUMNS> INLINE void clear(float (&d)[BANDS][COLUMNS][4]) {
#pragma unroll
    for (int m = 0; m < BANDS; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) d[m][n][e] = 0.0f;
}

// d = a·bᵀ: the products of the warp's rows of a, at left_place `own`, with the first rows of b. Operands are fetched one
// step before they are used.
template <int BANDS, int COLUMNS>
INLINE void products_of_rows(float (&d)[BANDS][COLUMNS][4], const bf16* a, int own, const bf16* b) {
    constexpr int PAIRS = COLUMNS / 2, SIXTEENS = WIDTH / 16;
    const int other = right_place();
    u32 left[2][BANDS][4], right[2][4];
    clear(d);
#pragma unroll
    for (int m = 0; m < BANDS; m++) ldmatrix_x4(left[0][m], a + moved(own, m, 0));
    ldmatrix_x4(right[0], b + moved(other, 0, 0));
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++)
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            const int step = k * PAIRS + pair;
            if (pair + 1 < PAIRS) {
                ldmatrix_x4(right[(step + 1) % 2], b + moved(other, pair + 1, k * 2));
            } else if (k + 1 < SIXTEENS) {
#pragma unroll
                for (int m = 0; m < BANDS; m++) ldmatrix_x4(left[(k + 1) % 2][m], a + moved(own, m, k * 2 + 2));
                ldmatrix_x4(right[(step + 1) % 2], b + moved(other, 0, k * 2 + 2));
            }
#pragma unroll
            for (int m = 0; m < BANDS; m++)
                multiply(d[m][2 * pair], d[m][2 * pair + 1], left[k % 2][m], right[step % 2]);
        }
}

// Weights in bf16 as a left operand.
template <int BANDS, int COLUMNS>
INLINE void round_weights(u32 (&a)[BANDS][COLUMNS / 2][4], const float (&d)[BANDS][COLUMNS][4]) {
#pragma unroll
    for (int m = 0; m < BANDS; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            a[m][n / 2][n % 2 * 2] = bf16_pair(d[m][n][0], d[m][n][1]);
            a[m][n / 2][n % 2 * 2 + 1] = bf16_pair(d[m][n][2], d[m][n][3]);
        }
}

// d += weights·rows, for the columns of `rows` from that at left_place `first`.
template <int BANDS, int SIXTEENS, int COLUMNS>
INLINE void add_weighted_rows(float (&d)[BANDS][COLUMNS][4], const u32 (&weights)[BANDS][SIXTEENS][4],
                              const bf16* rows, int first) {
    constexpr int PAIRS = COLUMNS / 2;
    u32 right[2][4];
    ldmatrix_x4_transposed(right[0], rows + moved(first, 0, 0));
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++)
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            const int step = k * PAIRS + pair;
            if (pair + 1 < PAIRS)
                ldmatrix_x4_transposed(right[(step + 1) % 2], rows + moved(first, k, pair * 2 + 2));
            else if (k + 1 < SIXTEENS)
                ldmatrix_x4_transposed(right[(step + 1) % 2], rows + moved(first, k + 1, 0));
#pragma unroll
            for (int m = 0; m < BANDS; m++)
                multiply(d[m][2 * pair], d[m][2 * pair + 1], weights[m][k], right[step % 2]);
        }
}

// Calls f(element, band, row within the warp's, column) for all that this thread has.
template <int BANDS, int COLUMNS, class F> INLINE void for_each(float (&d)[BANDS][COLUMNS][4], F f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < BANDS; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                f(d[m][n][e], 2 * m + e / 2, m * 16 + e / 2 * 8 + lane / 4, n * 8 + lane % 4 * 2 + e % 2);
}

INLINE float minus_infinity() { return __uint_as_float(0xff800000u); }

// tanh to an absolute 2^-22.
INLINE float tanh_approx(float x) {
    return 1.0f - 2.0f * reciprocal_approx(1.0f + exp2_approx(2.0f * LOG2_E * x));
}

// What a score is multiplied with to be a power of 2: the scale is in the score already if there is a cap or a slope.
INLINE float unit(const Scores& scores) {
    return SHAPED && (scores.softcap > 0.0f || scores.slopes) ? LOG2_E : scores.scale * LOG2_E;
}

// Sum or maximum over the four lanes that share a row.
INLINE float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

INLINE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16(AttentionForward p) {
    constexpr int OWN = 16 * FORWARD_BANDS, QUERIES = 4 * OWN, KEYS = FORWARD_KEYS;
    DYNAMIC_SHARED(shared);
    bf16* q = (bf16*)shared;
    bf16* k = q + QUERIES * WIDTH;
    bf16* v = k + KEYS * WIDTH;

    const Tile tile = p.query_tiles[blockIdx.x / p.heads];
    const int head = blockIdx.x % p.heads, kv = head / p.group, window = p.scores.window;
    const int own_row = threadIdx.x / 32 * OWN, lane = threadIdx.x % 32;
    const u32 q_stride = p.heads * p.width, k_stride = p.heads / p.group * p.width;
    const u32 q_index = (tile.first_query + tile.start) * p.heads + head;  // of the first query in [N, H]
    const int count = tile.queries - tile.start;

    // The keys that are seen begin at first_key; of these `left` are left, and the warp's first query is `behind` places
    // behind the first of them.
    const int position = tile.keys - tile.queries + tile.start, first_key = max(position - window + 1, 0);
    int left = min(position + QUERIES, tile.keys) - first_key, behind = position + own_row - first_key;
    size_t k_start = (size_t)(tile.first_key + first_key) * k_stride + kv * p.width;  // of the tile of keys at hand

    load_rows<QUERIES, 128>(q, p.q, (size_t)q_index * p.width, q_stride, count, p.width);
    load_rows<KEYS, 128>(k, p.k, k_start, k_stride, left, p.width);
    copy_async_commit();

    float out[FORWARD_BANDS][CHUNKS][4], scores[FORWARD_BANDS][KEYS / 8][4];
    float best[2 * FORWARD_BANDS], sum[2 * FORWARD_BANDS];
    clear(out);
#pragma unroll
    for (int r = 0; r < 2 * FORWARD_BANDS; r++) {
        best[r] = minus_infinity();
        sum[r] = 0.0f;
    }
    const float softcap = p.scores.softcap, scale = p.scores.scale, to_exponent = unit(p.scores);
    const float slope = p.scores.slopes ? p.scores.slopes[head] : 0.0f;

    for (; left > 0; left -= KEYS, behind -= KEYS) {
        const bool seen = behind + OWN > 0 && behind - (KEYS - 1) < window;
        copy_async_wait<0>();
        __syncthreads();  // k is here, v is no longer read
        load_rows<KEYS, 128>(v, p.v, k_start, k_stride, left, p.width);
        copy_async_commit();
        if (seen) products_of_rows(scores, q, left_place(own_row), k);
        copy_async_wait<0>();
        __syncthreads();  // v is here, k is no longer read
        k_start += KEYS * k_stride;
        if (left > KEYS) load_rows<KEYS, 128>(k, p.k, k_start, k_stride, left - KEYS, p.width);
        copy_async_commit();
        if (seen) {
            if (SHAPED && softcap > 0.0f)
                for_each(scores, [=](float& s, int, int, int) { s = softcap * tanh_approx(s * (scale / softcap)); });
            if (SHAPED && p.scores.slopes)
                for_each(scores, [=](float& s, int, int row, int column) {
                    s = s * scale - slope * (float)(behind + row - column);
                });
            if (behind < KEYS - 1 || behind + OWN - 1 >= window)
                for_each(scores, [=](float& s, int, int row, int column) {
                    int distance = behind + row - column;
                    if (distance < 0 || distance >= window) s = minus_infinity();
                });

#pragma unroll
            for (int r = 0; r < 2 * FORWARD_BANDS; r++) {
                const int m = r / 2, first = r % 2 * 2;
                float top = best[r];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
                    top = fmaxf(top, fmaxf(scores[m][n][first], scores[m][n][first + 1]));
                top = quad_max(top);
                const float finite = top == minus_infinity() ? 0.0f : top;  // all weights are 0 before a key is seen
                const float keep = exp2_approx((best[r] - finite) * to_exponent), base = finite * to_exponent;
                best[r] = top;
                sum[r] *= keep;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = first; e < first + 2; e++) {
                        scores[m][n][e] = exp2_approx(fmaf(scores[m][n][e], to_exponent, -base));
                        sum[r] += scores[m][n][e];
                    }
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
                    out[m][c][first] *= keep;
                    out[m][c][first + 1] *= keep;
                }
            }
            u32 weights[FORWARD_BANDS][KEYS / 16][4];
            round_weights(weights, scores);
            add_weighted_rows(out, weights, v, left_place(0));
        }
    }

    copy_async_wait<0>();
#pragma unroll
    for (int r = 0; r < 2 * FORWARD_BANDS; r++) {
        sum[r] = quad_sum(sum[r]);
        int row = own_row + r * 8 + lane / 4;
        if (p.lse && lane % 4 == 0 && row < count)
            p.lse[q_index + row * p.heads] = best[r] * to_exponent * LN_2 + logf(sum[r]);
        sum[r] = 1.0f / sum[r];
    }
    for_each(out, [&](float& o, int r, int, int) { o *= sum[r]; });
    bf16* rows = p.out + ((size_t)q_index + own_row * p.heads) * p.width;
    store_rows(rows, q_stride, count - own_row, p.width, q, own_row, 0, out);
}

// delta = dout·out: eight lanes for each query and head.
extern "C" __global__ void __launch_bounds__(256) attention_delta_bf16(AttentionBackward p) {
    const size_t row = ((size_t)blockIdx.x * 256 + threadIdx.x) / 8;
    const bool valid = row < (size_t)p.queries * p.heads;
    float sum = 0.0f;
    if (valid)
        for (int i = threadIdx.x % 8 * 8; i < p.width; i += 64) {
            const Chunk out = *(const Chunk*)(p.out + row * p.width + i);
            const Chunk dout = *(const Chunk*)(p.dout + row * p.width + i);
#pragma unroll
            for (int e = 0; e < 8; e++) sum = fmaf(to_f32(out.at[e]), to_f32(dout.at[e]), sum);
        }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (valid && threadIdx.x % 8 == 0) p.delta[row] = sum;
}

// dk and dv: warps own bands of keys, and with DKDV_SHARE = 2 half of their columns. In registers, all is transposed:
// rows are keys and columns queries.
extern "C" __global__ void __launch_bounds__(32 * DKDV_WARPS) attention_dkdv_bf16(AttentionBackward p) {
    constexpr int THREADS = 32 * DKDV_WARPS, KEY_WARPS = DKDV_WARPS / DKDV_SHARE, OWN = 16 * DKDV_BANDS;
    constexpr int KEYS = KEY_WARPS * OWN, QUERIES = DKDV_QUERIES, OWN_CHUNKS = CHUNKS / DKDV_SHARE;
    DYNAMIC_SHARED(shared);
    bf16* k = (bf16*)shared;
    bf16* v = k + KEYS * WIDTH;
    bf16* q = v + KEYS * WIDTH;
    bf16* dout = q + QUERIES * WIDTH;
    float* exponent = (float*)(dout + QUERIES * WIDTH);  // lse as a power of 2
    float* delta = exponent + QUERIES;

    const int key_heads = p.heads / p.group, window = p.scores.window;
    const int parts = p.parts, part = blockIdx.x % parts;
    const int first_of_part = part * p.group / parts, part_heads = (part + 1) * p.group / parts - first_of_part;
    const Tile tile = p.key_tiles[blockIdx.x / (key_heads * parts)];
    const int kv = blockIdx.x / parts % key_heads, warp = threadIdx.x / 32;
    const int own_row = warp % KEY_WARPS * OWN, own_chunk = warp / KEY_WARPS * OWN_CHUNKS;
    const u32 q_stride = p.heads * p.width, k_stride = key_heads * p.width;
    const size_t k_start = (size_t)(tile.first_key + tile.start) * k_stride + kv * p.width;

    // Queries that see some of the keys; query own_key is at the position of the warp's first key.
    const int shift = tile.keys - tile.queries, last_key = min(tile.start + KEYS, tile.keys) - 1;
    const int first_query = max(tile.start - shift, 0), end_query = min(tile.queries, last_key - shift + window);
    const int own_key = tile.start + own_row - shift;

    float dk[DKDV_BANDS][OWN_CHUNKS][4], dv[DKDV_BANDS][OWN_CHUNKS][4];
    clear(dk);
    clear(dv);
    const float softcap = p.scores.softcap, scale = p.scores.scale, to_exponent = unit(p.scores);

    auto load_queries = [&](bf16* to, const bf16* from, int head, int query) {
        size_t start = (size_t)(tile.first_query + query) * q_stride + head * p.width;
        load_rows<QUERIES, THREADS>(to, from, start, q_stride, end_query - query, p.width);
        copy_async_commit();
    };
    // A query that is not there has weights of 0.
    float next_exponent = 0.0f, next_delta = 0.0f;
    auto fetch_statistics = [&](int head, int query) {
        query += threadIdx.x;
        bool valid = threadIdx.x < QUERIES && query < end_query;
        u32 at = (tile.first_query + query) * p.heads + head;
        next_exponent = valid ? p.lse[at] * LOG2_E : -minus_infinity();
        next_delta = valid ? p.delta[at] : 0.0f;
    };

    const int first_head = kv * p.group + first_of_part;
    int head = first_head, query = first_query;
    bool more = first_query < end_query;
    if (more) {
        load_rows<KEYS, THREADS>(k, p.k, k_start, k_stride, tile.keys - tile.start, p.width);
        load_rows<KEYS, THREADS>(v, p.v, k_start, k_stride, tile.keys - tile.start, p.width);
        load_queries(dout, p.dout, head, query);
        fetch_statistics(head, query);
    }
    while (more) {
        const int ahead = query - own_key;  // places from the warp's first key to the first query
        const bool seen = ahead + QUERIES > 0 && ahead - (OWN - 1) < window;
        float scores[DKDV_BANDS][QUERIES / 8][4], ds[DKDV_BANDS][QUERIES / 8][4];
        u32 weights[DKDV_BANDS][QUERIES / 16][4];

        copy_async_wait<0>();
        __syncthreads();  // dout is here, q and the statistics are no longer read
        load_queries(q, p.q, head, query);
        if (threadIdx.x < QUERIES) {
            exponent[threadIdx.x] = next_exponent;
            delta[threadIdx.x] = next_delta;
        }
        if (seen) products_of_rows(ds, v, left_place(own_row), dout);
        copy_async_wait<0>();
        __syncthreads();  // q and the statistics are here
        if (seen) {
            products_of_rows(scores, k, left_place(own_row), q);
            for_each(ds, [=](float& s, int, int, int column) { s -= delta[column]; });
            if (SHAPED && softcap > 0.0f) {
#pragma unroll
                for (int m = 0; m < DKDV_BANDS; m++)
#pragma unroll
                    for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            float t = tanh_approx(scores[m][n][e] * (scale / softcap));
                            scores[m][n][e] = softcap * t;
                            ds[m][n][e] *= 1.0f - t * t;
                        }
            }
            if (SHAPED && p.scores.slopes) {
                const float slope = p.scores.slopes[head];
                for_each(scores, [=](float& s, int, int row, int column) {
                    s = s * scale - slope * (float)(ahead + column - row);
                });
            }
            if (ahead < OWN - 1 || ahead + QUERIES - 1 >= window)
                for_each(scores, [=](float& s, int, int row, int column) {
                    int distance = ahead + column - row;
                    if (distance < 0 || distance >= window) s = minus_infinity();
                });
            for_each(scores, [=](float& s, int, int, int column) {
                s = exp2_approx(fmaf(s, to_exponent, -exponent[column]));
            });
            round_weights(weights, scores);
            add_weighted_rows(dv, weights, dout, left_place(0) + own_chunk * 8);
#pragma unroll
            for (int m = 0; m < DKDV_BANDS; m++)
#pragma unroll
                for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) ds[m][n][e] *= scores[m][n][e];
            round_weights(weights, ds);
        }
        __syncthreads();  // dout is no longer read
        query += QUERIES;
        if (query >= end_query) {
            query = first_query;
            head++;
        }
        more = head < first_head + part_heads;
        if (more) {
            load_queries(dout, p.dout, head, query);
            fetch_statistics(head, query);
        }
        if (seen) add_weighted_rows(dk, weights, q, left_place(0) + own_chunk * 8);
    }

    __syncthreads();  // k and v are no longer read
    const int count = tile.keys - tile.start - own_row;
    const size_t at = k_start + (size_t)own_row * k_stride;
    for_each(dk, [=](float& x, int, int, int) { x *= scale; });
    if (parts > 1) {
        const size_t all = (size_t)p.keys * k_stride;
        auto store = [=](float (&d)[DKDV_BANDS][OWN_CHUNKS][4], float* to) {
            to += part * all + at;
            for_each(d, [=](float& x, int, int row, int column) {
                column += own_chunk * 8;
                if (row < count && column < p.width) to[row * k_stride + column] = x;
            });
        };
        store(dk, p.partial);
        store(dv, p.partial + parts * all);
        return;
    }
    store_rows(p.dk + at, k_stride, count, p.width, k, own_row, own_chunk, dk);
    store_rows(p.dv + at, k_stride, count, p.width, v, own_row, own_chunk, dv);
}

// dk and dv from their parts, added in their order: eight elements a thread.
extern "C" __global__ void __launch_bounds__(256) attention_sum_parts_bf16(AttentionBackward p) {
    const size_t all = (size_t)p.keys * (p.heads / p.group) * p.width;
    const size_t at = ((size_t)blockIdx.x * 256 + threadIdx.x) * 8;
    if (at >= all) return;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        float sum[8] = {};
        for (int part = 0; part < p.parts; part++) {
            const float* from = p.partial + (size_t)(which * p.parts + part) * all + at;
            const Vector<float, 4> low = *(const Vector<float, 4>*)from, high = *(const Vector<float, 4>*)(from + 4);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sum[e] += low.at[e];
                sum[4 + e] += high.at[e];
            }
        }
        Chunk rounded;
#pragma unroll
        for (int e = 0; e < 8; e++) rounded.at[e] = from_f32<bf16>(sum[e]);
        *(Chunk*)((which == 0 ? p.dk : p.dv) + at) = rounded;
    }
}

extern "C" __global__ void __launch_bounds__(128) attention_dq_bf16(AttentionBackward p) {
    constexpr int OWN = 16 * DQ_BANDS, QUERIES = 4 * OWN, KEYS = DQ_KEYS;
    DYNAMIC_SHARED(shared);
    bf16* q = (bf16*)shared;
    bf16* dout = q + QUERIES * WIDTH;
    bf16* k = dout + QUERIES * WIDTH;
    bf16* v = k + KEYS * WIDTH;

    const Tile tile = p.query_tiles[blockIdx.x / p.heads];
    const int head = blockIdx.x % p.heads, kv = head / p.group, window = p.scores.window;
    const int own_row = threadIdx.x / 32 * OWN, lane = threadIdx.x % 32;
    const u32 q_stride = p.heads * p.width, k_stride = p.heads / p.group * p.width;
    const u32 q_index = (tile.first_query + tile.start) * p.heads + head;  // of the first query in [N, H]
    const int count = tile.queries - tile.start;
    const int position = tile.keys - tile.queries + tile.start, first_key = max(position - window + 1, 0);
    int left = min(position + QUERIES, tile.keys) - first_key, behind = position + own_row - first_key;
    size_t k_start = (size_t)(tile.first_key + first_key) * k_stride + kv * p.width;  // of the tile of keys at hand

    load_rows<QUERIES, 128>(q, p.q, (size_t)q_index * p.width, q_stride, count, p.width);
    load_rows<QUERIES, 128>(dout, p.dout, (size_t)q_index * p.width, q_stride, count, p.width);
    load_rows<KEYS, 128>(v, p.v, k_start, k_stride, left, p.width);
    copy_async_commit();

    float exponent[2 * DQ_BANDS], delta[2 * DQ_BANDS];
#pragma unroll
    for (int r = 0; r < 2 * DQ_BANDS; r++) {
        int row = own_row + r * 8 + lane / 4;
        u32 at = q_index + row * p.heads;
        exponent[r] = row < count ? p.lse[at] * LOG2_E : -minus_infinity();
        delta[r] = row < count ? p.delta[at] : 0.0f;
    }
    float dq[DQ_BANDS][CHUNKS][4];
    clear(dq);
    const float softcap = p.scores.softcap, scale = p.scores.scale, to_exponent = unit(p.scores);
    const float slope = p.scores.slopes ? p.scores.slopes[head] : 0.0f;

    for (; left > 0; left -= KEYS, behind -= KEYS) {
        const bool seen = behind + OWN > 0 && behind - (KEYS - 1) < window;
        float scores[DQ_BANDS][KEYS / 8][4], ds[DQ_BANDS][KEYS / 8][4];

        copy_async_wait<0>();
        __syncthreads();  // v is here, k is no longer read
        load_rows<KEYS, 128>(k, p.k, k_start, k_stride, left, p.width);
        copy_async_commit();
        if (seen) products_of_rows(ds, dout, left_place(own_row), v);
        copy_async_wait<0>();
        __syncthreads();  // k is here, v is no longer read
        k_start += KEYS * k_stride;
        if (left > KEYS) load_rows<KEYS, 128>(v, p.v, k_start, k_stride, left - KEYS, p.width);
        copy_async_commit();
        if (!seen) continue;

        products_of_rows(scores, q, left_place(own_row), k);
        for_each(ds, [&](float& s, int r, int, int) { s -= delta[r]; });
        if (SHAPED && softcap > 0.0f) {
#pragma unroll
            for (int m = 0; m < DQ_BANDS; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        float t = tanh_approx(scores[m][n][e] * (scale / softcap));
                        scores[m][n][e] = softcap * t;
                        ds[m][n][e] *= 1.0f - t * t;
                    }
        }
        if (SHAPED && p.scores.slopes)
            for_each(scores, [=](float& s, int, int row, int column) {
                s = s * scale - slope * (float)(behind + row - column);
            });
        if (behind < KEYS - 1 || behind + OWN - 1 >= window)
            for_each(scores, [=](float& s, int, int row, int column) {
                int distance = behind + row - column;
                if (distance < 0 || distance >= window) s = minus_infinity();
            });
        for_each(scores, [&](float& s, int r, int, int) {
            s = exp2_approx(fmaf(s, to_exponent, -exponent[r]));
        });
#pragma unroll
        for (int m = 0; m < DQ_BANDS; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) ds[m][n][e] *= scores[m][n][e];
        u32 weights[DQ_BANDS][KEYS / 16][4];
        round_weights(weights, ds);
        add_weighted_rows(dq, weights, k, left_place(0));
    }

    copy_async_wait<0>();
    for_each(dq, [=](float& x, int, int, int) { x *= scale; });
    bf16* rows = p.dq + ((size_t)q_index + own_row * p.heads) * p.width;
    store_rows(rows, q_stride, count - own_row, p.width, q, own_row, 0, dq);
}
