// The formulas are those of conv1d.rs. A thread has one channel and a run of tokens, whose last inputs it keeps.

constexpr int MOST_TAPS = 8;

struct Conv1d {
    const void* x;
    const void* history;
    // Sums in `conv1d_weight_parts`.
    const void* w;
    const void* b;
    void* y;
    const u32* starts;
    u32 rows;
    u32 tokens;
    u32 channels;
    u32 taps;
    u32 tokens_of_block;
    u32 silu;
    float scale;
};

// Where a run of tokens is: the row of its current one.
struct Place {
    u32 row;
    u32 start;
    u32 end;
};

INLINE Place place_of(const Conv1d& p, u32 t) {
    u32 low = 0, high = p.rows;
    // The last row that begins at t or before it.
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (p.starts[middle] <= t) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return Place{low, p.starts[low], p.starts[low + 1]};
}

INLINE void move_on(const Conv1d& p, Place& place, u32 t) {
    while (t >= place.end) {
        place.row++;
        place.start = place.end;
        place.end = p.starts[place.row + 1];
    }
}

// x of a token before t, or 0 if its row does not have it.
template <class X> INLINE float before(const Conv1d& p, const Place& place, u32 t, u32 back, u32 channel) {
    if (t >= place.start + back) return to_f32(((const X*)p.x)[(u64)(t - back) * p.channels + channel]);
    if (place.start > 0 || !p.history) return 0.0f;
    return to_f32(((const X*)p.history)[(u64)(p.taps - 1 + t - back) * p.channels + channel]);
}

template <class W> INLINE void read_taps(float (&w)[MOST_TAPS], const Conv1d& p, u32 channel) {
#pragma unroll
    for (int j = 0; j < MOST_TAPS; j++) w[j] = j < p.taps ? to_f32(((const W*)p.w)[(u64)channel * p.taps + j]) : 0.0f;
}

// Calls f(t, z) for the thread's tokens.
template <class X, class W, class F> INLINE void for_sums(const Conv1d& p, F f) {
    u32 channel = blockIdx.y * blockDim.x + threadIdx.x;
    if (channel >= p.channels) return;
    float w[MOST_TAPS];
    read_taps<W>(w, p, channel);
    float b = p.b ? to_f32(((const W*)p.b)[channel]) : 0.0f;
    u32 first = blockIdx.x * p.tokens_of_block, end = min(first + p.tokens_of_block, p.tokens);
    Place place = place_of(p, first);
    for (u32 t = first; t < end; t++) {
        move_on(p, place, t);
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < MOST_TAPS; j++) {
            if (j < p.taps) sum += w[j] * before<X>(p, place, t, p.taps - 1 - j, channel);
        }
        f((u64)t * p.channels + channel, p.scale * sum + b);
    }
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class X, class W> INLINE void forward(const Conv1d& p) {
    for_sums<X, W>(p, [&](u64 i, float z) { ((X*)p.y)[i] = from_f32<X>(p.silu ? z * sigmoid(z) : z); });
}

// Replaces dy by dz.
template <class X, class W> INLINE void through_silu(const Conv1d& p) {
    for_sums<X, W>(p, [&](u64 i, float z) {
        float s = sigmoid(z), dy = to_f32(((X*)p.y)[i]);
        ((X*)p.y)[i] = from_f32<X>(dy * s * (1.0f + z * (1.0f - s)));
    });
}

// dx from dz, which is in the place of x.
template <class X, class W> INLINE void inputs(const Conv1d& p) {
    u32 channel = blockIdx.y * blockDim.x + threadIdx.x;
    if (channel >= p.channels) return;
    float w[MOST_TAPS];
    read_taps<W>(w, p, channel);
    u32 first = blockIdx.x * p.tokens_of_block, end = min(first + p.tokens_of_block, p.tokens);
    Place place = place_of(p, first);
    for (u32 t = first; t < end; t++) {
        move_on(p, place, t);
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < MOST_TAPS; j++) {
            u32 later = t + p.taps - 1 - j;
            if (j < p.taps && later < place.end) {
                sum += w[j] * to_f32(((const X*)p.x)[(u64)later * p.channels + channel]);
            }
        }
        ((X*)p.y)[(u64)t * p.channels + channel] = from_f32<X>(p.scale * sum);
    }
}

// dw of a part of the tokens: [parts, C, W].
template <class X> INLINE void weight_parts(const Conv1d& p) {
    u32 channel = blockIdx.y * blockDim.x + threadIdx.x;
    if (channel >= p.channels) return;
    float sums[MOST_TAPS] = {};
    u32 first = blockIdx.x * p.tokens_of_block, end = min(first + p.tokens_of_block, p.tokens);
    Place place = place_of(p, first);
    for (u32 t = first; t < end; t++) {
        move_on(p, place, t);
        float dz = to_f32(((const X*)p.y)[(u64)t * p.channels + channel]);
#pragma unroll
        for (int j = 0; j < MOST_TAPS; j++) {
            if (j < p.taps) sums[j] += dz * before<X>(p, place, t, p.taps - 1 - j, channel);
        }
    }
    float* to = (float*)p.w + ((u64)blockIdx.x * p.channels + channel) * p.taps;
#pragma unroll
    for (int j = 0; j < MOST_TAPS; j++) {
        if (j < p.taps) to[j] = p.scale * sums[j];
    }
}

#define CONV1D(NAME, BODY, X, W) \
    extern "C" __global__ void __launch_bounds__(128) NAME##_##X##_##W(Conv1d p) { BODY<X, W>(p); }
#define OF_TYPES(NAME, BODY)        \
    CONV1D(NAME, BODY, f32, f32)    \
    CONV1D(NAME, BODY, f32, bf16)   \
    CONV1D(NAME, BODY, bf16, f32)   \
    CONV1D(NAME, BODY, bf16, bf16)
OF_TYPES(conv1d_forward, forward)
OF_TYPES(conv1d_through_silu, through_silu)
OF_TYPES(conv1d_inputs, inputs)

extern "C" __global__ void __launch_bounds__(128) conv1d_weight_parts_f32(Conv1d p) { weight_parts<f32>(p); }
extern "C" __global__ void __launch_bounds__(128) conv1d_weight_parts_bf16(Conv1d p) { weight_parts<bf16>(p); }
