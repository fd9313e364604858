// Attention of bf16 on Hopper's products of warpgroups, in the manner of FlashAttention-3 (Shah et al., 2024); the
// formula is in mod.rs. Plain and windowed scores, heads of exactly WIDTH columns; attention.cu has the rest, and tells
// how blocks share the work.
//
// The first warpgroup of a block copies tiles to shared memory, the others compute; each of those owns 64 rows of the
// block's tile, whose sums lie in its registers. They wait for tiles and never for each other, so that one has scores to
// work on while the products of another run. Forward and dq go from tile to tile, one block for each multiprocessor, so
// that what the next one needs is copied before this one has ended. WIDTH, FORWARD_GROUPS, DQ_GROUPS and DKDV_GROUPS come
// from on_cuda.rs.

constexpr int CHUNKS = WIDTH / 8;  // of 16 bytes
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
constexpr int COPIERS = 128;  // threads that copy

// Registers of a thread that copies, and of one that computes. Threads of a block share what it was given, the same for
// each at first and in eights; who asks for more waits until it is there.
template <int GROUPS, int COPIER, int OTHER> struct Registers {
    static constexpr int THREADS = COPIERS + 128 * GROUPS, GIVEN = 65536 / THREADS / 8 * 8 * THREADS;
    static_assert(COPIERS * COPIER + 128 * GROUPS * OTHER <= GIVEN, "or the block waits for ever");
    static constexpr int copier = COPIER, other = OTHER;
};

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
template <int ROWS> INLINE void load_rows(bf16* tile, const bf16* from, size_t start, u32 stride, int count) {
    constexpr int STEP = COPIERS / CHUNKS;
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

// Starts to copy the numbers of an array [query, head] for `count` queries, zeros behind them: the threads from FIRST on
// do, one for each query.
template <int QUERIES, int FIRST>
INLINE void load_numbers(float* to, const float* from, u32 start, u32 heads, int count) {
    const int query = threadIdx.x % QUERIES;
    if (threadIdx.x / QUERIES != FIRST / QUERIES) return;
    copy_async_4(to + query, from + start + query * heads, query < count);
}

// Stages of shared memory that copiers fill and the others read, in turn and for ever; both count for themselves what
// they have filled and read.
template <int STAGES> struct Ring {
    u64 *full, *empty;  // [STAGES]

    static __device__ __forceinline__ int stage(u32 number) { return number % STAGES; }
    static __device__ __forceinline__ u32 phase(u32 number) { return number / STAGES % 2; }

    // One thread calls this, before all.
    __device__ __forceinline__ void init(u32 readers) const {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(full + i, COPIERS);
            mbarrier_init(empty + i, readers);
        }
    }
    __device__ __forceinline__ void wait_until_empty(u32 number) const { mbarrier_wait(empty + stage(number), phase(number) ^ 1); }
    // All that this thread has begun to copy is for this stage or for one before.
    __device__ __forceinline__ void fill(u32 number) const { copy_async_arrive(full + stage(number)); }
    __device__ __forceinline__ void wait_until_full(u32 number) const {
        mbarrier_wait(full + stage(number), phase(number));
        fence_for_wgmma();
    }
    // A warp reads this stage no more; its products have been waited for.
    __device__ __forceinline__ void release(u32 number) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + stage(number));
    }
};

// The next ring behind those that there are.
template <int STAGES> INLINE Ring<STAGES> ring(u64*& barriers) {
    Ring<STAGES> it = {barriers, barriers + STAGES};
    barriers += 2 * STAGES;
    return it;
}

// A copier's end: nothing is under way any more.
INLINE void finish_copies() {
    copy_async_commit();
    copy_async_wait<0>();
    fence_for_wgmma();
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

// The same for rows in registers.
template <int SIZE> INLINE void products_of_rows(float (&d)[SIZE], const u32 (&a)[WIDTH / 16][4], u64 b) {
    constexpr int B_ROWS = SIZE * 2;
    wgmma<false>(d, a[0], b);
#pragma unroll
    for (int k = 1; k < WIDTH / 16; k++) wgmma<true>(d, a[k], moved_columns<B_ROWS>(b, k));
}

// Sixteen rows of a tile as a left operand, those of a warp.
template <int ROWS> INLINE void read_rows(u32 (&a)[WIDTH / 16][4], const bf16* tile, int first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) ldmatrix_x4(a[k], tile + place<ROWS>(first + lane % 16, 2 * k + lane / 16));
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
    __syncwarp();
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

// A tile of queries of a head, and the keys that they see.
struct Queries {
    u32 index;       // of the first query in [N, H]
    int count;       // of those that are there
    size_t k_start;  // where the first key begins
    int keys, tiles;
    int behind;  // places from the first key to the first query
};

template <int QUERIES, int KEYS, class Arguments> INLINE Queries queries_of(const Arguments& p, int item) {
    const Tile tile = p.query_tiles[item / p.heads];
    const int head = item % p.heads, kv = head / p.group;
    Queries it;
    it.index = (tile.first_query + tile.start) * p.heads + head;
    it.count = tile.queries - tile.start;
    const int position = tile.keys - tile.queries + tile.start, first_key = max(position - p.scores.window + 1, 0);
    it.keys = min(position + QUERIES, tile.keys) - first_key;
    it.tiles = (it.keys + KEYS - 1) / KEYS;
    it.behind = position - first_key;
    it.k_start = ((size_t)(tile.first_key + first_key) * (p.heads / p.group) + kv) * WIDTH;
    return it;
}

// Calls f for the tiles of queries and heads that are the block's. They fall in length, so blocks take turns at being the
// first.
template <int QUERIES, int KEYS, class Arguments, class F> INLINE void for_own_queries(const Arguments& p, F f) {
    const int items = p.query_tile_count * p.heads, blocks = gridDim.x, block = blockIdx.x;
    for (int round = 0; round * blocks < items; round++) {
        int item = round * blocks + (round % 2 ? blocks - 1 - block : block);
        if (item < items) f(queries_of<QUERIES, KEYS>(p, item));
    }
}

// Leaves the scores that queries have with keys: a warp's first query is `behind` places behind the first key.
template <int SIZE> INLINE void hide_unseen(float (&scores)[SIZE], int behind, int window) {
    if (behind >= SIZE * 2 - 1 && behind + 15 < window) return;
    for_each(scores, [=](float& s, int, int row, int column) {
        int distance = behind + row - column;
        if (distance < 0 || distance >= window) s = minus_infinity();
    });
}

// Takes the scores of one more tile of keys into the statistics and makes them weights; `keep` is what the sums so far
// are to be multiplied with. The warp's first query is `behind` places behind the first key.
template <int SIZE>
INLINE void softmax(float (&scores)[SIZE], float (&best)[2], float (&sum)[2], float (&keep)[2], int behind, int window,
                    float to_exponent) {
    hide_unseen(scores, behind, window);
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

extern "C" __global__ void __launch_bounds__(COPIERS + 128 * FORWARD_GROUPS, 1) attention_forward_bf16(AttentionForward p) {
    typedef Registers<FORWARD_GROUPS, 40, 232> Share;
    constexpr int QUERIES = 64 * FORWARD_GROUPS, KEYS = 128;
    constexpr int STAGE = KEYS * WIDTH, STAGE_STEP = STAGE * sizeof(bf16) / 16;
    DYNAMIC_SHARED(shared);
    bf16* q = first_tile(shared);
    bf16* staged = q + QUERIES * WIDTH;
    bf16* k = staged + QUERIES * WIDTH;
    bf16* v = k + 2 * STAGE;
    u64* barriers = (u64*)(v + 2 * STAGE);
    const Ring<1> q_ring = ring<1>(barriers);
    const Ring<2> k_ring = ring<2>(barriers), v_ring = ring<2>(barriers);
    if (threadIdx.x == 0) {
        q_ring.init(4 * FORWARD_GROUPS);
        k_ring.init(4 * FORWARD_GROUPS);
        v_ring.init(4 * FORWARD_GROUPS);
    }
    __syncthreads();

    const u32 q_stride = p.heads * WIDTH, k_stride = p.heads / p.group * WIDTH;
    u32 item_number = 0, tile_number = 0;
    if (warp_number() < COPIERS / 32) {
        fewer_registers<Share::copier>();
        for_own_queries<QUERIES, KEYS>(p, [&](const Queries& at) {
            q_ring.wait_until_empty(item_number);
            load_rows<QUERIES>(q, p.q, (size_t)at.index * WIDTH, q_stride, at.count);
            q_ring.fill(item_number++);
            for (int i = 0; i < at.tiles; i++, tile_number++) {
                const size_t start = at.k_start + (size_t)i * KEYS * k_stride;
                const int stage = tile_number % 2 * STAGE, left = at.keys - i * KEYS;
                k_ring.wait_until_empty(tile_number);
                load_rows<KEYS>(k + stage, p.k, start, k_stride, left);
                k_ring.fill(tile_number);
                v_ring.wait_until_empty(tile_number);
                load_rows<KEYS>(v + stage, p.v, start, k_stride, left);
                v_ring.fill(tile_number);
            }
        });
        finish_copies();
        return;
    }
    more_registers<Share::other>();

    const int own_row = warp_number() * 16 - COPIERS / 2, lane = threadIdx.x % 32, window = p.scores.window;
    const float to_exponent = p.scores.scale * LOG2_E;
    const u64 k_matrix = wgmma_matrix(k, 0), v_matrix = wgmma_matrix(v, KEYS * 128);
    for_own_queries<QUERIES, KEYS>(p, [&](const Queries& at) {
        float out[WIDTH / 2], scores[KEYS / 2];
        u32 queries[WIDTH / 16][4], weights[KEYS / 16][4];
        float best[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0.0f, 0.0f}, keep[2];
        clear(out);
        // The warp's first query is `behind` places behind the first key of the tile at hand.
        int behind = at.behind + own_row;
        q_ring.wait_until_full(item_number);
        read_rows<QUERIES>(queries, q, own_row);
        q_ring.release(item_number++);

        k_ring.wait_until_full(tile_number);
        wgmma_fence();
        products_of_rows(scores, queries, k_matrix + tile_number % 2 * STAGE_STEP);
        wgmma_commit();
        wgmma_wait<0>(scores);
        k_ring.release(tile_number);
        softmax(scores, best, sum, keep, behind, window, to_exponent);
        round_weights(weights, scores);

        for (int i = 0; i + 1 < at.tiles; i++, tile_number++) {
            behind -= KEYS;
            k_ring.wait_until_full(tile_number + 1);
            wgmma_fence();
            products_of_rows(scores, queries, k_matrix + (tile_number + 1) % 2 * STAGE_STEP);
            wgmma_commit();
            v_ring.wait_until_full(tile_number);
            add_weighted_rows(out, weights, v_matrix + tile_number % 2 * STAGE_STEP);
            wgmma_commit();
            wgmma_wait<1>(scores);
            k_ring.release(tile_number + 1);
            softmax(scores, best, sum, keep, behind, window, to_exponent);
            finish_bits(__float_as_uint(sum[0] + sum[1]));
            wgmma_wait<0>(out);
            v_ring.release(tile_number);
            for_each(out, [&](float& o, int half, int, int) { o *= keep[half]; });
            round_weights(weights, scores);
        }
        v_ring.wait_until_full(tile_number);
        wgmma_fence();
        add_weighted_rows(out, weights, v_matrix + tile_number % 2 * STAGE_STEP);
        wgmma_commit();
        wgmma_wait<0>(out);
        v_ring.release(tile_number++);

#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] = quad_sum(sum[half]);
            int row = own_row + half * 8 + lane / 4;
            if (p.lse && lane % 4 == 0 && row < at.count)
                p.lse[at.index + row * p.heads] = best[half] * to_exponent * LN_2 + logf(sum[half]);
            sum[half] = 1.0f / sum[half];
        }
        for_each(out, [&](float& o, int half, int, int) { o *= sum[half]; });
        bf16* rows = p.out + ((size_t)at.index + own_row * p.heads) * WIDTH;
        store_rows<QUERIES>(rows, q_stride, at.count - own_row, staged, own_row, out);
    });
}

// Backward goes through tiles of 64 queries or keys.
constexpr int STAGES = 4, STAGE_ROWS = 64, STAGE = STAGE_ROWS * WIDTH, STAGE_STEP = STAGE * sizeof(bf16) / 16;

// dk and dv: in registers, rows are keys and columns queries.
extern "C" __global__ void __launch_bounds__(COPIERS + 128 * DKDV_GROUPS, 1) attention_dkdv_bf16(AttentionBackward p) {
    typedef Registers<DKDV_GROUPS, 24, 240> Share;
    constexpr int KEYS = 64 * DKDV_GROUPS, QUERIES = STAGE_ROWS;
    DYNAMIC_SHARED(shared);
    bf16* k = first_tile(shared);
    bf16* v = k + KEYS * WIDTH;
    bf16* q = v + KEYS * WIDTH;
    bf16* dout = q + STAGES * STAGE;
    float* lse = (float*)(dout + STAGES * STAGE);  // [STAGES, QUERIES]
    float* delta = lse + STAGES * QUERIES;
    u64* barriers = (u64*)(delta + STAGES * QUERIES);
    const Ring<1> k_ring = ring<1>(barriers);
    const Ring<STAGES> q_ring = ring<STAGES>(barriers);
    if (threadIdx.x == 0) {
        k_ring.init(4 * DKDV_GROUPS);
        q_ring.init(4 * DKDV_GROUPS);
    }
    __syncthreads();

    const int key_heads = p.heads / p.group, window = p.scores.window;
    const int parts = p.parts, part = blockIdx.x % parts;
    const int first_of_part = part * p.group / parts, part_heads = (part + 1) * p.group / parts - first_of_part;
    const Tile tile = p.key_tiles[blockIdx.x / (key_heads * parts)];
    const int kv = blockIdx.x / parts % key_heads, first_head = kv * p.group + first_of_part;
    const u32 q_stride = p.heads * WIDTH, k_stride = key_heads * WIDTH;
    const size_t k_start = (size_t)(tile.first_key + tile.start) * k_stride + kv * WIDTH;

    // Queries that see some of the keys, in tiles of one head after the other.
    const int shift = tile.keys - tile.queries, last_key = min(tile.start + KEYS, tile.keys) - 1;
    const int first_query = max(tile.start - shift, 0), end_query = min(tile.queries, last_key - shift + window);
    const int tiles_of_head = first_query < end_query ? (end_query - first_query + QUERIES - 1) / QUERIES : 0;
    const int tiles = tiles_of_head * part_heads;

    if (warp_number() < COPIERS / 32) {
        fewer_registers<Share::copier>();
        if (tiles == 0) return;
        load_rows<KEYS>(k, p.k, k_start, k_stride, tile.keys - tile.start);
        load_rows<KEYS>(v, p.v, k_start, k_stride, tile.keys - tile.start);
        k_ring.fill(0);
        int head = first_head, query = first_query;
        for (int number = 0; number < tiles; number++) {
            const int stage = number % STAGES, count = end_query - query;
            const u32 index = (tile.first_query + query) * p.heads + head;
            q_ring.wait_until_empty(number);
            load_rows<QUERIES>(q + stage * STAGE, p.q, (size_t)index * WIDTH, q_stride, count);
            load_rows<QUERIES>(dout + stage * STAGE, p.dout, (size_t)index * WIDTH, q_stride, count);
            load_numbers<QUERIES, 0>(lse + stage * QUERIES, p.lse, index, p.heads, count);
            load_numbers<QUERIES, QUERIES>(delta + stage * QUERIES, p.delta, index, p.heads, count);
            q_ring.fill(number);
            query += QUERIES;
            if (query >= end_query) query = first_query, head++;
        }
        finish_copies();
        return;
    }
    more_registers<Share::other>();

    // Query own_key is at the position of the warp's first key.
    const int warp = warp_number() - COPIERS / 32, own_row = warp * 16, lane = threadIdx.x % 32;
    const int own_key = tile.start + own_row - shift;
    float dk[WIDTH / 2], dv[WIDTH / 2];
    clear(dk);
    clear(dv);
    const float scale = p.scores.scale, to_exponent = scale * LOG2_E;
    const u64 k_matrix = wgmma_matrix(k + warp / 4 * 64 * 64, 0), v_matrix = wgmma_matrix(v + warp / 4 * 64 * 64, 0);
    const u64 q_matrix = wgmma_matrix(q, QUERIES * 128), dout_matrix = wgmma_matrix(dout, QUERIES * 128);
    if (tiles > 0) {
        // A query that is not there has zeros for all: its weights are of zeros, and so is what they are multiplied with.
        float scores[QUERIES / 2], ds[QUERIES / 2];
        u32 p_weights[QUERIES / 16][4], ds_weights[QUERIES / 16][4];
        int query = first_query;
        k_ring.wait_until_full(0);
        q_ring.wait_until_full(0);
        wgmma_fence();
        products_of_rows<KEYS>(scores, k_matrix, q_matrix);
        wgmma_commit();
        for (int number = 0; number < tiles; number++) {
            const int stage = number % STAGES;
            wgmma_fence();
            products_of_rows<KEYS>(ds, v_matrix, dout_matrix + stage * STAGE_STEP);
            wgmma_commit();
            wgmma_wait<1>(scores);
            const int ahead = query - own_key;  // places from the warp's first key to the first query
            if (ahead < 15 || ahead + QUERIES - 1 >= window)
                for_each(scores, [=](float& s, int, int row, int column) {
                    int distance = ahead + column - row;
                    if (distance < 0 || distance >= window) s = minus_infinity();
                });
            const Pair* exponent = (const Pair*)(lse + stage * QUERIES + lane % 4 * 2);
#pragma unroll
            for (int j = 0; j < QUERIES / 2; j++)
                scores[j] = exp2_approx(fmaf(scores[j], to_exponent, exponent[j / 4 * 4].at[j % 2] * -LOG2_E));
            round_weights(p_weights, scores);
            wgmma_fence();
            add_weighted_rows(dv, p_weights, dout_matrix + stage * STAGE_STEP);
            wgmma_commit();
            wgmma_wait<1>(ds);
            const Pair* deltas = (const Pair*)(delta + stage * QUERIES + lane % 4 * 2);
#pragma unroll
            for (int j = 0; j < QUERIES / 2; j++) ds[j] = (ds[j] - deltas[j / 4 * 4].at[j % 2]) * scores[j];
            round_weights(ds_weights, ds);
            wgmma_fence();
            add_weighted_rows(dk, ds_weights, q_matrix + stage * STAGE_STEP);
            wgmma_commit();
            if (number + 1 < tiles) {
                q_ring.wait_until_full(number + 1);
                wgmma_fence();
                products_of_rows<KEYS>(scores, k_matrix, q_matrix + (number + 1) % STAGES * STAGE_STEP);
                wgmma_commit();
                wgmma_wait<1>(dv);
                wgmma_wait<1>(dk);
            } else {
                wgmma_wait<0>(dv);
                wgmma_wait<0>(dk);
            }
            q_ring.release(number);
            query += QUERIES;
            if (query >= end_query) query = first_query;
        }
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
    k_ring.release(0);
    mbarrier_wait(k_ring.empty, 0);  // k and v are no longer read
    store_rows<KEYS>(p.dk + first, k_stride, count, k, own_row, dk);
    store_rows<KEYS>(p.dv + first, k_stride, count, v, own_row, dv);
}

extern "C" __global__ void __launch_bounds__(COPIERS + 128 * DQ_GROUPS, 1) attention_dq_bf16(AttentionBackward p) {
    typedef Registers<DQ_GROUPS, 24, 240> Share;
    constexpr int QUERIES = 64 * DQ_GROUPS, KEYS = STAGE_ROWS;
    DYNAMIC_SHARED(shared);
    bf16* q = first_tile(shared);
    bf16* dout = q + QUERIES * WIDTH;
    bf16* staged = dout + QUERIES * WIDTH;
    bf16* k = staged + QUERIES * WIDTH;
    bf16* v = k + STAGES * STAGE;
    float* lse = (float*)(v + STAGES * STAGE);  // [QUERIES]
    float* delta = lse + QUERIES;
    u64* barriers = (u64*)(delta + QUERIES);
    const Ring<1> q_ring = ring<1>(barriers);
    const Ring<STAGES> k_ring = ring<STAGES>(barriers);
    if (threadIdx.x == 0) {
        q_ring.init(4 * DQ_GROUPS);
        k_ring.init(4 * DQ_GROUPS);
    }
    __syncthreads();

    const u32 q_stride = p.heads * WIDTH, k_stride = p.heads / p.group * WIDTH;
    u32 item_number = 0, tile_number = 0;
    if (warp_number() < COPIERS / 32) {
        fewer_registers<Share::copier>();
        for_own_queries<QUERIES, KEYS>(p, [&](const Queries& at) {
            q_ring.wait_until_empty(item_number);
            load_rows<QUERIES>(q, p.q, (size_t)at.index * WIDTH, q_stride, at.count);
            load_rows<QUERIES>(dout, p.dout, (size_t)at.index * WIDTH, q_stride, at.count);
            load_numbers<QUERIES, 0>(lse, p.lse, at.index, p.heads, at.count);
            load_numbers<QUERIES, 0>(delta, p.delta, at.index, p.heads, at.count);
            q_ring.fill(item_number++);
            for (int i = 0; i < at.tiles; i++, tile_number++) {
                const size_t start = at.k_start + (size_t)i * KEYS * k_stride;
                const int stage = tile_number % STAGES * STAGE, left = at.keys - i * KEYS;
                k_ring.wait_until_empty(tile_number);
                load_rows<KEYS>(k + stage, p.k, start, k_stride, left);
                load_rows<KEYS>(v + stage, p.v, start, k_stride, left);
                k_ring.fill(tile_number);
            }
        });
        finish_copies();
        return;
    }
    more_registers<Share::other>();

    const int own_row = warp_number() * 16 - COPIERS / 2, lane = threadIdx.x % 32, window = p.scores.window;
    const float scale = p.scores.scale, to_exponent = scale * LOG2_E;
    const u64 k_matrix = wgmma_matrix(k, KEYS * 128), v_matrix = wgmma_matrix(v, 0);
    for_own_queries<QUERIES, KEYS>(p, [&](const Queries& at) {
        float dq[WIDTH / 2], scores[KEYS / 2], ds[KEYS / 2];
        u32 queries[WIDTH / 16][4], douts[WIDTH / 16][4], weights[KEYS / 16][4];
        float exponent[2], own_delta[2];
        clear(dq);
        int behind = at.behind + own_row;
        q_ring.wait_until_full(item_number);
        read_rows<QUERIES>(queries, q, own_row);
        read_rows<QUERIES>(douts, dout, own_row);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            exponent[half] = lse[own_row + half * 8 + lane / 4] * LOG2_E;
            own_delta[half] = delta[own_row + half * 8 + lane / 4];
        }
        q_ring.release(item_number++);

        auto multiply_scores = [&](u32 number) {
            products_of_rows(scores, queries, k_matrix + number % STAGES * STAGE_STEP);
            wgmma_commit();
            products_of_rows(ds, douts, v_matrix + number % STAGES * STAGE_STEP);
            wgmma_commit();
        };
        auto add_to_sums = [&](u32 number) {
            add_weighted_rows(dq, weights, k_matrix + number % STAGES * STAGE_STEP);
            wgmma_commit();
        };
        auto scores_to_p = [&]() {
            hide_unseen(scores, behind, window);
            for_each(scores, [&](float& s, int half, int, int) {
                s = exp2_approx(fmaf(s, to_exponent, -exponent[half]));
            });
            behind -= KEYS;
            finish(scores);
        };
        auto to_ds = [&]() {
            for_each(ds, [&](float& s, int half, int, int) { s -= own_delta[half]; });
#pragma unroll
            for (int j = 0; j < KEYS / 2; j++) ds[j] *= scores[j];
            finish(ds);
        };

        k_ring.wait_until_full(tile_number);
        wgmma_fence();
        multiply_scores(tile_number);
        wgmma_wait<1>(scores);
        scores_to_p();
        wgmma_wait<0>(ds);
        to_ds();
        round_weights(weights, ds);
        for (int i = 0; i + 1 < at.tiles; i++, tile_number++) {
            k_ring.wait_until_full(tile_number + 1);
            wgmma_fence();
            multiply_scores(tile_number + 1);
            add_to_sums(tile_number);
            wgmma_wait<2>(scores);
            scores_to_p();
            wgmma_wait<1>(ds);
            to_ds();
            wgmma_wait<0>(dq);
            k_ring.release(tile_number);
            round_weights(weights, ds);
        }
        wgmma_fence();
        add_to_sums(tile_number);
        wgmma_wait<0>(dq);
        k_ring.release(tile_number++);

        for_each(dq, [=](float& x, int, int, int) { x *= scale; });
        bf16* rows = p.dq + ((size_t)at.index + own_row * p.heads) * WIDTH;
        store_rows<QUERIES>(rows, q_stride, at.count - own_row, staged, own_row, dq);
    });
}
