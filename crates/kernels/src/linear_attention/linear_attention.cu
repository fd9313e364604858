// The formulas are those of mod.rs and backward.rs. A block has a slice of the value's columns of a head: columns of the
// state do not mix, so that slices share nothing but queries and keys. What slices and heads add to dq, dk, dstep and
// ddecay is summed by kernels of its own. Everything of a chunk is in shared memory; rows lie one float further apart than
// they are wide, so that threads may go down columns too.

struct LinearAttention {
    const void* q;
    const void* k;
    const void* v;
    const float* step;
    const float* decay;
    const float* skip;
    const u32* starts;
    // Forward: the output, and the state of the one row, if it has one.
    void* out;
    float* state;
    // Backward: see the kernel.
    const void* dout;
    void* dv;
    float* states;
    float* slots;
    float* gates;
    u32 tokens;
    u32 key_heads;
    u32 heads;
    u32 key_dim;
    u32 value_dim;
    u32 chunk;
    u32 slice;
    u32 slices;
    u32 slot_count;
    u32 delta;
    float q_scale;
    float k_scale;
};

// Four rows and two columns of a product of m · n elements, its columns as far apart as there are tiles in a row.
struct Tile {
    float sums[4][2];
    u32 m, n, i, j, step;

    __device__ __forceinline__ Tile(u32 m, u32 n, u32 index) : m(m), n(n) {
        step = (n + 1) / 2;
        i = index / step * 4;
        j = index % step;
#pragma unroll
        for (int r = 0; r < 4; r++) sums[r][0] = sums[r][1] = 0.0f;
    }

    static __device__ __forceinline__ u32 count(u32 m, u32 n) { return (m + 3) / 4 * ((n + 1) / 2); }

    // Adds a·b over `first` to `last` of the depth; strides are those of rows and of columns.
    __device__ __forceinline__ void add(const float* a, u32 a_row, u32 a_column, const float* b, u32 b_row, u32 b_column, u32 first,
                           u32 last) {
        const float* rows[4];
#pragma unroll
        for (int r = 0; r < 4; r++) rows[r] = a + min(i + r, m - 1) * a_row;
        const float *left = b + j * b_column, *right = b + min(j + step, n - 1) * b_column;
#pragma unroll 2
        for (u32 k = first; k < last; k++) {
            float x = left[k * b_row], y = right[k * b_row];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                float factor = rows[r][k * a_column];
                sums[r][0] += factor * x;
                sums[r][1] += factor * y;
            }
        }
    }

    // f(row, column, sum) for each element; what it returns is the sum from then on.
    template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            if (i + r >= m) continue;
            sums[r][0] = f(i + r, j, sums[r][0]);
            if (j + step < n) sums[r][1] = f(i + r, j + step, sums[r][1]);
        }
    }
};

// f(row, column, sum) for all elements of a·b, of depth k.
template <class F>
INLINE void products(u32 m, u32 n, u32 k, const float* a, u32 a_row, u32 a_column, const float* b, u32 b_row,
                     u32 b_column, F f) {
    for (u32 index = threadIdx.x; index < Tile::count(m, n); index += blockDim.x) {
        Tile tile(m, n, index);
        tile.add(a, a_row, a_column, b, b_row, b_column, 0, k);
        tile.each([&](u32 i, u32 j, float sum) {
            f(i, j, sum);
            return sum;
        });
    }
}

// What forward and backward have in shared memory of a chunk.
struct Chunk {
    float *q, *k, *v, *s, *fresh, *y, *ks, *p, *m;
    float *step, *g;
    u32 n, d, e, to_key, to_value, to_token;
    u32 first, head, key_head, column;

    // Parts of `shared` for so many tokens at most; returns the rest.
    __device__ __forceinline__ float* place(const LinearAttention& l, float* shared) {
        d = l.key_dim;
        to_key = d + 1;
        to_value = l.slice + 1;
        to_token = l.chunk + 1;
        q = shared;
        k = q + l.chunk * to_key;
        s = k + l.chunk * to_key;
        v = s + d * to_value;
        fresh = v + l.chunk * to_value;
        y = fresh + l.chunk * to_value;
        ks = y + l.chunk * to_value;
        p = ks + l.chunk * to_value;
        m = p + l.chunk * to_token;
        step = m + l.chunk * to_token;
        g = step + l.chunk;
        return g + l.chunk;
    }

    // The columns of a head.
    __device__ __forceinline__ void choose(const LinearAttention& l, u32 of_head, u32 slice) {
        head = of_head;
        key_head = head / (l.heads / l.key_heads);
        column = slice * l.slice;
        e = min(l.slice, l.value_dim - column);
    }

    // Element of a value's tensor.
    __device__ __forceinline__ u64 value_at(const LinearAttention& l, u32 i, u32 j) const {
        return ((u64)(first + i) * l.heads + head) * l.value_dim + column + j;
    }

    __device__ __forceinline__ u64 gate_at(const LinearAttention& l, u32 i) const { return (u64)(first + i) * l.heads + head; }

    // Reads tokens from t on, as many as the chunk has.
    template <class X> __device__ __forceinline__ void read(const LinearAttention& l, u32 t, u32 end) {
        first = t;
        n = min((t / l.chunk + 1) * l.chunk, end) - t;
        for (u32 at = threadIdx.x; at < n * d; at += blockDim.x) {
            u32 i = at / d, j = at % d;
            u64 from = ((u64)(first + i) * l.key_heads + key_head) * d + j;
            q[i * to_key + j] = l.q_scale * to_f32(((const X*)l.q)[from]);
            k[i * to_key + j] = l.k_scale * to_f32(((const X*)l.k)[from]);
        }
        for (u32 at = threadIdx.x; at < n * e; at += blockDim.x) {
            u32 i = at / e, j = at % e;
            v[i * to_value + j] = to_f32(((const X*)l.v)[value_at(l, i, j)]);
        }
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
            step[i] = l.step[gate_at(l, i)];
            float sum = 0.0f;
            for (u32 j = 0; j <= i; j++) sum += l.decay[gate_at(l, j)];
            g[i] = sum;
        }
        __syncthreads();
    }

    // P, m and V from the state; with a barrier behind.
    __device__ __forceinline__ void mix(const LinearAttention& l) {
        products(n, n, d, q, to_key, 1, k, 1, to_key, [&](u32 i, u32 j, float sum) {
            p[i * to_token + j] = j <= i ? sum * expf(g[i] - g[j]) : 0.0f;
        });
        if (l.delta) {
            products(n, n, d, k, to_key, 1, k, 1, to_key, [&](u32 i, u32 j, float sum) {
                m[i * to_token + j] = j < i ? sum * expf(g[i] - g[j]) : 0.0f;
            });
            products(n, e, d, k, to_key, 1, s, to_value, 1, [&](u32 i, u32 j, float sum) {
                u32 at = i * to_value + j;
                ks[at] = sum;
                y[at] = v[at] - expf(g[i]) * sum;
                fresh[at] = step[i] * y[at];
            });
            __syncthreads();
            // (1 + A)·V, row by row; a thread has a column.
            for (u32 j = threadIdx.x; j < e; j += blockDim.x) {
                for (u32 i = 1; i < n; i++) {
                    float sum = 0.0f;
                    for (u32 r = 0; r < i; r++) sum += m[i * to_token + r] * fresh[r * to_value + j];
                    fresh[i * to_value + j] -= step[i] * sum;
                }
            }
        } else {
            for (u32 at = threadIdx.x; at < n * e; at += blockDim.x) {
                u32 i = at / e, j = at % e;
                fresh[i * to_value + j] = step[i] * v[i * to_value + j];
            }
        }
        __syncthreads();
    }

    // S₀ becomes S₁; with a barrier behind. Overwrites k.
    __device__ __forceinline__ void move_state() {
        float last = g[n - 1];
        for (u32 at = threadIdx.x; at < n * d; at += blockDim.x) {
            u32 i = at / d;
            k[i * to_key + at % d] *= expf(last - g[i]);
        }
        __syncthreads();
        float kept = expf(last);
        products(d, e, n, k, 1, to_key, fresh, to_value, 1, [&](u32 i, u32 j, float sum) {
            float* to = s + i * to_value + j;
            *to = kept * *to + sum;
        });
        __syncthreads();
    }

    template <class F> __device__ __forceinline__ void for_state(const LinearAttention& l, F f) {
        for (u32 at = threadIdx.x; at < d * e; at += blockDim.x) {
            u32 i = at / e, j = at % e;
            f(s[i * to_value + j], (u64)i * l.value_dim + column + j);
        }
    }
};

INLINE float skip_of(const LinearAttention& l, u32 head) { return l.skip ? l.skip[head] : 0.0f; }

// A block for each slice of each head of each row.
template <class X> INLINE void forward(const LinearAttention& l) {
    DYNAMIC_SHARED(shared);
    Chunk c;
    c.place(l, (float*)shared);
    u32 of_row = l.heads * l.slices, row = blockIdx.x / of_row, unit = blockIdx.x % of_row;
    c.choose(l, unit / l.slices, unit % l.slices);
    u32 end = l.starts[row + 1];
    float* state = l.state ? l.state + (u64)c.head * l.key_dim * l.value_dim : nullptr;
    c.for_state(l, [&](float& s, u64 at) { s = state ? state[at] : 0.0f; });
    float skip = skip_of(l, c.head);
    for (u32 t = l.starts[row]; t < end; t += c.n) {
        c.read<X>(l, t, end);
        c.mix(l);
        for (u32 index = threadIdx.x; index < Tile::count(c.n, c.e); index += blockDim.x) {
            Tile tile(c.n, c.e, index);
            tile.add(c.q, c.to_key, 1, c.s, c.to_value, 1, 0, c.d);
            tile.each([&](u32 i, u32, float sum) { return expf(c.g[i]) * sum; });
            tile.add(c.p, c.to_token, 1, c.fresh, c.to_value, 1, 0, c.n);
            tile.each([&](u32 i, u32 j, float sum) {
                ((X*)l.out)[c.value_at(l, i, j)] = from_f32<X>(sum + skip * c.v[i * c.to_value + j]);
                return sum;
            });
        }
        __syncthreads();
        c.move_state();
    }
    if (state) c.for_state(l, [&](float& s, u64 at) { state[at] = s; });
}

#define LINEAR_ATTENTION(NAME, BODY, X) \
    extern "C" __global__ void __launch_bounds__(128) NAME##_##X(LinearAttention l) { BODY<X>(l); }
LINEAR_ATTENTION(linear_attention_forward, forward, f32)
LINEAR_ATTENTION(linear_attention_forward, forward, bf16)

// What backward has beside a chunk. The gradient of k·S₀ takes the place of k·S₀.
struct Back {
    float *ds, *dout, *dfresh, *w, *qs, *dp, *da, *dg, *dstep, *partial;

    __device__ __forceinline__ void place(const LinearAttention& l, const Chunk& c, float* shared) {
        ds = shared;
        dout = ds + c.d * c.to_value;
        dfresh = dout + l.chunk * c.to_value;
        w = dfresh + l.chunk * c.to_value;
        qs = w + l.chunk * c.to_value;
        dp = qs + l.chunk * c.to_value;
        da = dp + l.chunk * c.to_token;
        dg = da + l.chunk * c.to_token;
        dstep = dg + l.chunk;
        partial = dstep + l.chunk;
    }

    // The gradients of P, of V and, with the delta rule, of the system's right side, in `dfresh`, and of A.
    __device__ __forceinline__ void through_system(const LinearAttention& l, const Chunk& c) {
        products(c.n, c.n, c.e, dout, c.to_value, 1, c.fresh, 1, c.to_value,
                 [&](u32 i, u32 j, float sum) { dp[i * c.to_token + j] = j <= i ? sum : 0.0f; });
        products(c.n, c.e, c.d, c.q, c.to_key, 1, c.s, c.to_value, 1,
                 [&](u32 i, u32 j, float sum) { qs[i * c.to_value + j] = sum; });
        float last = c.g[c.n - 1];
        for (u32 index = threadIdx.x; index < Tile::count(c.n, c.e); index += blockDim.x) {
            Tile tile(c.n, c.e, index);
            tile.add(c.k, c.to_key, 1, ds, c.to_value, 1, 0, c.d);
            tile.each([&](u32 i, u32 j, float sum) { return w[i * c.to_value + j] = expf(last - c.g[i]) * sum; });
            tile.add(c.p, 1, c.to_token, dout, c.to_value, 1, 0, c.n);
            tile.each([&](u32 i, u32 j, float sum) { return dfresh[i * c.to_value + j] = sum; });
        }
        __syncthreads();
        if (!l.delta) return;
        // (1 + Aᵀ)·dR = dV, from the last row up.
        for (u32 j = threadIdx.x; j < c.e; j += blockDim.x) {
            for (u32 i = c.n - 1; i-- > 0;) {
                float sum = 0.0f;
                for (u32 r = i + 1; r < c.n; r++) {
                    sum += c.step[r] * c.m[r * c.to_token + i] * dfresh[r * c.to_value + j];
                }
                dfresh[i * c.to_value + j] -= sum;
            }
        }
        __syncthreads();
        products(c.n, c.n, c.e, dfresh, c.to_value, 1, c.fresh, 1, c.to_value,
                 [&](u32 i, u32 j, float sum) { da[i * c.to_token + j] = j < i ? -sum : 0.0f; });
        __syncthreads();
    }

    // The gradients of steps and of G, a thread for each token; with a barrier behind.
    __device__ __forceinline__ void gates(const LinearAttention& l, const Chunk& c) {
        float parts = 0.0f;
        for (u32 at = threadIdx.x; at < c.d * c.e; at += blockDim.x) {
            u32 place = at / c.e * c.to_value + at % c.e;
            parts += c.s[place] * ds[place];
        }
        float of_states = block_sum(parts, partial);
        float of_keys = 0.0f;
        for (u32 i = threadIdx.x; i < c.n; i += blockDim.x) {
            float sum = 0.0f, outer = 0.0f, inner = 0.0f, of_step = 0.0f;
            for (u32 j = 0; j < c.n; j++) {
                u32 row = i * c.to_token + j, column = j * c.to_token + i;
                if (j < i) sum += dp[row] * c.p[row];
                if (j > i) sum -= dp[column] * c.p[column];
                if (l.delta) {
                    float own = da[row] * c.m[row];
                    of_step += own;
                    sum += c.step[i] * own - c.step[j] * da[column] * c.m[column];
                }
            }
            for (u32 j = 0; j < c.e; j++) {
                u32 at = i * c.to_value + j;
                outer += dout[at] * qs[at];
                inner += c.fresh[at] * w[at];
                of_step += dfresh[at] * (l.delta ? c.y[at] : c.v[at]);
                if (l.delta) outer -= c.step[i] * dfresh[at] * c.ks[at];
            }
            dg[i] = sum + expf(c.g[i]) * outer - inner;
            dstep[i] = of_step;
            of_keys += inner;
        }
        of_keys = block_sum(of_keys, partial);
        if (threadIdx.x == 0) dg[c.n - 1] += of_keys + expf(c.g[c.n - 1]) * of_states;
        __syncthreads();
    }

    // From P and A to products of queries and keys, and from V to v; with a barrier behind.
    __device__ __forceinline__ void scale(const LinearAttention& l, const Chunk& c) {
        for (u32 at = threadIdx.x; at < c.n * c.n; at += blockDim.x) {
            u32 i = at / c.n, j = at % c.n, place = i * c.to_token + j;
            float decay = j <= i ? expf(c.g[i] - c.g[j]) : 0.0f;
            dp[place] *= decay;
            if (l.delta) da[place] *= c.step[i] * decay;
        }
        for (u32 at = threadIdx.x; at < c.n * c.e; at += blockDim.x) {
            u32 i = at / c.e, place = i * c.to_value + at % c.e;
            dfresh[place] *= c.step[i];
            if (l.delta) c.ks[place] = -expf(c.g[i]) * dfresh[place];
        }
        __syncthreads();
    }

    // Adds dq and dk to the sums of a slot, or begins them.
    __device__ __forceinline__ void write_keys(const LinearAttention& l, const Chunk& c, u32 slot, bool adds) {
        u64 all = (u64)l.slot_count * l.tokens;
        float last = c.g[c.n - 1];
        auto put = [&](float scale, u64 of) {
            return [&l, &c, scale, of, adds](u32 i, u32 j, float sum) {
                float* to = l.slots + ((of + c.first + i) * l.key_heads + c.key_head) * c.d + j;
                *to = adds ? *to + scale * sum : scale * sum;
                return sum;
            };
        };
        for (u32 index = threadIdx.x; index < Tile::count(c.n, c.d); index += blockDim.x) {
            Tile tile(c.n, c.d, index);
            tile.add(dout, c.to_value, 1, c.s, 1, c.to_value, 0, c.e);
            tile.each([&](u32 i, u32, float sum) { return expf(c.g[i]) * sum; });
            tile.add(dp, c.to_token, 1, c.k, c.to_key, 1, 0, c.n);
            tile.each(put(l.q_scale, (u64)slot * l.tokens));
        }
        for (u32 index = threadIdx.x; index < Tile::count(c.n, c.d); index += blockDim.x) {
            Tile tile(c.n, c.d, index);
            tile.add(c.fresh, c.to_value, 1, ds, 1, c.to_value, 0, c.e);
            tile.each([&](u32 i, u32, float sum) { return expf(last - c.g[i]) * sum; });
            tile.add(dp, 1, c.to_token, c.q, c.to_key, 1, 0, c.n);
            if (l.delta) {
                tile.add(da, c.to_token, 1, c.k, c.to_key, 1, 0, c.n);
                tile.add(da, 1, c.to_token, c.k, c.to_key, 1, 0, c.n);
                tile.add(c.ks, c.to_value, 1, c.s, 1, c.to_value, 0, c.e);
            }
            tile.each(put(l.k_scale, all + (u64)slot * l.tokens));
        }
    }

    template <class X> __device__ __forceinline__ void write_values(const LinearAttention& l, const Chunk& c, float skip) {
        for (u32 at = threadIdx.x; at < c.n * c.e; at += blockDim.x) {
            u32 i = at / c.e, j = at % c.e, place = i * c.to_value + j;
            ((X*)l.dv)[c.value_at(l, i, j)] = from_f32<X>(dfresh[place] + skip * dout[place]);
        }
        u64 slice = c.column / l.slice, all = (u64)l.slices * l.tokens * l.heads;
        for (u32 i = threadIdx.x; i < c.n; i += blockDim.x) {
            u64 gate = slice * l.tokens * l.heads + c.gate_at(l, i);
            float sum = 0.0f;
            for (u32 j = i; j < c.n; j++) sum += dg[j];
            l.gates[gate] = dstep[i];
            l.gates[all + gate] = sum;
        }
        __syncthreads();
    }

    // dS₁ becomes dS₀; with a barrier behind.
    __device__ __forceinline__ void move_state(const LinearAttention& l, const Chunk& c) {
        for (u32 at = threadIdx.x; at < c.n * c.d; at += blockDim.x) {
            u32 i = at / c.d;
            c.q[i * c.to_key + at % c.d] *= expf(c.g[i]);
        }
        __syncthreads();
        float kept = expf(c.g[c.n - 1]);
        for (u32 index = threadIdx.x; index < Tile::count(c.d, c.e); index += blockDim.x) {
            Tile tile(c.d, c.e, index);
            tile.add(c.q, 1, c.to_key, dout, c.to_value, 1, 0, c.n);
            if (l.delta) tile.add(c.k, 1, c.to_key, c.ks, c.to_value, 1, 0, c.n);
            tile.each([&](u32 i, u32 j, float sum) {
                float* to = ds + i * c.to_value + j;
                return *to = kept * *to + sum;
            });
        }
        __syncthreads();
    }
};

// A block for each slot of each key head of each row: it has some of the key head's heads' slices, one after the other, and
// sums what they add to dq and dk in `slots` [2, slots, N, K, D]. What a slice adds to steps and decays is in `gates` [2,
// slices, N, H]; `states` [chunks, H, D, E] are those between a row's chunks.
template <class X> INLINE void backward(const LinearAttention& l) {
    DYNAMIC_SHARED(shared);
    Chunk c;
    Back b;
    b.place(l, c, c.place(l, (float*)shared));
    u32 group = l.heads / l.key_heads, of_row = l.key_heads * l.slot_count;
    u32 row = blockIdx.x / of_row, key_head = blockIdx.x % of_row / l.slot_count, slot = blockIdx.x % l.slot_count;
    u32 units = group * l.slices, start = l.starts[row], end = l.starts[row + 1];
    u32 first = slot * units / l.slot_count, last = (slot + 1) * units / l.slot_count;
    if (start == end) return;
    for (u32 unit = first; unit < last; unit++) {
        c.choose(l, key_head * group + unit / l.slices, unit % l.slices);
        float skip = skip_of(l, c.head);
        auto state_at = [&](u32 t) {
            return l.states + ((u64)(t / l.chunk) * l.heads + c.head) * l.key_dim * l.value_dim;
        };
        c.for_state(l, [&](float& s, u64) { s = 0.0f; });
        for (u32 t = start; t < end; t += c.n) {
            if (t > start) {
                float* to = state_at(t);
                c.for_state(l, [&](float& s, u64 at) { to[at] = s; });
            }
            c.read<X>(l, t, end);
            c.mix(l);
            c.move_state();
        }
        for (u32 at = threadIdx.x; at < c.d * c.to_value; at += blockDim.x) b.ds[at] = 0.0f;
        for (u32 t = (end - 1) / l.chunk * l.chunk;; t -= l.chunk) {
            bool is_first = t <= start;
            t = max(t, start);
            const float* from = state_at(t);
            c.for_state(l, [&](float& s, u64 at) { s = is_first ? 0.0f : from[at]; });
            c.read<X>(l, t, end);
            for (u32 at = threadIdx.x; at < c.n * c.e; at += blockDim.x) {
                u32 i = at / c.e, j = at % c.e;
                b.dout[i * c.to_value + j] = to_f32(((const X*)l.dout)[c.value_at(l, i, j)]);
            }
            c.mix(l);
            b.through_system(l, c);
            b.gates(l, c);
            b.scale(l, c);
            b.write_keys(l, c, slot, unit > first);
            b.write_values<X>(l, c, skip);
            if (is_first) break;
            b.move_state(l, c);
        }
        __syncthreads();
    }
}
LINEAR_ATTENTION(linear_attention_backward, backward, f32)
LINEAR_ATTENTION(linear_attention_backward, backward, bf16)

// Sums of `count` parts, each of so many elements.
struct LinearAttentionSum {
    const float* parts;
    void* to;
    u64 elements;
    u32 count;
};

template <class X> INLINE void sum_parts(const LinearAttentionSum& p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.elements) return;
    float sum = 0.0f;
    for (u32 part = 0; part < p.count; part++) sum += p.parts[part * p.elements + i];
    ((X*)p.to)[i] = from_f32<X>(sum);
}

extern "C" __global__ void linear_attention_sum_f32(LinearAttentionSum p) { sum_parts<f32>(p); }
extern "C" __global__ void linear_attention_sum_bf16(LinearAttentionSum p) { sum_parts<bf16>(p); }

// Σ dout·v of a head, a block for each.
struct LinearAttentionSkip {
    const void* dout;
    const void* v;
    float* dskip;
    u64 tokens;
    u32 heads;
    u32 value_dim;
};

template <class X> INLINE void skip_gradient(const LinearAttentionSkip& p) {
    __shared__ float partial[32];
    float sum = 0.0f;
    for (u64 at = threadIdx.x; at < p.tokens * p.value_dim; at += blockDim.x) {
        u64 i = (at / p.value_dim * p.heads + blockIdx.x) * p.value_dim + at % p.value_dim;
        sum += to_f32(((const X*)p.dout)[i]) * to_f32(((const X*)p.v)[i]);
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) p.dskip[blockIdx.x] += sum;
}

extern "C" __global__ void linear_attention_skip_f32(LinearAttentionSkip p) { skip_gradient<f32>(p); }
extern "C" __global__ void linear_attention_skip_bf16(LinearAttentionSkip p) { skip_gradient<bf16>(p); }
