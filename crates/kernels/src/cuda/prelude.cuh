// What all kernels share: element types, 16-byte access, sums over warps and blocks in a fixed order.

typedef float f32;

struct bf16 {
    u16 bits;
};

INLINE float to_f32(float x) { return x; }
INLINE float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class T> struct Rounding;
template <> struct Rounding<float> {
    static __device__ __forceinline__ float of(float x) { return x; }
};
template <> struct Rounding<bf16> {
    static __device__ __forceinline__ bf16 of(float x) { return bf16{bf16_bits(x)}; }
};

// x in type T, rounded to nearest even.
template <class T> INLINE T from_f32(float x) { return Rounding<T>::of(x); }

// N neighbouring elements that are read and written by one instruction where N·sizeof(T) is 16.
template <class T, int N> struct __align__(sizeof(T) * N) Vector {
    T at[N];
};

// Elements of T in 16 bytes.
template <class T> struct Width {
    static const int value = 16 / sizeof(T);
};

template <class T, int N> INLINE void round_into(Vector<T, N>& to, const float* x) {
#pragma unroll
    for (int i = 0; i < N; i++) to.at[i] = from_f32<T>(x[i]);
}
template <int N> INLINE void round_into(Vector<bf16, N>& to, const float* x) {
    if constexpr (N == 1) {
        to.at[0] = from_f32<bf16>(x[0]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            u32 pair = bf16_pair(x[i], x[i + 1]);
            to.at[i] = bf16{(u16)pair};
            to.at[i + 1] = bf16{(u16)(pair >> 16)};
        }
    }
}

// Elements of T in one access, of N that are wanted.
template <class T, int N> struct Piece {
    static const int value = N < Width<T>::value ? N : Width<T>::value;
};

// N neighbours as floats, 16 bytes at a time, or all at once if they are fewer; `from` is aligned for that.
template <class T, int N> INLINE void load_floats(float (&x)[N], const T* from) {
    constexpr int PIECE = Piece<T, N>::value;
#pragma unroll
    for (int i = 0; i < N; i += PIECE) {
        const Vector<T, PIECE> piece = *(const Vector<T, PIECE>*)(from + i);
#pragma unroll
        for (int j = 0; j < PIECE; j++) x[i + j] = to_f32(piece.at[j]);
    }
}

// The reverse, rounded to T.
template <class T, int N> INLINE void store_floats(T* to, const float (&x)[N]) {
    constexpr int PIECE = Piece<T, N>::value;
#pragma unroll
    for (int i = 0; i < N; i += PIECE) {
        Vector<T, PIECE> piece;
        round_into(piece, x + i);
        *(Vector<T, PIECE>*)(to + i) = piece;
    }
}

// Whether N elements of T at p can go through `load_floats`.
template <class T, int N> INLINE bool is_aligned(const void* p) {
    return (u64)p % (Piece<T, N>::value * sizeof(T)) == 0;
}

// The N elements, fewer at the end, that a thread of an element-wise kernel handles.
struct Span {
    u64 first;
    u32 count;
    // Whether there are N of them, and aligned.
    bool whole;
};

template <int N> INLINE Span span_of_thread(u64 elements, bool aligned) {
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    u64 left = first < elements ? elements - first : 0;
    return Span{first, left < N ? (u32)left : (u32)N, aligned && left >= N};
}

// The span's elements of a tensor; zeros behind its end.
template <class T, int N> INLINE void load_span(float (&x)[N], const T* tensor, Span span) {
    if (span.whole) return load_floats(x, tensor + span.first);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = i < span.count ? to_f32(tensor[span.first + i]) : 0.0f;
}

template <class T, int N> INLINE void store_span(T* tensor, const float (&x)[N], Span span) {
    if (span.whole) return store_floats(tensor + span.first, x);
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i < span.count) tensor[span.first + i] = from_f32<T>(x[i]);
    }
}

constexpr u32 ALL_LANES = 0xffffffffu;

INLINE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

INLINE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over all threads of a block, known to every one of them; `partial` is 32 floats of shared memory, free again
// after the next barrier. Blocks are whole warps.
INLINE float block_sum(float x, float* partial) {
    x = warp_sum(x);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

INLINE float block_max(float x, float* partial) {
    x = warp_max(x);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? partial[lane] : __uint_as_float(0xff800000u));
}

// `random::hash`.
INLINE u64 hash(u64 key, u64 index) {
    u64 z = key ^ (index * 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
