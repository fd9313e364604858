// Cross-entropy of one row of logits by one block: see cross_entropy.rs. The loss takes one pass, in which each thread
// keeps the largest logit of its own and a sum that counts from it; the gradient takes another. A row is at most a few
// hundred KB, so that the second pass of one launch finds most of it in the second-level cache, the more so as it goes
// backwards.

typedef float f32;

constexpr float LOG2_E = 1.4426950408889634f;
constexpr int STATISTICS = 4;

struct CrossEntropy {
    void* logits;
    const u32* targets;
    // nll, lse, whether the target is the largest, and the loss, of each row.
    float* positions;
    u64 vocabulary;
    float scale;
    // 0 where logits are not capped.
    float softcap;
};

INLINE float minus_infinity() { return __uint_as_float(0xff800000u); }

INLINE float exp_of(float x) { return exp2_approx(x * LOG2_E); }

// Vectors of a row that a thread has under way at a time.
constexpr int UNDER_WAY = 4;

// Calls op.visit(first, vector) for all of a row, in vectors as far as it is aligned, and element by element elsewhere;
// WRITES says to store what is left in them.
template <bool WRITES, class T, class Op> INLINE void over_row(T* z, u32 v, Op& op) {
    constexpr int N = Width<T>::value;
    u32 thread = threadIdx.x, threads = blockDim.x;
    u32 before = (u32)((16 - (u64)z % 16) % 16 / sizeof(T));
    if (before > v) before = v;
    u32 vectors = (v - before) / N, end = before + vectors * N;
    Vector<T, N>* in_row = (Vector<T, N>*)(z + before);
    for (u32 start = 0; start < vectors; start += threads * UNDER_WAY) {
        Vector<T, N> values[UNDER_WAY];
        u32 at[UNDER_WAY];
#pragma unroll
        for (int u = 0; u < UNDER_WAY; u++) {
            u32 i = start + u * threads + thread;
            at[u] = WRITES ? vectors - 1 - i : i;
            if (i < vectors) values[u] = in_row[at[u]];
        }
#pragma unroll
        for (int u = 0; u < UNDER_WAY; u++) {
            if (start + u * threads + thread < vectors) {
                op.visit(before + at[u] * N, values[u]);
                if (WRITES) in_row[at[u]] = values[u];
            }
        }
    }
    // The ends of the row: fewer elements than two vectors have.
    u32 others = before + (v - end);
    for (u32 i = thread; i < others; i += threads) {
        u32 j = i < before ? i : end + (i - before);
        Vector<T, 1> value = *(const Vector<T, 1>*)(z + j);
        op.visit(j, value);
        if (WRITES) *(Vector<T, 1>*)(z + j) = value;
    }
}

// What one thread knows of the logits that it saw.
struct Seen {
    u32 target;
    float of_target;
    float largest;
    // Σ exp(z − largest).
    float sum;
    // Whether a logit before the target is equal to it.
    bool equal_before;

    template <class T, int N> __device__ __forceinline__ void visit(u32 first, const Vector<T, N>& logits) {
        float z[N], above = minus_infinity();
#pragma unroll
        for (int k = 0; k < N; k++) {
            z[k] = to_f32(logits.at[k]);
            above = fmaxf(above, z[k]);
        }
        if (above > largest) {
            sum *= exp_of(largest - above);
            largest = above;
        }
        float from = largest == minus_infinity() ? 0.0f : largest;
#pragma unroll
        for (int k = 0; k < N; k++) sum += exp_of(z[k] - from);
        if (above == of_target && first < target) {
#pragma unroll
            for (int k = 0; k < N; k++) equal_before = equal_before || (z[k] == of_target && first + k < target);
        }
    }
};

// The loss of this block's row; returns its lse.
template <class T> INLINE float loss_of_row(const CrossEntropy& p, T* z, float* partial) {
    u32 target = p.targets[blockIdx.x];
    float of_target = to_f32(z[target]);
    Seen seen{target, of_target, minus_infinity(), 0.0f, false};
    over_row<false>(z, (u32)p.vocabulary, seen);
    float largest = block_max(seen.largest, partial);
    float own = seen.largest == minus_infinity() ? 0.0f : seen.sum * exp_of(seen.largest - largest);
    float sum = block_sum(own, partial);
    float equal_before = block_max(seen.equal_before ? 1.0f : 0.0f, partial);
    float lse = largest + logf(sum);
    if (threadIdx.x == 0) {
        float* position = p.positions + (u64)blockIdx.x * STATISTICS;
        position[0] = lse - of_target;
        position[1] = lse;
        position[2] = of_target == largest && equal_before == 0.0f ? 1.0f : 0.0f;
        position[3] = lse - of_target;
    }
    return lse;
}

struct Gradient {
    u32 target;
    float lse;
    float scale;
    float softcap;

    template <class T, int N> __device__ __forceinline__ void visit(u32 first, Vector<T, N>& logits) const {
        float z[N], d[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            z[k] = to_f32(logits.at[k]);
            d[k] = scale * exp_of(z[k] - lse);
        }
        if (target - first < (u32)N) {
#pragma unroll
            for (int k = 0; k < N; k++) d[k] -= first + k == target ? scale : 0.0f;
        }
        if (softcap > 0.0f) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                float t = z[k] / softcap;
                d[k] *= 1.0f - t * t;
            }
        }
#pragma unroll
        for (int k = 0; k < N; k++) logits.at[k] = from_f32<T>(d[k]);
    }
};

template <class T> INLINE T* row_of(const CrossEntropy& p) { return (T*)p.logits + blockIdx.x * p.vocabulary; }

template <class T> INLINE void gradient_of_row(const CrossEntropy& p, float lse) {
    Gradient gradient{p.targets[blockIdx.x], lse, p.scale, p.softcap};
    over_row<true>(row_of<T>(p), (u32)p.vocabulary, gradient);
}

template <class T> INLINE void forward(const CrossEntropy& p) {
    __shared__ float partial[32];
    loss_of_row(p, row_of<T>(p), partial);
}

template <class T> INLINE void backward(const CrossEntropy& p) {
    gradient_of_row<T>(p, p.positions[(u64)blockIdx.x * STATISTICS + 1]);
}

// The barriers of the sums in `loss_of_row` are between the last logit read for the loss and the first one replaced.
template <class T> INLINE void forward_backward(const CrossEntropy& p) {
    __shared__ float partial[32];
    float lse = loss_of_row(p, row_of<T>(p), partial);
    gradient_of_row<T>(p, lse);
}

#define ENTRY(NAME, T) extern "C" __global__ void __launch_bounds__(1024) cross_entropy_##NAME##_##T(CrossEntropy p) { NAME<T>(p); }
ENTRY(forward, f32)
ENTRY(forward, bf16)
ENTRY(backward, f32)
ENTRY(backward, bf16)
ENTRY(forward_backward, f32)
ENTRY(forward_backward, bf16)

struct AddPositions {
    const float* positions;
    double* totals;
    u64 count;
};

// Adds nll, correct and loss of all positions to the totals, by one block of 1024 threads.
extern "C" __global__ void cross_entropy_add(AddPositions p) {
    __shared__ double nll[1024], correct[1024], loss[1024];
    double own_nll = 0.0, own_correct = 0.0, own_loss = 0.0;
    for (u64 i = threadIdx.x; i < p.count; i += 1024) {
        own_nll += (double)p.positions[i * STATISTICS];
        own_correct += (double)p.positions[i * STATISTICS + 2];
        own_loss += (double)p.positions[i * STATISTICS + 3];
    }
    nll[threadIdx.x] = own_nll;
    correct[threadIdx.x] = own_correct;
    loss[threadIdx.x] = own_loss;
    for (int half = 512; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            nll[threadIdx.x] += nll[threadIdx.x + half];
            correct[threadIdx.x] += correct[threadIdx.x + half];
            loss[threadIdx.x] += loss[threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        p.totals[0] += nll[0];
        p.totals[1] += correct[0];
        p.totals[2] += loss[0];
    }
}
