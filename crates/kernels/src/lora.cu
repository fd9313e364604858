// The thin products of LoRA for bf16; formulas and shapes are in lora.rs. One operand is as large as an activation, the
// others are a few columns, so everything is arranged for reading the large one once, 16 bytes at a time, with much of
// it under way.
//
// Ranks are cut into tiles of eight, the narrow side of a fragment, so that adapters of one input are tiles side by
// side. PAIRS is their number halved: kernels take tiles in twos.

typedef Vector<u32, 4> Words;  // eight bf16

INLINE Words no_words() { return Words{{0, 0, 0, 0}}; }

INLINE void add(float (&sum)[4], const float* from) {
    float more[4];
    load_floats<float, 4>(more, from);
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] += more[i];
}

constexpr int MOST_TILES = 8;

// Eight rows of an A, and eight columns of the xa [N, rank] that they make; nothing is written if `xa` is null.
struct LoraDownTile {
    const bf16* a;
    bf16* xa;
    u32 rank;
    float scale;
};

struct LoraDown {
    const bf16* x;
    u32 rows, columns;
    LoraDownTile tiles[MOST_TILES];
};

// xa = s·x·Aᵀ. A block has some bands of 16 rows, and its warps take turns at the columns. Which column is which in a
// fragment's depth doesn't matter as long as both operands agree, so each lane has eight neighbours of a row: two
// fragments' worth, straight from memory.
template <int BANDS, int PAIRS> INLINE void down(const LoraDown& p) {
    // A turn is 64 columns, or 32 where registers are short.
    constexpr int WARPS = 16, ROWS = 16 * BANDS, TILES = 2 * PAIRS, SIDES = BANDS * PAIRS > 4 ? 1 : 2, TURN = 32 * SIDES;
    __shared__ float sums[WARPS][ROWS][16];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 first_row = blockIdx.x * ROWS;

    const bf16* x[BANDS][2];
#pragma unroll
    for (int m = 0; m < BANDS; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 row = min(first_row + m * 16 + half * 8 + lane / 4, p.rows - 1);
            x[m][half] = p.x + (size_t)row * p.columns;
        }

    float d[BANDS][TILES][4];
#pragma unroll
    for (int m = 0; m < BANDS; m++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) d[m][t][e] = 0.0f;

    for (u32 start = warp * TURN; start < p.columns; start += WARPS * TURN) {
        Words rows[SIDES][BANDS][2], a[SIDES][TILES];
#pragma unroll
        for (int side = 0; side < SIDES; side++) {
            // Behind the last column, it is that of A that counts as zero.
            const u32 column = start + side * 32 + lane % 4 * 8, there = min(column, p.columns - 8);
#pragma unroll
            for (int m = 0; m < BANDS; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) rows[side][m][half] = *(const Words*)(x[m][half] + there);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                a[side][t] = *(const Words*)(p.tiles[t].a + (size_t)(lane / 4) * p.columns + there);
                if (column != there) a[side][t] = no_words();
            }
        }
        __syncwarp();  // so that the compiler asks for all of it before it waits for any
#pragma unroll
        for (int side = 0; side < SIDES; side++)
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int t = 0; t < TILES; t++)
#pragma unroll
                    for (int m = 0; m < BANDS; m++) {
                        const Words &upper = rows[side][m][0], &lower = rows[side][m][1];
                        const u32 left[4] = {upper.at[2 * k], lower.at[2 * k], upper.at[2 * k + 1], lower.at[2 * k + 1]};
                        const u32 right[2] = {a[side][t].at[2 * k], a[side][t].at[2 * k + 1]};
                        mma_bf16(d[m][t], left, right);
                    }
    }

#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
        __syncthreads();
#pragma unroll
        for (int m = 0; m < BANDS; m++)
#pragma unroll
            for (int t = 0; t < 2; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float* to = &sums[warp][m * 16 + half * 8 + lane / 4][t * 8 + lane % 4 * 2];
                    to[0] = d[m][2 * pair + t][2 * half];
                    to[1] = d[m][2 * pair + t][2 * half + 1];
                }
        __syncthreads();
        const int row = threadIdx.x / 16, column = threadIdx.x % 16;
        if (row < ROWS && first_row + row < p.rows) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += sums[w][row][column];
            const LoraDownTile tile = column < 8 ? p.tiles[2 * pair] : p.tiles[2 * pair + 1];
            if (tile.xa) tile.xa[(size_t)(first_row + row) * tile.rank + column % 8] = from_f32<bf16>(tile.scale * sum);
        }
    }
}

#define DOWN(BANDS, PAIRS) \
    extern "C" __global__ void __launch_bounds__(512) lora_down_##BANDS##_##PAIRS##_bf16(LoraDown p) { down<BANDS, PAIRS>(p); }
DOWN(1, 1)
DOWN(1, 2)
DOWN(1, 3)
DOWN(1, 4)
DOWN(2, 1)
DOWN(2, 2)
DOWN(2, 3)
DOWN(2, 4)

struct LoraBackwardOutput {
    const bf16 *dy, *b, *xa;
    float* dxa_parts;  // [blocks of columns, N, R]
    float* db_parts;   // [ranges of rows, out, R], or null
    u32 rows, columns, rank, rows_per_range;
};

// `count` rows of `width` columns, at most ROWS and 16·PAIRS, to shared memory with zeros for what is not there; rows
// there are 16·PAIRS + 8 apart, which puts eight of them into all banks.
template <int ROWS, int PAIRS>
INLINE void load_thin(bf16* to, const bf16* from, size_t first, u32 width, u32 count) {
    constexpr int CHUNKS = 2 * PAIRS;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += 128) {
        const u32 row = i / CHUNKS, chunk = i % CHUNKS;
        const bool valid = row < count && chunk * 8 < width;
        copy_async_16(to + row * (16 * PAIRS + 8) + chunk * 8, valid ? from + (first + row) * width + chunk * 8 : from, valid);
    }
}

// A part of dxa and of dB from one reading of dy. A block goes through a range of rows of 64·SIDES columns in tiles of
// 64×64. Its four warps own 16 rows of each tile for dxa, whose sum over the block's columns stays in registers until
// the rows change, and 16 columns for dB, whose sum over the range stays there to the end.
template <int PAIRS, int SIDES> INLINE void backward_output(const LoraBackwardOutput& p) {
    constexpr int TILE = 64, STRIDE = TILE + 8, THIN = 16 * PAIRS + 8, STAGES = 4, TILES = 2 * PAIRS;
    DYNAMIC_SHARED(shared);
    bf16* dy = (bf16*)shared;                  // [STAGES][TILE][STRIDE]
    bf16* xa = dy + STAGES * TILE * STRIDE;    // [STAGES][TILE][THIN]
    bf16* b = xa + STAGES * TILE * THIN;       // [SIDES·TILE][THIN]
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 first_column = blockIdx.x * SIDES * TILE, first_row = blockIdx.y * p.rows_per_range;
    const u32 end_row = min(first_row + p.rows_per_range, p.rows);
    const int steps = (int)((end_row - first_row + TILE - 1) / TILE) * SIDES;

    auto load = [&](int step) {
        const u32 row = first_row + step / SIDES * TILE, column = first_column + step % SIDES * TILE;
        const u32 chunk = threadIdx.x % 8 * 8;
        bf16* to = dy + step % STAGES * TILE * STRIDE + chunk;
#pragma unroll
        for (u32 i = threadIdx.x / 8; i < TILE; i += 16) {
            const bool valid = row + i < end_row && column + chunk < p.columns;
            copy_async_16(to + i * STRIDE, valid ? p.dy + (size_t)(row + i) * p.columns + column + chunk : p.dy, valid);
        }
        if (step % SIDES == 0)
            load_thin<TILE, PAIRS>(xa + step / SIDES % STAGES * TILE * THIN, p.xa, row, p.rank, end_row - row);
    };

    load_thin<SIDES * TILE, PAIRS>(b, p.b, first_column, p.rank, p.columns - first_column);
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        copy_async_commit();
    }

    float db[SIDES][TILES][4];
#pragma unroll
    for (int side = 0; side < SIDES; side++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) db[side][t][e] = 0.0f;

    // Where a lane finds its row of a fragment: straight left operands and transposed right ones, transposed left ones.
    const int row_of_lane = lane % 16, column_of_lane = lane / 16 * 8;
    const int depth_of_lane = lane / 16 * 8 + lane % 8, outer_of_lane = lane / 8 % 2 * 8;

    for (int step = 0; step < steps;) {
        const u32 row = first_row + step / SIDES * TILE + warp * 16 + lane / 4;
        const bf16* xa_rows = xa + step / SIDES % STAGES * TILE * THIN;
        float dxa[TILES][4];
        u32 xa_words[TILE / 16][PAIRS][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) dxa[t][e] = 0.0f;
#pragma unroll
        for (int side = 0; side < SIDES; side++, step++) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();  // this step's tile is here, and the last one's is no longer read
            if (step + STAGES - 1 < steps) load(step + STAGES - 1);
            copy_async_commit();
            if (side == 0) {
#pragma unroll
                for (int k = 0; k < TILE / 16; k++)
#pragma unroll
                    for (int pair = 0; pair < PAIRS; pair++)
                        ldmatrix_x4_transposed(xa_words[k][pair],
                                               xa_rows + (k * 16 + row_of_lane) * THIN + pair * 16 + column_of_lane);
            }
            const bf16* tile = dy + step % STAGES * TILE * STRIDE;
            const bf16* b_rows = b + side * TILE * THIN;
#pragma unroll
            for (int k = 0; k < TILE / 16; k++) {
                u32 rows[4], columns[4];
                ldmatrix_x4(rows, tile + (warp * 16 + row_of_lane) * STRIDE + k * 16 + column_of_lane);
                ldmatrix_x4_transposed(columns, tile + (k * 16 + depth_of_lane) * STRIDE + warp * 16 + outer_of_lane);
#pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) {
                    u32 b_words[4];
                    ldmatrix_x4_transposed(b_words, b_rows + (k * 16 + row_of_lane) * THIN + pair * 16 + column_of_lane);
#pragma unroll
                    for (int t = 0; t < 2; t++) {
                        const u32 of_b[2] = {b_words[2 * t], b_words[2 * t + 1]};
                        const u32 of_xa[2] = {xa_words[k][pair][2 * t], xa_words[k][pair][2 * t + 1]};
                        mma_bf16(dxa[2 * pair + t], rows, of_b);
                        mma_bf16(db[side][2 * pair + t], columns, of_xa);
                    }
                }
            }
        }
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row + half * 8 < end_row && t * 8 < p.rank) {
                    float* to = p.dxa_parts + ((size_t)blockIdx.x * p.rows + row + half * 8) * p.rank + t * 8 + lane % 4 * 2;
                    *(Vector<float, 2>*)to = Vector<float, 2>{{dxa[t][2 * half], dxa[t][2 * half + 1]}};
                }
    }
    copy_async_wait<0>();
    if (!p.db_parts) return;
#pragma unroll
    for (int side = 0; side < SIDES; side++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 column = first_column + side * TILE + warp * 16 + half * 8 + lane / 4;
                if (column < p.columns && t * 8 < p.rank) {
                    float* to = p.db_parts + ((size_t)blockIdx.y * p.columns + column) * p.rank + t * 8 + lane % 4 * 2;
                    *(Vector<float, 2>*)to = Vector<float, 2>{{db[side][t][2 * half], db[side][t][2 * half + 1]}};
                }
            }
}

#define BACKWARD_OUTPUT(PAIRS, SIDES) \
    extern "C" __global__ void __launch_bounds__(128) lora_backward_output_##PAIRS##_##SIDES##_bf16(LoraBackwardOutput p) { backward_output<PAIRS, SIDES>(p); }
BACKWARD_OUTPUT(1, 2)
BACKWARD_OUTPUT(1, 4)
BACKWARD_OUTPUT(2, 2)
BACKWARD_OUTPUT(2, 4)
BACKWARD_OUTPUT(4, 2)

// Eight columns of a dxa [N, rank], or null.
struct LoraDxaTile {
    const bf16* dxa;
    u32 rank;
};

struct LoraBackwardInput {
    const bf16* x;
    float* parts;  // [ranges of rows, 8·tiles, in]
    u32 rows, columns, rows_per_range, ranks;
    LoraDxaTile tiles[MOST_TILES];
};

// A part of dA = dxaᵀ·x. A block has 64 columns of a range of rows, and its eight warps take turns at the rows. The sum
// goes over rows, so a fragment of x wants two rows in a word: each lane has eight neighbours of four rows, and their
// words are put together crosswise. Which column is which then is a matter of where the result goes.
template <int PAIRS> INLINE void backward_input(const LoraBackwardInput& p) {
    constexpr int WARPS = 8, BANDS = PAIRS == 1 ? 2 : 1, THIN = 16 * PAIRS + 8;
    __shared__ __align__(16) float sums[WARPS][16][64];
    // Before it holds sums, each warp's part of that memory holds 16 rows of dxa.
    static_assert(16 * THIN * sizeof(bf16) <= sizeof(sums[0]), "16 rows of dxa");
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bf16* stage = (bf16*)&sums[warp][0][0];
    const u32 first_row = blockIdx.y * p.rows_per_range, end_row = min(first_row + p.rows_per_range, p.rows);
    const u32 column = blockIdx.x * 64 + lane / 4 * 8;

    struct Rows {
        Words x[BANDS][4], dxa[BANDS][PAIRS];
    };
    auto load = [&](Rows& to, u32 start) {
#pragma unroll
        for (int m = 0; m < BANDS; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 row = start + m * 16 + lane % 4 * 2 + i % 2 + i / 2 * 8;
                const bool valid = row < end_row && column < p.columns;
                to.x[m][i] = valid ? *(const Words*)(p.x + (size_t)row * p.columns + column) : no_words();
            }
            const u32 row = start + m * 16 + lane / 2;
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                const bf16* dxa = lane % 2 ? p.tiles[2 * pair + 1].dxa : p.tiles[2 * pair].dxa;
                const u32 rank = lane % 2 ? p.tiles[2 * pair + 1].rank : p.tiles[2 * pair].rank;
                to.dxa[m][pair] = dxa && row < end_row ? *(const Words*)(dxa + (size_t)row * rank) : no_words();
            }
        }
    };

    float d[PAIRS][8][4];
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int c = 0; c < 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) d[pair][c][e] = 0.0f;

    Rows rows, next;
    u32 start = first_row + warp * 16 * BANDS;
    load(rows, start);
    for (; start < end_row; start += WARPS * 16 * BANDS) {
        load(next, start + WARPS * 16 * BANDS);
#pragma unroll
        for (int m = 0; m < BANDS; m++) {
            u32 left[PAIRS][4];
            __syncwarp();
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++)
                *(Words*)(stage + lane / 2 * THIN + pair * 16 + lane % 2 * 8) = rows.dxa[m][pair];
            __syncwarp();
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++)
                ldmatrix_x4_transposed(left[pair], stage + (lane / 16 * 8 + lane % 8) * THIN + pair * 16 + lane / 8 % 2 * 8);
#pragma unroll
            for (int c = 0; c < 8; c++) {
                const int word = c / 2;
                const u32 half = c % 2 ? 0x7632 : 0x5410;
                const Words* x = rows.x[m];
                const u32 right[2] = {__byte_perm(x[0].at[word], x[1].at[word], half),
                                      __byte_perm(x[2].at[word], x[3].at[word], half)};
#pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) mma_bf16(d[pair][c], left[pair], right);
            }
        }
        rows = next;
    }

#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
        __syncthreads();
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float* to = &sums[warp][e / 2 * 8 + lane / 4][lane % 4 * 16 + e % 2 * 8];
#pragma unroll
            for (int c = 0; c < 8; c += 4)
                *(Vector<float, 4>*)(to + c) = Vector<float, 4>{{d[pair][c][e], d[pair][c + 1][e], d[pair][c + 2][e], d[pair][c + 3][e]}};
        }
        __syncthreads();
        const u32 row = threadIdx.x / 16, at = threadIdx.x % 16 * 4;
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < WARPS; w++) add(sum, &sums[w][row][at]);
        const size_t part = ((size_t)blockIdx.y * p.ranks + pair * 16 + row) * p.columns;
        if (pair * 16 + row < p.ranks && blockIdx.x * 64 + at < p.columns)
            store_floats<float, 4>(p.parts + (part + blockIdx.x * 64 + at), sum);
    }
}

// With as many blocks on a multiprocessor as registers are enough for.
#define BACKWARD_INPUT(PAIRS, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) lora_backward_input_##PAIRS##_bf16(LoraBackwardInput p) { backward_input<PAIRS>(p); }
BACKWARD_INPUT(1, 2)
BACKWARD_INPUT(2, 2)
BACKWARD_INPUT(3, 1)
BACKWARD_INPUT(4, 1)

// Parts that lie `stride` elements apart, added up in order: to f32, on top of what is there, or to bf16 with a scale.
struct LoraSum {
    const float* parts;
    void* to;
    u64 elements, stride;
    u32 count, rounded;
    float scale;
};

constexpr int MOST_SUMS = 4;

struct LoraSums {
    LoraSum sums[MOST_SUMS];
};

// A block has 128 elements of one of the sums, and its eight warps take turns at the parts.
extern "C" __global__ void __launch_bounds__(256) lora_add_parts(LoraSums p) {
    constexpr int WARPS = 8;
    __shared__ __align__(16) float sums[WARPS][128];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 first = (u64)blockIdx.x * 128;
    int which = 0;
    while (first >= (p.sums[which].elements + 127) / 128 * 128) {
        first -= (p.sums[which].elements + 127) / 128 * 128;
        which++;
    }
    const LoraSum of = p.sums[which];
    const u64 element = first + lane * 4;
    const bool inside = element < of.elements;

    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (inside) {
#pragma unroll 4
        for (u32 part = warp; part < of.count; part += WARPS) add(sum, of.parts + part * of.stride + element);
    }
    store_floats<float, 4>(&sums[warp][lane * 4], sum);
    __syncthreads();
    if (warp != 0 || !inside) return;
#pragma unroll
    for (int w = 1; w < WARPS; w++) add(sum, &sums[w][lane * 4]);
    if (of.rounded) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] *= of.scale;
        store_floats<bf16, 4>((bf16*)of.to + element, sum);
    } else {
        add(sum, (const float*)of.to + element);
        store_floats<float, 4>((float*)of.to + element, sum);
    }
}
