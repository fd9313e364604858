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

// As in attention.cu.
struct Tile {
    int first_query, queries, first_key, keys, start;
};

struct Scores {
    const float* slopes;  // null here
    float scale, softcap; // 0 here
    int window;           // at most 2^30
};

struct AttentionForward {
    const bf16 *q, *k, *v;
    bf16* out;
    float* lse;  // or null
    const Tile* tiles;
    Scores scores;
    int heads, group, width;
};

struct AttentionBackward {
    const bf16 *q, *k, *v, *out, *dout;
    const float* lse;
    float* delta;
    bf16 *dq, *dk, *dv;
    const Tile* query_tiles;
    const Tile* key_tiles;
    Scores scores;
    int heads, group, width, queries;
};

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
        load_keys(v, p.v, i + 1);
        if (i + 2 < tiles) load_keys(k, p.k, i + 2);
        copy_async_commit();
        wgmma_fence();
        products_of_rows<QUERIES>(scores, q_matrix, k_matrix + (i + 1) % 2 * STAGE_STEP);
        wgmma_commit();
        add_weighted_rows(out, weights, v_matrix + i % 2 * STAGE_STEP);
        wgmma_commit();
        wgmma_wait<1>(scores);
        softmax(scores, best, sum, keep, behind, window, to_exponent);
        finish(sum[0] + sum[1]);
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
