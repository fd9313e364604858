// What the kernels of attention.cu and hopper.cu are given: the structs of on_cuda.rs. hopper.cu knows no slopes and no cap.

// A row of the micro-batch and which of its queries or keys a block has: from `start`, counted within the row.
struct Tile {
    int first_query, queries, first_key, keys, start;
};

struct Scores {
    const float* slopes;  // [H] or null
    float scale, softcap; // 0: no cap
    int window;           // at most 2^30
};

struct AttentionForward {
    const bf16 *q, *k, *v;
    bf16* out;
    float* lse;  // or null
    const Tile* query_tiles;
    Scores scores;
    int heads, group, width, query_tile_count;
};

struct AttentionBackward {
    const bf16 *q, *k, *v, *out, *dout;
    const float* lse;
    float* delta;
    bf16 *dq, *dk, *dv;
    const Tile* query_tiles;
    const Tile* key_tiles;
    // The query heads of a key head are shared out in parts; if there are several, their dk and then dv come here:
    // f32 [2, parts, keys, key heads, D].
    float* partial;
    Scores scores;
    int heads, group, width, queries, keys, parts, query_tile_count;
};
