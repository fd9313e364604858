// CUDA C++ for a CPU's compiler: stands in front of a kernel's source, in place of NVRTC's built-in declarations and of
// the PTX in ptx.cuh. Each CUDA thread is a fiber of one thread of the operating system (blocks.cpp): the fibers of a
// block take turns at barriers and at what lanes of a warp do together; blocks run one after the other.
//
// nvrtc.cpp sees the words __global__ and __launch_bounds__ before the compiler does, so they aren't defined here.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef decltype(sizeof(0)) size_t;

// Initialised, so that it isn't in .bss: shared memory is this image's .bss, filled with NaN before each block.
extern "C" __attribute__((visibility("default"))) emulation::Emulator* emulator;
emulation::Emulator* emulator = (emulation::Emulator*)1;
extern "C" {
extern char __bss_start[], _end[];
__attribute__((visibility("default"))) char* emulator_shared[2] = {__bss_start, _end};
}

#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__
#define INLINE static inline
#define DYNAMIC_SHARED(name) u8* const name = emulator->dynamic_shared

#define threadIdx (emulator->thread)
#define blockIdx (emulator->block)
#define blockDim (emulator->block_size)
#define gridDim (emulator->grid_size)
#define warpSize 32

// A last parameter that is the caller's place.
#define EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---------------------------------------------------------------------------------------------------------------------
// Vectors

#define EMULATOR_VECTOR(T, name)                                                         \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                 \
    struct name##3 { T x, y, z; };                                                       \
    struct __align__(4 * sizeof(T)) name##4 { T x, y, z, w; };                           \
    INLINE name##2 make_##name##2(T x, T y) { return name##2{x, y}; }                    \
    INLINE name##3 make_##name##3(T x, T y, T z) { return name##3{x, y, z}; }            \
    INLINE name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }
EMULATOR_VECTOR(float, float)
EMULATOR_VECTOR(int, int)
EMULATOR_VECTOR(unsigned, uint)
EMULATOR_VECTOR(short, short)
EMULATOR_VECTOR(unsigned short, ushort)
EMULATOR_VECTOR(unsigned char, uchar)

// ---------------------------------------------------------------------------------------------------------------------
// Bits and integers

template <class To, class From> INLINE To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

INLINE u32 __float_as_uint(float x) { return emulator_bits<u32>(x); }
INLINE float __uint_as_float(u32 x) { return emulator_bits<float>(x); }
INLINE int __float_as_int(float x) { return emulator_bits<int>(x); }
INLINE float __int_as_float(int x) { return emulator_bits<float>(x); }
INLINE long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
INLINE double __longlong_as_double(long long x) { return emulator_bits<double>(x); }

INLINE int __popc(u32 x) { return __builtin_popcount(x); }
INLINE int __popcll(u64 x) { return __builtin_popcountll(x); }
INLINE int __ffs(int x) { return __builtin_ffs(x); }
INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
INLINE int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
INLINE int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }
INLINE u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
INLINE int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
INLINE u64 __umul64hi(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
INLINE u32 __brev(u32 x) {
    u32 reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
INLINE u32 __funnelshift_l(u32 low, u32 high, u32 by) { return (u32)((((u64)high << 32 | low) << (by & 31)) >> 32); }
INLINE u32 __funnelshift_r(u32 low, u32 high, u32 by) { return (u32)(((u64)high << 32 | low) >> (by & 31)); }
INLINE u32 __byte_perm(u32 a, u32 b, u32 selector) {
    u64 bytes = (u64)b << 32 | a;
    u32 picked = 0;
    for (int i = 0; i < 4; i++) {
        u32 pick = selector >> (4 * i) & 0xf, byte = (u32)(bytes >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        picked |= byte << (8 * i);
    }
    return picked;
}

#define EMULATOR_MIN_MAX(T)                                      \
    INLINE T min(T a, T b) { return b < a ? b : a; }             \
    INLINE T max(T a, T b) { return a < b ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#define EMULATOR_MIN_MAX_MIXED(T, A, B)                          \
    INLINE T min(A a, B b) { return min((T)a, (T)b); }           \
    INLINE T max(A a, B b) { return max((T)a, (T)b); }           \
    INLINE T min(B a, A b) { return min((T)a, (T)b); }           \
    INLINE T max(B a, A b) { return max((T)a, (T)b); }
EMULATOR_MIN_MAX_MIXED(unsigned, int, unsigned)
EMULATOR_MIN_MAX_MIXED(unsigned long, long, unsigned long)
EMULATOR_MIN_MAX_MIXED(unsigned long long, long long, unsigned long long)

// ---------------------------------------------------------------------------------------------------------------------
// Mathematics: the C library's functions, the overloads of C++, and CUDA's intrinsics

#define EMULATOR_MATH_1(name)                                       \
    extern "C" float name##f(float) noexcept;                       \
    extern "C" double name(double) noexcept;                        \
    INLINE float name(float x) { return name##f(x); }
EMULATOR_MATH_1(sqrt) EMULATOR_MATH_1(cbrt) EMULATOR_MATH_1(fabs)
EMULATOR_MATH_1(exp) EMULATOR_MATH_1(exp2) EMULATOR_MATH_1(exp10) EMULATOR_MATH_1(expm1)
EMULATOR_MATH_1(log) EMULATOR_MATH_1(log2) EMULATOR_MATH_1(log10) EMULATOR_MATH_1(log1p)
EMULATOR_MATH_1(sin) EMULATOR_MATH_1(cos) EMULATOR_MATH_1(tan) EMULATOR_MATH_1(asin) EMULATOR_MATH_1(acos)
EMULATOR_MATH_1(atan) EMULATOR_MATH_1(sinh) EMULATOR_MATH_1(cosh) EMULATOR_MATH_1(tanh)
EMULATOR_MATH_1(erf) EMULATOR_MATH_1(erfc) EMULATOR_MATH_1(tgamma) EMULATOR_MATH_1(lgamma)
EMULATOR_MATH_1(floor) EMULATOR_MATH_1(ceil) EMULATOR_MATH_1(trunc) EMULATOR_MATH_1(round) EMULATOR_MATH_1(rint)
EMULATOR_MATH_1(nearbyint)
#define EMULATOR_MATH_2(name)                                       \
    extern "C" float name##f(float, float) noexcept;                \
    extern "C" double name(double, double) noexcept;                \
    INLINE float name(float x, float y) { return name##f(x, y); }
EMULATOR_MATH_2(pow) EMULATOR_MATH_2(fmod) EMULATOR_MATH_2(fmin) EMULATOR_MATH_2(fmax) EMULATOR_MATH_2(copysign)
EMULATOR_MATH_2(atan2) EMULATOR_MATH_2(hypot) EMULATOR_MATH_2(fdim) EMULATOR_MATH_2(remainder)
extern "C" float fmaf(float, float, float) noexcept;
extern "C" double fma(double, double, double) noexcept;
extern "C" float ldexpf(float, int) noexcept;
extern "C" double ldexp(double, int) noexcept;
extern "C" void sincosf(float, float*, float*) noexcept;
extern "C" int printf(const char*, ...);
INLINE float fma(float a, float b, float c) { return fmaf(a, b, c); }
INLINE float ldexp(float x, int by) { return ldexpf(x, by); }

INLINE int abs(int x) { return x < 0 ? -x : x; }
INLINE long long abs(long long x) { return x < 0 ? -x : x; }
INLINE float abs(float x) { return fabsf(x); }
INLINE double abs(double x) { return fabs(x); }
INLINE float min(float a, float b) { return fminf(a, b); }
INLINE float max(float a, float b) { return fmaxf(a, b); }
INLINE double min(double a, double b) { return fmin(a, b); }
INLINE double max(double a, double b) { return fmax(a, b); }

template <class T> INLINE bool isnan(T x) { return __builtin_isnan(x); }
template <class T> INLINE bool isinf(T x) { return __builtin_isinf(x) != 0; }
template <class T> INLINE bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> INLINE bool signbit(T x) { return __builtin_signbit(x) != 0; }

INLINE float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
INLINE float rsqrt(float x) { return rsqrtf(x); }
INLINE float normcdff(float x) { return (float)(0.5 * erfc(-0.70710678118654752440 * (double)x)); }

INLINE float __expf(float x) { return expf(x); }
INLINE float __exp10f(float x) { return exp10f(x); }
INLINE float __logf(float x) { return logf(x); }
INLINE float __log2f(float x) { return log2f(x); }
INLINE float __log10f(float x) { return log10f(x); }
INLINE float __sinf(float x) { return sinf(x); }
INLINE float __cosf(float x) { return cosf(x); }
INLINE float __tanf(float x) { return tanf(x); }
INLINE float __powf(float x, float y) { return powf(x, y); }
INLINE void __sincosf(float x, float* s, float* c) { sincosf(x, s, c); }
INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
INLINE float __fdividef(float x, float y) { return x / y; }
INLINE float __fadd_rn(float x, float y) { return x + y; }
INLINE float __fsub_rn(float x, float y) { return x - y; }
INLINE float __fmul_rn(float x, float y) { return x * y; }
INLINE float __fdiv_rn(float x, float y) { return x / y; }
INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
INLINE float __frcp_rn(float x) { return 1.0f / x; }
INLINE float __frsqrt_rn(float x) { return rsqrtf(x); }

// Conversions to integers saturate; NaN becomes 0.
template <class T> INLINE T emulator_to_integer(double x, double lowest, double highest) {
    return x != x ? 0 : x <= lowest ? (T)lowest : x >= highest ? (T)highest : (T)x;
}
INLINE int __float2int_rz(float x) { return emulator_to_integer<int>(trunc((double)x), -2147483648.0, 2147483647.0); }
INLINE int __float2int_rn(float x) { return emulator_to_integer<int>(rint((double)x), -2147483648.0, 2147483647.0); }
INLINE int __float2int_rd(float x) { return emulator_to_integer<int>(floor((double)x), -2147483648.0, 2147483647.0); }
INLINE int __float2int_ru(float x) { return emulator_to_integer<int>(ceil((double)x), -2147483648.0, 2147483647.0); }
INLINE u32 __float2uint_rz(float x) { return emulator_to_integer<u32>(trunc((double)x), 0.0, 4294967295.0); }
INLINE u32 __float2uint_rn(float x) { return emulator_to_integer<u32>(rint((double)x), 0.0, 4294967295.0); }
INLINE float __int2float_rn(int x) { return (float)x; }
INLINE float __uint2float_rn(u32 x) { return (float)x; }
INLINE float __ull2float_rn(u64 x) { return (float)x; }
INLINE float __double2float_rn(double x) { return (float)x; }

// ---------------------------------------------------------------------------------------------------------------------
// Memory

template <class T> INLINE T __ldg(const T* from) { return *from; }
template <class T> INLINE T __ldcs(const T* from) { return *from; }
template <class T> INLINE T __ldcg(const T* from) { return *from; }
template <class T> INLINE T __ldca(const T* from) { return *from; }
template <class T> INLINE void __stcs(T* to, T value) { *to = value; }
template <class T> INLINE void __stcg(T* to, T value) { *to = value; }

INLINE void __threadfence() {}
INLINE void __threadfence_block() {}

// Fibers take turns at barriers only, so plain code is atomic. None for floats: their sums would depend on the order.
#define EMULATOR_ATOMICS(T)                                                                                \
    INLINE T atomicAdd(T* at, T value) { T old = *at; *at = old + value; return old; }                     \
    INLINE T atomicSub(T* at, T value) { T old = *at; *at = old - value; return old; }                     \
    INLINE T atomicMin(T* at, T value) { T old = *at; *at = min(old, value); return old; }                 \
    INLINE T atomicMax(T* at, T value) { T old = *at; *at = max(old, value); return old; }                 \
    INLINE T atomicAnd(T* at, T value) { T old = *at; *at = old & value; return old; }                     \
    INLINE T atomicOr(T* at, T value) { T old = *at; *at = old | value; return old; }                      \
    INLINE T atomicXor(T* at, T value) { T old = *at; *at = old ^ value; return old; }                     \
    INLINE T atomicExch(T* at, T value) { T old = *at; *at = value; return old; }                          \
    INLINE T atomicCAS(T* at, T expected, T value) { T old = *at; if (old == expected) *at = value; return old; }
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
INLINE u32 atomicInc(u32* at, u32 last) { u32 old = *at; *at = old >= last ? 0 : old + 1; return old; }

// ---------------------------------------------------------------------------------------------------------------------
// Block and warp

// Whatever a thread keeps of shared memory in registers ends here.
#define EMULATOR_MEMORY_CHANGES asm volatile("" ::: "memory")

INLINE int emulator_barrier(bool predicate, const char* file, int line) {
    EMULATOR_MEMORY_CHANGES;
    int threads = emulator->barrier(predicate, emulation::Place{file, line});
    EMULATOR_MEMORY_CHANGES;
    return threads;
}
INLINE void emulator_meet(u32 mask, emulation::Together* together, void* given, bool aligned, const char* file, int line) {
    EMULATOR_MEMORY_CHANGES;
    emulator->meet(mask, together, given, aligned, emulation::Place{file, line});
    EMULATOR_MEMORY_CHANGES;
}

INLINE void __syncthreads(EMULATOR_PLACE) { emulator_barrier(false, file, line); }
INLINE int __syncthreads_count(int predicate, EMULATOR_PLACE) { return emulator_barrier(predicate != 0, file, line); }
INLINE int __syncthreads_or(int predicate, EMULATOR_PLACE) { return emulator_barrier(predicate != 0, file, line) > 0; }
INLINE int __syncthreads_and(int predicate, EMULATOR_PLACE) { return emulator_barrier(predicate == 0, file, line) == 0; }

INLINE void emulator_nothing(void**, u32) {}
INLINE void __syncwarp(u32 mask = 0xffffffffu, EMULATOR_PLACE) {
    emulator_meet(mask, emulator_nothing, nullptr, false, file, line);
}

struct EmulatorVote {
    bool predicate;
    u32 ballot;

    static void together(void** lanes, u32 mask) {
        u32 ballot = 0;
        for (u32 l = 0; l < 32; l++)
            if (mask >> l & 1) ballot |= (u32)((EmulatorVote*)lanes[l])->predicate << l;
        for (u32 l = 0; l < 32; l++)
            if (mask >> l & 1) ((EmulatorVote*)lanes[l])->ballot = ballot;
    }
};
INLINE u32 __ballot_sync(u32 mask, int predicate, EMULATOR_PLACE) {
    EmulatorVote vote = {predicate != 0, 0};
    emulator_meet(mask, EmulatorVote::together, &vote, false, file, line);
    return vote.ballot;
}
INLINE int __any_sync(u32 mask, int predicate, EMULATOR_PLACE) { return __ballot_sync(mask, predicate, file, line) != 0; }
INLINE int __all_sync(u32 mask, int predicate, EMULATOR_PLACE) {
    return __ballot_sync(mask, predicate == 0, file, line) == 0;
}

template <class T> struct EmulatorShuffle {
    T given, taken;
    int from;

    static void together(void** lanes, u32 mask) {
        for (u32 l = 0; l < 32; l++) {
            if (!(mask >> l & 1)) continue;
            EmulatorShuffle* lane = (EmulatorShuffle*)lanes[l];
            if (!(mask >> lane->from & 1))
                emulator->fail(emulation::LAUNCH_FAILED, "lane %u takes a value from lane %d, which isn't in mask 0x%08x", l,
                               lane->from, mask);
            lane->taken = ((EmulatorShuffle*)lanes[lane->from])->given;
        }
    }
};
template <class T> INLINE T emulator_shuffle(u32 mask, T given, int from, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes exchange words of 4 or 8 bytes");
    EmulatorShuffle<T> shuffle = {given, given, from};
    emulator_meet(mask, EmulatorShuffle<T>::together, &shuffle, false, file, line);
    return shuffle.taken;
}

// `width` lanes, a power of two, shuffle among themselves; who reaches beyond them gets its own value.
template <class T> INLINE T __shfl_sync(u32 mask, T given, int source, int width = 32, EMULATOR_PLACE) {
    int first = emulator->lane & -width;
    return emulator_shuffle(mask, given, first | (source & (width - 1)), file, line);
}
template <class T> INLINE T __shfl_xor_sync(u32 mask, T given, int bits, int width = 32, EMULATOR_PLACE) {
    int last = emulator->lane | (width - 1), from = (emulator->lane ^ bits) & 31;
    return emulator_shuffle(mask, given, from > last ? emulator->lane : from, file, line);
}
template <class T> INLINE T __shfl_down_sync(u32 mask, T given, u32 by, int width = 32, EMULATOR_PLACE) {
    int last = emulator->lane | (width - 1), from = emulator->lane + (int)by;
    return emulator_shuffle(mask, given, from > last ? emulator->lane : from, file, line);
}
template <class T> INLINE T __shfl_up_sync(u32 mask, T given, u32 by, int width = 32, EMULATOR_PLACE) {
    int first = emulator->lane & -width, from = emulator->lane - (int)by;
    return emulator_shuffle(mask, given, from < first ? emulator->lane : from, file, line);
}

// ---------------------------------------------------------------------------------------------------------------------
// The functions of ptx.cuh

INLINE u16 bf16_bits(float x) {
    u32 bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
INLINE u32 bf16_pair(float low, float high) { return (u32)bf16_bits(high) << 16 | bf16_bits(low); }

INLINE float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

INLINE float reciprocal_approx(float x) {
    float y = 1.0f / (fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x);
    return fabsf(y) < 1.17549435e-38f ? copysignf(0.0f, y) : y;
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16": with g = lane / 4 and t = lane % 4, a[0] holds row g and a[1] row g + 8
// at columns 2t and 2t + 1, a[2] and a[3] the same rows at columns 8 + 2t and 9 + 2t; b[0] holds rows 2t and 2t + 1 and
// b[1] rows 8 + 2t and 9 + 2t of column g; d[0], d[1] are row g and d[2], d[3] row g + 8 at columns 2t and 2t + 1.
struct EmulatorMma {
    float* d;
    const u32 *a, *b;

    __attribute__((always_inline)) static inline float half(u32 word, int upper) { return __uint_as_float(upper ? word & 0xffff0000u : word << 16); }

    // Most of the time of kernels with products is spent here.
    __attribute__((optimize("O3"), no_sanitize_undefined)) static void together(void** lanes, u32) {
        float a[16][16], b[16][8], d[16][8] = {};
        for (int l = 0; l < 32; l++) {
            EmulatorMma* lane = (EmulatorMma*)lanes[l];
            int g = l / 4, t = l % 4;
            for (int i = 0; i < 8; i++) a[g + 8 * (i / 2 % 2)][2 * t + 8 * (i / 4) + i % 2] = half(lane->a[i / 2], i % 2);
            for (int i = 0; i < 4; i++) b[2 * t + 8 * (i / 2) + i % 2][g] = half(lane->b[i / 2], i % 2);
        }
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++)
                for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
        for (int l = 0; l < 32; l++) {
            EmulatorMma* lane = (EmulatorMma*)lanes[l];
            for (int i = 0; i < 4; i++) lane->d[i] += d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
        }
    }
};
INLINE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], EMULATOR_PLACE) {
    EmulatorMma mma = {d, a, b};
    emulator_meet(0xffffffffu, EmulatorMma::together, &mma, true, file, line);
}

INLINE u32 shared_address(const void* shared) { return (u32)(size_t)shared; }

// Lane l gets row l / 4 of each matrix at columns 2·(l % 4) and the next; transposed, the same of the columns.
template <bool TRANSPOSED> struct EmulatorLoadMatrix {
    u32* r;
    const u16* row;

    static void together(void** lanes, u32) {
        for (int matrix = 0; matrix < 4; matrix++) {
            const u16* rows[8];
            for (int i = 0; i < 8; i++) rows[i] = ((EmulatorLoadMatrix*)lanes[8 * matrix + i])->row;
            for (int l = 0; l < 32; l++) {
                int i = l / 4, j = 2 * (l % 4);
                u32 low = TRANSPOSED ? rows[j][i] : rows[i][j], high = TRANSPOSED ? rows[j + 1][i] : rows[i][j + 1];
                ((EmulatorLoadMatrix*)lanes[l])->r[matrix] = high << 16 | low;
            }
        }
    }
};
template <bool TRANSPOSED> INLINE void emulator_load_matrix(u32* r, const void* row, const char* file, int line) {
    if ((size_t)row % 16 != 0) emulator->fail(emulation::MISALIGNED_ADDRESS, "ldmatrix from a misaligned row at %s:%d", file, line);
    EmulatorLoadMatrix<TRANSPOSED> load = {r, (const u16*)row};
    emulator_meet(0xffffffffu, EmulatorLoadMatrix<TRANSPOSED>::together, &load, true, file, line);
}
INLINE void ldmatrix_x4(u32 (&r)[4], const void* row, EMULATOR_PLACE) { emulator_load_matrix<false>(r, row, file, line); }
INLINE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row, EMULATOR_PLACE) {
    emulator_load_matrix<true>(r, row, file, line);
}

template <int BYTES> INLINE void emulator_copy_async(void* shared, const void* global, bool valid, const char* file, int line) {
    if ((size_t)shared % BYTES != 0 || (valid && (size_t)global % BYTES != 0))
        emulator->fail(emulation::MISALIGNED_ADDRESS, "copy_async_%d with a misaligned address at %s:%d", BYTES, file, line);
    EMULATOR_MEMORY_CHANGES;
    // A bad source faults here rather than where the copy is waited for.
    if (valid)
        for (int i = 0; i < BYTES / 4; i++) (void)*((const volatile u32*)global + i);
    // The copy itself is made when it is waited for; until then there is NaN, so that it shows if the wait is missing or
    // if others still read what was there.
    __builtin_memset(shared, 0xff, BYTES);
    emulator->copy_async(shared, global, BYTES, valid);
    EMULATOR_MEMORY_CHANGES;
}
INLINE void copy_async_16(void* shared, const void* global, bool valid, EMULATOR_PLACE) {
    emulator_copy_async<16>(shared, global, valid, file, line);
}
INLINE void copy_async_4(void* shared, const void* global, bool valid, EMULATOR_PLACE) {
    emulator_copy_async<4>(shared, global, valid, file, line);
}
INLINE void copy_async_commit() { emulator->copy_async_commit(); }
template <int N> INLINE void copy_async_wait() {
    EMULATOR_MEMORY_CHANGES;
    emulator->copy_async_wait(N);
    EMULATOR_MEMORY_CHANGES;
}

INLINE void mbarrier_init(u64* barrier, u32 arrivals) { emulator->mbarrier_init(barrier, arrivals); }
INLINE void mbarrier_arrive(u64* barrier) {
    EMULATOR_MEMORY_CHANGES;
    emulator->mbarrier_arrive(barrier);
}
INLINE void copy_async_arrive(u64* barrier) {
    EMULATOR_MEMORY_CHANGES;
    emulator->copy_async_arrive(barrier);
}
INLINE void mbarrier_wait(u64* barrier, u32 phase, EMULATOR_PLACE) {
    EMULATOR_MEMORY_CHANGES;
    emulator->mbarrier_wait(barrier, phase, emulation::Place{file, line});
    EMULATOR_MEMORY_CHANGES;
}
template <int COUNT> INLINE void fewer_registers() {}
template <int COUNT> INLINE void more_registers() {}

INLINE void fence_for_wgmma() { emulator->fence_for_wgmma(); }
INLINE void finish_bits(u32) {}

INLINE u64 wgmma_matrix(const void* start, u32 leading_bytes) {
    return (u64)((shared_address(start) & 0x3ffff) >> 4) | (u64)(leading_bytes >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
INLINE void emulator_wgmma(const emulation::Wgmma& it, const char* file, int line) {
    EMULATOR_MEMORY_CHANGES;
    emulator->wgmma(it, emulation::Place{file, line});
    EMULATOR_MEMORY_CHANGES;
}
INLINE void wgmma_fence() { emulator->wgmma_fence(); }
INLINE void wgmma_commit() { emulator->wgmma_commit(); }
template <int N, int SIZE> INLINE void wgmma_wait(float (&)[SIZE], EMULATOR_PLACE) {
    EMULATOR_MEMORY_CHANGES;
    emulator->wgmma_wait(N, emulation::Place{file, line});
    EMULATOR_MEMORY_CHANGES;
}
template <bool ADD, int SIZE> INLINE void wgmma(float (&d)[SIZE], u64 a, u64 b, EMULATOR_PLACE) {
    emulator_wgmma(emulation::Wgmma{d, 2 * SIZE, nullptr, a, b, false, ADD}, file, line);
}
template <bool ADD, int SIZE> INLINE void wgmma(float (&d)[SIZE], const u32 (&a)[4], u64 b, EMULATOR_PLACE) {
    emulator_wgmma(emulation::Wgmma{d, 2 * SIZE, a, 0, b, false, ADD}, file, line);
}
template <int SIZE> INLINE void wgmma(float (&d)[SIZE], const u32 (&a)[4], u64 b, EMULATOR_PLACE) {
    emulator_wgmma(emulation::Wgmma{d, 2 * SIZE, a, 0, b, true, true}, file, line);
}

// ---------------------------------------------------------------------------------------------------------------------
// What the compiler's checks (-fsanitize) call. The records begin with the place.

struct EmulatorCheck {
    const char* file;
    u32 line, column;
    struct Type {
        u16 kind, info;
        char name[];
    } const* type;
};

#define EMULATOR_CHECK extern "C" __attribute__((used, no_sanitize_undefined)) inline void
EMULATOR_CHECK __ubsan_handle_type_mismatch_v1_abort(EmulatorCheck* check, size_t address) {
    emulator->fail(emulation::MISALIGNED_ADDRESS, "access to %s at a misaligned address, %s:%u", check->type->name, check->file,
                   check->line);
}
EMULATOR_CHECK __ubsan_handle_out_of_bounds_abort(EmulatorCheck* check, size_t index) {
    emulator->fail(emulation::ILLEGAL_ADDRESS, "index %lld is out of the bounds of %s, %s:%u", (long long)index, check->type->name,
                   check->file, check->line);
}
EMULATOR_CHECK __ubsan_handle_shift_out_of_bounds_abort(EmulatorCheck* check, size_t, size_t by) {
    emulator->fail(emulation::LAUNCH_FAILED, "shift by %lld, %s:%u", (long long)by, check->file, check->line);
}
EMULATOR_CHECK __ubsan_handle_divrem_overflow_abort(EmulatorCheck* check, size_t, size_t) {
    emulator->fail(emulation::LAUNCH_FAILED, "division of integers by zero, %s:%u", check->file, check->line);
}
