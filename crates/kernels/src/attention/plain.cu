// Attention of any width up to 512 and of either type, without tensor cores: what attention.cu does not do. One warp for
// each query and head, or for each key and key head; its lanes share the columns. The formula is in mod.rs.

struct Scores {
    const float* slopes;   // [H] or null
    float scale, softcap;  // 0: no cap
    int window;
};

struct AttentionForward {
    const void *q, *k, *v;
    void* out;
    float* lse;  // or null
    const u32 *q_offsets, *k_offsets;
    Scores scores;
    int rows, heads, group, width, queries;
};

struct AttentionBackward {
    const void *q, *k, *v, *out, *dout;
    const float* lse;
    float* delta;
    void *dq, *dk, *dv;
    const u32 *q_offsets, *k_offsets;
    Scores scores;
    int rows, heads, group, width, queries, keys;
};

constexpr int WARPS = 4;

INLINE int own_warp() { return blockIdx.x * WARPS + threadIdx.x / 32; }

// The row of a token: the last that begins at or before it.
INLINE int row_of(const u32* offsets, int rows, u32 token) {
    int first = 0, end = rows;
    while (end - first > 1) {
        int middle = (first + end) / 2;
        if (offsets[middle] <= token) first = middle;
        else end = middle;
    }
    return first;
}

// Columns lane, lane + 32, … of a token's head; zeros beyond the width.
template <int EACH> struct Columns {
    float at[EACH];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int e = 0; e < EACH; e++) at[e] = 0.0f;
    }

    template <class T> __device__ __forceinline__ void load(const void* x, size_t index, int width) {
        const T* from = (const T*)x + index * width;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int column = e * 32 + threadIdx.x % 32;
            at[e] = column < width ? to_f32(from[column]) : 0.0f;
        }
    }

    template <class T> __device__ __forceinline__ void store(void* x, size_t index, int width, float factor) const {
        T* to = (T*)x + index * width;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int column = e * 32 + threadIdx.x % 32;
            if (column < width) to[column] = from_f32<T>(at[e] * factor);
        }
    }

    __device__ __forceinline__ void add(float factor, const Columns& other) {
#pragma unroll
        for (int e = 0; e < EACH; e++) at[e] = fmaf(factor, other.at[e], at[e]);
    }

    __device__ __forceinline__ float dot(const Columns& other) const {
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < EACH; e++) sum = fmaf(at[e], other.at[e], sum);
        return warp_sum(sum);
    }
};

// The score of a product of a query and a key that is `distance` before it, and cap' there.
struct Score {
    float value, slope;
};

INLINE Score score_of(const Scores& scores, int head, float product, int distance) {
    float x = scores.scale * product;
    if (scores.softcap > 0.0f) {
        float t = tanhf(x / scores.softcap);
        return {scores.softcap * t, 1.0f - t * t};
    }
    if (scores.slopes) x -= scores.slopes[head] * (float)distance;
    return {x, 1.0f};
}

template <class T, int EACH> INLINE void forward(const AttentionForward& p) {
    const int index = own_warp();
    if (index >= p.queries * p.heads) return;
    const int token = index / p.heads, head = index % p.heads, key_heads = p.heads / p.group;
    const int row = row_of(p.q_offsets, p.rows, token);
    const int last = p.k_offsets[row + 1] - (p.q_offsets[row + 1] - token);
    const int first = max((int)p.k_offsets[row], last - p.scores.window + 1);

    Columns<EACH> q, k, v, out;
    q.template load<T>(p.q, index, p.width);
    out.clear();
    float best = __uint_as_float(0xff800000u), sum = 0.0f;
    for (int key = first; key <= last; key++) {
        const size_t at = (size_t)key * key_heads + head / p.group;
        k.template load<T>(p.k, at, p.width);
        v.template load<T>(p.v, at, p.width);
        const float score = score_of(p.scores, head, q.dot(k), last - key).value;
        if (score > best) {
            const float keep = expf(best - score);
            sum *= keep;
#pragma unroll
            for (int e = 0; e < EACH; e++) out.at[e] *= keep;
            best = score;
        }
        const float weight = expf(score - best);
        sum += weight;
        out.add(weight, v);
    }
    out.template store<T>(p.out, index, p.width, 1.0f / sum);
    if (p.lse && threadIdx.x % 32 == 0) p.lse[index] = best + logf(sum);
}

template <class T, int EACH> INLINE void backward_dq(const AttentionBackward& p) {
    const int index = own_warp();
    if (index >= p.queries * p.heads) return;
    const int token = index / p.heads, head = index % p.heads, key_heads = p.heads / p.group;
    const int row = row_of(p.q_offsets, p.rows, token);
    const int last = p.k_offsets[row + 1] - (p.q_offsets[row + 1] - token);
    const int first = max((int)p.k_offsets[row], last - p.scores.window + 1);

    Columns<EACH> q, k, v, dout, dq;
    q.template load<T>(p.q, index, p.width);
    v.template load<T>(p.out, index, p.width);
    dout.template load<T>(p.dout, index, p.width);
    dq.clear();
    const float lse = p.lse[index], delta = dout.dot(v);
    if (threadIdx.x % 32 == 0) p.delta[index] = delta;
    for (int key = first; key <= last; key++) {
        const size_t at = (size_t)key * key_heads + head / p.group;
        k.template load<T>(p.k, at, p.width);
        v.template load<T>(p.v, at, p.width);
        const Score score = score_of(p.scores, head, q.dot(k), last - key);
        const float weight = expf(score.value - lse);
        dq.add(weight * (dout.dot(v) - delta) * score.slope, k);
    }
    dq.template store<T>(p.dq, index, p.width, p.scores.scale);
}

// After backward_dq, which leaves delta.
template <class T, int EACH> INLINE void backward_dkdv(const AttentionBackward& p) {
    const int key_heads = p.heads / p.group, index = own_warp();
    if (index >= p.keys * key_heads) return;
    const int token = index / key_heads, kv = index % key_heads;
    const int row = row_of(p.k_offsets, p.rows, token);
    // Queries of the row in the order of positions: the one at this key's position, if there is one, sees it first.
    const int shift = (int)p.q_offsets[row + 1] - (int)p.k_offsets[row + 1];
    const int own = token + shift, first = max((int)p.q_offsets[row], own);
    const int end = min((int)p.q_offsets[row + 1], own + p.scores.window);

    Columns<EACH> q, k, v, dout, dk, dv;
    k.template load<T>(p.k, index, p.width);
    v.template load<T>(p.v, index, p.width);
    dk.clear();
    dv.clear();
    for (int head = kv * p.group; head < (kv + 1) * p.group; head++)
        for (int query = first; query < end; query++) {
            const size_t at = (size_t)query * p.heads + head;
            q.template load<T>(p.q, at, p.width);
            dout.template load<T>(p.dout, at, p.width);
            const Score score = score_of(p.scores, head, q.dot(k), query - own);
            const float weight = expf(score.value - p.lse[at]);
            dv.add(weight, dout);
            dk.add(weight * (dout.dot(v) - p.delta[at]) * score.slope, q);
        }
    dk.template store<T>(p.dk, index, p.width, p.scores.scale);
    dv.template store<T>(p.dv, index, p.width, 1.0f);
}

// Widths up to 128 and up to 512.
extern "C" __global__ void attention_plain_forward_128_f32(AttentionForward p) { forward<float, 4>(p); }
extern "C" __global__ void attention_plain_forward_128_bf16(AttentionForward p) { forward<bf16, 4>(p); }
extern "C" __global__ void attention_plain_forward_512_f32(AttentionForward p) { forward<float, 16>(p); }
extern "C" __global__ void attention_plain_forward_512_bf16(AttentionForward p) { forward<bf16, 16>(p); }
extern "C" __global__ void attention_plain_dq_128_f32(AttentionBackward p) { backward_dq<float, 4>(p); }
extern "C" __global__ void attention_plain_dq_128_bf16(AttentionBackward p) { backward_dq<bf16, 4>(p); }
extern "C" __global__ void attention_plain_dq_512_f32(AttentionBackward p) { backward_dq<float, 16>(p); }
extern "C" __global__ void attention_plain_dq_512_bf16(AttentionBackward p) { backward_dq<bf16, 16>(p); }
extern "C" __global__ void attention_plain_dkdv_128_f32(AttentionBackward p) { backward_dkdv<float, 4>(p); }
extern "C" __global__ void attention_plain_dkdv_128_bf16(AttentionBackward p) { backward_dkdv<bf16, 4>(p); }
extern "C" __global__ void attention_plain_dkdv_512_f32(AttentionBackward p) { backward_dkdv<float, 16>(p); }
extern "C" __global__ void attention_plain_dkdv_512_bf16(AttentionBackward p) { backward_dkdv<bf16, 16>(p); }
