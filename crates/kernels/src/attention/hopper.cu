// Attention of bf16 on Hopper's products of warpgroups, in the manner of FlashAttention-3 (Shah et al., 2024); the
// formula is in mod.rs. Plain and windowed scores, heads of exactly WIDTH columns; attention.cu has the rest, and tells
// how blocks share the work.
//
// Each warpgroup owns 64 rows of the block's tile, their sums lie in its registers. While one product runs, the
// warpgroup works on the scores of another; what is needed next is copied at the same time, two stages of each tile lie
// in shared memory. WIDTH, FORWARD_GROUPS, DQ_GROUPS and DKDV_GROUPS come from on_cuda.rs.

constexpr int CHUNKS = WIDTH / 8;  // of 16 bytes
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

typedef Vector<bf16, 8> Chunk;
typedef Vector<float, 2> Pair;

// Tiles of ROWS rows: the first 64 columns of all rows, then the others; chunks are swizzled as `wgmma` wants it.
template <int ROWS> INLINE int place(int row, int chunk) {
    return (chunk / 8 * ROWS + row) * 64 + (chunk % 8 ^ row % 8) * 8;
}

// Where tiles begin: at a multiple of 1024 bytes.
INLINE bf16* first_tile(u8* shared) { return (bf16*)(shared + (1024 - shared_address(shared) % 1024) % 1024); }

// Starts to copy `count` rows, `stride` elements apart and the first of them at from[start]; zeros come for rows that
// are not there.
template <int ROWS, int THREADS>
INLINE void load_rows(bf16* tile, const bf16* from, size_t start, u32 stride, int count) {
    constexpr int STEP = THREADS / CHUNKS;
    static_assert(STEP % 8 == 0 && ROWS % STEP == 0, "whole steps");
    const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    from += start + first * stride + chunk * 8;
    bf16* to = tile + place<ROWS>(first, chunk);
#pragma unroll
    for (int row = 0; row < ROWS; row += STEP) {
        copy_async_16(to + row * 64, from, first + row < count);
        from += STEP * stride;
    }
}

// The sixteen columns number `k` of rows from a multiple of eight on, as an operand whose sum goes over the columns.
template <int ROWS> INLINE u64 moved_columns(u64 matrix, int k) { return matrix + k / 4 * (ROWS * 128 / 16) + k % 4 * 2; }

// d = a·bᵀ: 64 rows of a tile of A_ROWS with those of b.
template <int A_ROWS, int SIZE> INLINE void products_of_rows(float (&d)[SIZE], u64 a, u64 b) {
    constexpr int B_ROWS = SIZE * 2;
    wgmma<false>(d, a, b);
#pragma unroll
    for (int k = 1; k < WIDTH / 16; k++) wgmma<true>(d, moved_columns<A_ROWS>(a, k), moved_columns<B_ROWS>(b, k));
}

// d += weights·rows.
template <int SIXTEENS, int SIZE>
INLINE void add_weighted_rows(float (&d)[SIZE], const u32 (&weights)[SIXTEENS][4], u64 rows) {
#pragma unroll
    for (int k = 0; k < SIXTEENS; k++) wgmma(d, weights[k], rows + k * (16 * 128 / 16));
}

// Weights in bf16 as a left operand.
template <int SIZE> INLINE void round_weights(u32 (&a)[SIZE / 8][4], const float (&d)[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE / 2; i++) a[i / 4][i % 4] = bf16_pair(d[2 * i], d[2 * i + 1]);
}

template <int SIZE> INLINE void clear(float (&d)[SIZE]) {
#pragma unroll
    for (int i = 0; i < SIZE; i++) d[i] = 0.0f;
}

// Calls f(element, half, row within the warp's, column) for all that this thread has.
template <int SIZE, class F> INLINE void for_each(float (&d)[SIZE], F f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < SIZE; i++) f(d[i], i / 2 % 2, i / 2 % 2 * 8 + lane / 4, i / 4 * 8 + lane % 4 * 2 + i % 2);
}

INLINE float minus_infinity() { return __uint_as_float(0xff800000u); }

// Arithmetic on d comes before what follows in the program.
template <int SIZE> INLINE void finish(const float (&d)[SIZE]) {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < SIZE; i++) bits |= __float_as_uint(d[i]);
    finish_bits(bits);
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

// The number of this thread's warp, known to be the same in all lanes.
INLINE int warp_number() { return __shfl_sync(ALL_LANES, (int)threadIdx.x / 32, 0); }

// Writes the 16 rows of a warp, rounded, through its own rows of a tile that no product reads any more.
template <int ROWS, int SIZE>
INLINE void store_rows(bf16* rows, size_t stride, int count, bf16* stage, int stage_row, const float (&d)[SIZE]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < SIZE / 2; i++) {
        bf16* chunk = stage + place<ROWS>(stage_row + i % 2 * 8 + lane / 4, i / 2);
        *(u32*)(chunk + lane % 4 * 2) = bf16_pair(d[2 * i], d[2 * i + 1]);
    }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < 16 * CHUNKS; i += 32) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        if (row < count)
            *(Chunk*)(rows + row * stride + chunk * 8) = *(const Chunk*)(stage + place<ROWS>(stage_row + row, chunk));
    }
}

// Copies of this thread that were committed are there, for the products of all after the barrier.
INLINE void pass_copies() {
    copy_async_wait<0>();
    fence_for_wgmma();
    __syncthreads();
}

// Takes the scores of one more tile of keys into the statistics and makes them weights; `keep` is what the sums so far
// are to be multiplied with. The warp's first query is `behind` places behind the first key.
template <int SIZE>
INLINE void softmax(float (&scores)[SIZE], float (&best)[2], float (&sum)[2], float (&keep)[2], int behind, int window,
                    float to_exponent) {
    constexpr int KEYS = SIZE * 2;
    if (behind < KEYS - 1 || behind + 15 >= window)
        for_each(scores, [=](float& s, int, int row, int column) {
            int distance = behind + row - column;
            if (distance < 0 || distance >= window) s = minus_infinity();
        });
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = best[half];
#pragma unroll
        for (int i = 2 * half; i < SIZE; i += 4) top = fmaxf(top, fmaxf(scores[i], scores[i + 1]));
        top = quad_max(top);
        const float finite = top == minus_infinity() ? 0.0f : top;  // all weights are 0 before a key is seen
        const float base = finite * to_exponent;
        keep[half] = exp2_approx((best[half] - finite) * to_exponent);
        best[half] = top;
        float added = 0.0f;
#pragma unroll
        for (int i = 2 * half; i < SIZE; i += 4)
#pragma unroll
            for (int e = i; e < i + 2; e++) {
                scores[e] = exp2_approx(fmaf(scores[e], to_exponent, -base));
                added += scores[e];
            }
        sum[half] = fmaf(sum[half], keep[half], added);
    }
}

extern "C" __global__ void __launch_bounds__(128 * FORWARD_GROUPS, 1) attention_forward_bf16(AttentionForward p) {
    constexpr int THREADS = 128 * FORWARD_GROUPS, QUERIES = 64 * FORWARD_GROUPS, KEYS = 128;
    constexpr int STAGE = KEYS * WIDTH, STAGE_STEP = STAGE * sizeof(bf16) / 16;
    DYNAMIC_SHARED(shared);
    bf16* q = first_tile(shared);
    bf16* k = q + QUERIES * WIDTH;
    bf16* v = k + 2 * STAGE;

    const Tile tile = p.tiles[blockIdx.x / p.heads];
    const int head = blockIdx.x % p.heads, kv = head / p.group, window = p.scores.window;
    const int warp = warp_number(), own_row = warp * 16, lane = threadIdx.x % 32;
    const u32 q_stride = p.heads * WIDTH, k_stride = p.heads / p.group * WIDTH;
    const u32 q_index = (tile.first_query + tile.start) * p.heads + head;  // of the first query in [N, H]
    const int count = tile.queries - tile.start;

    // The keys that are seen begin at first_key; the warp's first query is `behind` places behind the first of the tile
    // at hand.
    const int position = tile.keys - tile.queries + tile.start, first_key = max(position - window + 1, 0);
    const int keys = min(position + QUERIES, tile.keys) - first_key, tiles = (keys + KEYS - 1) / KEYS;
    int behind = position + own_row - first_key;
    const size_t k_start = (size_t)(tile.first_key + first_key) * k_stride + kv * WIDTH;
    auto load_keys = [&](bf16* to, const bf16* from, int number) {
        load_rows<KEYS, THREADS>(to + number % 2 * STAGE, from, k_start + (size_t)number * KEYS * k_stride, k_stride,
                                 keys - number * KEYS);
    };

    load_rows<QUERIES, THREADS>(q, p.q, (size_t)q_index * WIDTH, q_stride, count);
    load_keys(k, p.k, 0);
    copy_async_commit();

    float out[WIDTH / 2], scores[KEYS / 2];
    u32 weights[KEYS / 16][4];
    float best[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0.0f, 0.0f}, keep[2];
    clear(out);
    const float to_exponent = p.scores.scale * LOG2_E;
    const u64 q_matrix = wgmma_matrix(q + warp / 4 * 64 * 64, 0), k_matrix = wgmma_matrix(k, 0);
    const u64 v_matrix = wgmma_matrix(v, KEYS * 128);

    pass_copies();  // q and the first k are here
    load_keys(v, p.v, 0);
    if (tiles > 1) load_keys(k, p.k, 1);
    copy_async_commit();
    wgmma_fence();
    products_of_rows<QUERIES>(scores, q_matrix, k_matrix);
    wgmma_commit();
    wgmma_wait<0>(scores);
    softmax(scores, best, sum, keep, behind, window, to_exponent);
    round_weights(weights, scores);

    for (int i = 0; i + 1 < tiles; i++) {
        behind -= KEYS;
        pass_copies();  // v number i and k number i + 1 are here, the other stages are no longer read
        wgmma_fence();
        products_of_rows<QUERIES>(scores, q_matrix, k_matrix + (i + 1) % 2 * STAGE_STEP);
        wgmma_commit();
        add_weighted_rows(out, weights, v_matrix + i % 2 * STAGE_STEP);
        wgmma_commit();
        load_keys(v, p.v, i + 1);
        if (i + 2 < tiles) load_keys(k, p.k, i + 2);
        copy_async_commit();
        wgmma_wait<1>(scores);
        softmax(scores, best, sum, keep, behind, window, to_exponent);
        finish_bits(__float_as_uint(sum[0] + sum[1]));
        wgmma_wait<0>(out);
        for_each(out, [&](float& o, int half, int, int) { o *= keep[half]; });
        round_weights(weights, scores);
    }
    pass_copies();  // the last v is here
    wgmma_fence();
    add_weighted_rows(out, weights, v_matrix + (tiles - 1) % 2 * STAGE_STEP);
    wgmma_commit();
    wgmma_wait<0>(out);

#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] = quad_sum(sum[half]);
        int row = own_row + half * 8 + lane / 4;
        if (p.lse && lane % 4 == 0 && row < count)
            p.lse[q_index + row * p.heads] = best[half] * to_exponent * LN_2 + logf(sum[half]);
        sum[half] = 1.0f / sum[half];
    }
    for_each(out, [&](float& o, int half, int, int) { o *= sum[half]; });
    // No product has read q since the last barrier.
    bf16* rows = p.out + ((size_t)q_index + own_row * p.heads) * WIDTH;
    store_rows<QUERIES>(rows, q_stride, count - own_row, q, own_row, out);
}

// Backward goes through tiles of 64 queries or keys, in three stages: while sums take in one tile, the scores of the next
// are computed, and one more is copied.
constexpr int STAGES = 3, STAGE_ROWS = 64, STAGE = STAGE_ROWS * WIDTH, STAGE_STEP = STAGE * sizeof(bf16) / 16;

// dk and dv: in registers, rows are keys and columns queries.
extern "C" __global__ void __launch_bounds__(128 * DKDV_GROUPS, 1) attention_dkdv_bf16(AttentionBackward p) {
    constexpr int THREADS = 128 * DKDV_GROUPS, KEYS = 64 * DKDV_GROUPS, QUERIES = STAGE_ROWS;
    DYNAMIC_SHARED(shared);
    bf16* k = first_tile(shared);
    bf16* v = k + KEYS * WIDTH;
    bf16* q = v + KEYS * WIDTH;
    bf16* dout = q + STAGES * STAGE;
    float* exponents = (float*)(dout + STAGES * STAGE);  // lse as a power of 2, of two tiles
    float* deltas = exponents + 2 * QUERIES;

    const int key_heads = p.heads / p.group, window = p.scores.window;
    const int parts = p.parts, part = blockIdx.x % parts;
    const int first_of_part = part * p.group / parts, part_heads = (part + 1) * p.group / parts - first_of_part;
    const Tile tile = p.key_tiles[blockIdx.x / (key_heads * parts)];
    const int kv = blockIdx.x / parts % key_heads;
    const int warp = warp_number(), own_row = warp * 16, lane = threadIdx.x % 32;
    const u32 q_stride = p.heads * WIDTH, k_stride = key_heads * WIDTH;
    const size_t k_start = (size_t)(tile.first_key + tile.start) * k_stride + kv * WIDTH;

    // Queries that see some of the keys; query own_key is at the position of the warp's first key.
    const int shift = tile.keys - tile.queries, last_key = min(tile.start + KEYS, tile.keys) - 1;
    const int first_query = max(tile.start - shift, 0), end_query = min(tile.queries, last_key - shift + window);
    const int own_key = tile.start + own_row - shift;
    const int tiles = first_query < end_query ? (end_query - first_query + QUERIES - 1) / QUERIES * part_heads : 0;

    // A tile of queries, of one head after the other.
    struct At {
        int head, query;
    };
    auto after = [=](At at) {
        bool more = at.query + QUERIES < end_query;
        return At{at.head + (more ? 0 : 1), more ? at.query + QUERIES : first_query};
    };
    auto load_queries = [&](At at, int number) {
        const size_t start = (size_t)(tile.first_query + at.query) * q_stride + at.head * WIDTH;
        const int stage = number % STAGES * STAGE, count = end_query - at.query;
        load_rows<QUERIES, THREADS>(q + stage, p.q, start, q_stride, count);
        load_rows<QUERIES, THREADS>(dout + stage, p.dout, start, q_stride, count);
    };
    // A query that is not there has weights of 0.
    float next_exponent = 0.0f, next_delta = 0.0f;
    auto fetch_statistics = [&](At at, bool wanted) {
        const int query = at.query + threadIdx.x;
        const bool valid = wanted && threadIdx.x < QUERIES && query < end_query;
        const u32 index = (tile.first_query + query) * p.heads + at.head;
        next_exponent = valid ? p.lse[index] * LOG2_E : -minus_infinity();
        next_delta = valid ? p.delta[index] : 0.0f;
    };
    auto keep_statistics = [&](int number) {
        if (threadIdx.x >= QUERIES) return;
        exponents[number % 2 * QUERIES + threadIdx.x] = next_exponent;
        deltas[number % 2 * QUERIES + threadIdx.x] = next_delta;
    };

    float dk[WIDTH / 2], dv[WIDTH / 2], scores[QUERIES / 2], ds[QUERIES / 2];
    u32 p_weights[QUERIES / 16][4], ds_weights[QUERIES / 16][4];
    clear(dk);
    clear(dv);
    const float scale = p.scores.scale, to_exponent = scale * LOG2_E;
    const u64 k_matrix = wgmma_matrix(k + warp / 4 * 64 * 64, 0), v_matrix = wgmma_matrix(v + warp / 4 * 64 * 64, 0);
    const u64 q_matrix = wgmma_matrix(q, QUERIES * 128), dout_matrix = wgmma_matrix(dout, QUERIES * 128);

    auto multiply_scores = [&](int number) {
        products_of_rows<KEYS>(scores, k_matrix, q_matrix + number % STAGES * STAGE_STEP);
        wgmma_commit();
        products_of_rows<KEYS>(ds, v_matrix, dout_matrix + number % STAGES * STAGE_STEP);
        wgmma_commit();
    };
    auto add_to_sums = [&](int number) {
        add_weighted_rows(dv, p_weights, dout_matrix + number % STAGES * STAGE_STEP);
        wgmma_commit();
        add_weighted_rows(dk, ds_weights, q_matrix + number % STAGES * STAGE_STEP);
        wgmma_commit();
    };
    auto scores_to_p = [&](int number, int query) {
        const int ahead = query - own_key;  // places from the warp's first key to the first query
        if (ahead < 15 || ahead + QUERIES - 1 >= window)
            for_each(scores, [=](float& s, int, int row, int column) {
                int distance = ahead + column - row;
                if (distance < 0 || distance >= window) s = minus_infinity();
            });
        const Pair* exponent = (const Pair*)(exponents + number % 2 * QUERIES + lane % 4 * 2);
#pragma unroll
        for (int j = 0; j < QUERIES / 2; j++)
            scores[j] = exp2_approx(fmaf(scores[j], to_exponent, -exponent[j / 4 * 4].at[j % 2]));
        finish(scores);
    };
    auto to_ds = [&](int number) {
        const Pair* delta = (const Pair*)(deltas + number % 2 * QUERIES + lane % 4 * 2);
#pragma unroll
        for (int j = 0; j < QUERIES / 2; j++) ds[j] = (ds[j] - delta[j / 4 * 4].at[j % 2]) * scores[j];
        finish(ds);
    };
    auto round_all = [&]() {
        round_weights(p_weights, scores);
        round_weights(ds_weights, ds);
    };

    if (tiles > 0) {
        At next = {kv * p.group + first_of_part, first_query}, last;
        // Starts to copy tile `number`, if there is one, and fetches the statistics of that behind it.
        auto prepare = [&](int number) {
            if (number < tiles) {
                load_queries(next, number);
                keep_statistics(number);
                last = next;
                next = after(next);
                fetch_statistics(next, number + 1 < tiles);
            }
            copy_async_commit();
        };
        load_rows<KEYS, THREADS>(k, p.k, k_start, k_stride, tile.keys - tile.start);
        load_rows<KEYS, THREADS>(v, p.v, k_start, k_stride, tile.keys - tile.start);
        fetch_statistics(next, true);
        prepare(0);
        pass_copies();  // k, v and the first tile of queries are here
        int query = last.query;
        prepare(1);
        wgmma_fence();
        multiply_scores(0);
        wgmma_wait<1>(scores);
        scores_to_p(0, query);
        wgmma_wait<0>(ds);
        to_ds(0);
        round_all();
        for (int i = 0; i + 1 < tiles; i++) {
            pass_copies();  // tile number i + 1 is here, i - 1 is no longer read
            query = last.query;
            wgmma_fence();
            multiply_scores(i + 1);
            add_to_sums(i);
            prepare(i + 2);
            wgmma_wait<3>(scores);
            scores_to_p(i + 1, query);
            wgmma_wait<2>(ds);
            to_ds(i + 1);
            wgmma_wait<0>(dv);
            wgmma_wait<0>(dk);
            round_all();
        }
        wgmma_fence();
        add_to_sums(tiles - 1);
        wgmma_wait<0>(dv);
        wgmma_wait<0>(dk);
        __syncthreads();  // k and v are no longer read
    }

    const int count = tile.keys - tile.start - own_row;
    const size_t first = k_start + (size_t)own_row * k_stride;
    for_each(dk, [=](float& x, int, int, int) { x *= scale; });
    if (parts > 1) {
        const size_t all = (size_t)p.keys * k_stride;
        auto store = [=](float (&d)[WIDTH / 2], float* to) {
            to += part * all + first;
            for_each(d, [=](float& x, int, int row, int column) {
                if (row < count) to[row * k_stride + column] = x;
            });
        };
        store(dk, p.partial);
        store(dv, p.partial + parts * all);
        return;
    }
    store_rows<KEYS>(p.dk + first, k_stride, count, k, own_row, dk);
    store_rows<KEYS>(p.dv + first, k_stride, count, v, own_row, dv);
}

extern "C" __global__ void __launch_bounds__(128 * DQ_GROUPS, 1) attention_dq_bf16(AttentionBackward p) {
    constexpr int THREADS = 128 * DQ_GROUPS, QUERIES = 64 * DQ_GROUPS, KEYS = STAGE_ROWS;
    DYNAMIC_SHARED(shared);
    bf16* q = first_tile(shared);
    bf16* dout = q + QUERIES * WIDTH;
    bf16* k = dout + QUERIES * WIDTH;
    bf16* v = k + STAGES * STAGE;

    const Tile tile = p.query_tiles[blockIdx.x / p.heads];
    const int head = blockIdx.x % p.heads, kv = head / p.group, window = p.scores.window;
    const int warp = warp_number(), own_row = warp * 16, lane = threadIdx.x % 32;
    const u32 q_stride = p.heads * WIDTH, k_stride = p.heads / p.group * WIDTH;
    const u32 q_index = (tile.first_query + tile.start) * p.heads + head;  // of the first query in [N, H]
    const int count = tile.queries - tile.start;
    const int position = tile.keys - tile.queries + tile.start, first_key = max(position - window + 1, 0);
    const int keys = min(position + QUERIES, tile.keys) - first_key, tiles = (keys + KEYS - 1) / KEYS;
    int behind = position + own_row - first_key;
    const size_t k_start = (size_t)(tile.first_key + first_key) * k_stride + kv * WIDTH;
    auto load_keys = [&](int number) {
        const size_t start = k_start + (size_t)number * KEYS * k_stride;
        const int stage = number % STAGES * STAGE, left = keys - number * KEYS;
        load_rows<KEYS, THREADS>(k + stage, p.k, start, k_stride, left);
        load_rows<KEYS, THREADS>(v + stage, p.v, start, k_stride, left);
    };

    load_rows<QUERIES, THREADS>(q, p.q, (size_t)q_index * WIDTH, q_stride, count);
    load_rows<QUERIES, THREADS>(dout, p.dout, (size_t)q_index * WIDTH, q_stride, count);
    load_keys(0);
    copy_async_commit();

    float exponent[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = own_row + half * 8 + lane / 4;
        u32 at = q_index + row * p.heads;
        exponent[half] = row < count ? p.lse[at] * LOG2_E : -minus_infinity();
        delta[half] = row < count ? p.delta[at] : 0.0f;
    }
    float dq[WIDTH / 2], scores[KEYS / 2], ds[KEYS / 2];
    u32 weights[KEYS / 16][4];
    clear(dq);
    const float scale = p.scores.scale, to_exponent = scale * LOG2_E;
    const u64 q_matrix = wgmma_matrix(q + warp / 4 * 64 * 64, 0), dout_matrix = wgmma_matrix(dout + warp / 4 * 64 * 64, 0);
    const u64 k_matrix = wgmma_matrix(k, KEYS * 128), v_matrix = wgmma_matrix(v, 0);

    auto multiply_scores = [&](int number) {
        products_of_rows<QUERIES>(scores, q_matrix, k_matrix + number % STAGES * STAGE_STEP);
        wgmma_commit();
        products_of_rows<QUERIES>(ds, dout_matrix, v_matrix + number % STAGES * STAGE_STEP);
        wgmma_commit();
    };
    auto add_to_sums = [&](int number) {
        add_weighted_rows(dq, weights, k_matrix + number % STAGES * STAGE_STEP);
        wgmma_commit();
    };
    auto scores_to_p = [&]() {
        if (behind < KEYS - 1 || behind + 15 >= window)
            for_each(scores, [=](float& s, int, int row, int column) {
                int distance = behind + row - column;
                if (distance < 0 || distance >= window) s = minus_infinity();
            });
        for_each(scores, [&](float& s, int half, int, int) {
            s = exp2_approx(fmaf(s, to_exponent, -exponent[half]));
        });
        behind -= KEYS;
        finish(scores);
    };
    auto to_ds = [&]() {
        for_each(ds, [&](float& s, int half, int, int) { s -= delta[half]; });
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) ds[j] *= scores[j];
        finish(ds);
    };

    pass_copies();  // q, dout and the first tile of keys are here
    if (tiles > 1) load_keys(1);
    copy_async_commit();
    wgmma_fence();
    multiply_scores(0);
    wgmma_wait<1>(scores);
    scores_to_p();
    wgmma_wait<0>(ds);
    to_ds();
    round_weights(weights, ds);
    for (int i = 0; i + 1 < tiles; i++) {
        pass_copies();  // tile number i + 1 is here, i - 1 is no longer read
        wgmma_fence();
        multiply_scores(i + 1);
        add_to_sums(i);
        if (i + 2 < tiles) load_keys(i + 2);
        copy_async_commit();
        wgmma_wait<2>(scores);
        scores_to_p();
        wgmma_wait<1>(ds);
        to_ds();
        wgmma_wait<0>(dq);
        round_weights(weights, ds);
    }
    wgmma_fence();
    add_to_sums(tiles - 1);
    wgmma_wait<0>(dq);
    __syncthreads();  // q is no longer read

    for_each(dq, [=](float& x, int, int, int) { x *= scale; });
    bf16* rows = p.dq + ((size_t)q_index + own_row * p.heads) * WIDTH;
    store_rows<QUERIES>(rows, q_stride, count - own_row, q, own_row, dq);
}
