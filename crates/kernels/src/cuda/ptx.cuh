// Instructions that CUDA C++ has no name for without its headers. Everything in PTX is in this file: whoever compiles
// kernels for something else (crates/kernels/emulator) defines SFT_EMULATOR and brings these functions along.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef SFT_EMULATOR

#define INLINE static __device__ __forceinline__

// Shared memory whose size is an argument of the launch.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) u8 name[]

// Round to nearest even, as bits.
INLINE u16 bf16_bits(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Two bf16 in a word, `low` in the lower half.
INLINE u32 bf16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// 2^x, with two ulp of error; flushes denormals.
INLINE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x, with one ulp of error; flushes denormals.
INLINE float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// d += a·b for a 16×16 (row-major), b 16×8 (column-major), d 16×8 over a warp; PTX ISA, m16n8k16 fragments.
INLINE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

INLINE u32 shared_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// Four 8×8 matrices of 16-bit values from shared memory; lane l names the row of 16 bytes number l % 8 of matrix l / 8.
INLINE void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}

// The same, each matrix transposed.
INLINE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}

// Sixteen bytes from global to shared memory beside the program's flow; zeros if not `valid`.
INLINE void copy_async_16(void* shared, const void* global, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

// The same with four bytes.
INLINE void copy_async_4(void* shared, const void* global, bool valid) {
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

INLINE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `N` of this thread's committed groups are under way.
template <int N> INLINE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A barrier in shared memory, for `arrivals` of threads or of what they copy; with the last one its phase ends and the
// next begins. Phases are 0, 1, 0 and so on.
INLINE void mbarrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

INLINE void mbarrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives once all is there that this thread has begun to copy.
INLINE void copy_async_arrive(u64* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Waits while the barrier is in this phase; one that is new is in phase 0.
INLINE void mbarrier_wait(u64* barrier, u32 phase) {
    asm volatile("{\n.reg .pred passed;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 passed, [%0], %1;\n@!passed bra again;\n}"
                 ::"r"(shared_address(barrier)), "r"(phase) : "memory");
}

// How many registers each thread of a warpgroup has from here on; all of its warps say so.
template <int COUNT> INLINE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> INLINE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Products of a warpgroup, four warps from a multiple of four on: warp w has rows 16w to 16w + 15 of the 64, and each
// eight columns of d are laid out as mma's d. They run beside the program's flow and in order, and are waited for as
// committed groups. Operands in shared memory lie in tiles of rows of 128 bytes (64 columns) from a multiple of 1024
// bytes on, 16-byte chunk c of row r in place c ^ r % 8; PTX ISA, "Asynchronous Warpgroup Level Matrix".

// A matrix in shared memory that has its sum along its columns (`leading_bytes` has no meaning then), or along its
// rows, whose every 64 columns begin `leading_bytes` after those before. Moved by bytes / 16 to move its start.
INLINE u64 wgmma_matrix(const void* start, u32 leading_bytes) {
    constexpr u64 EIGHT_ROWS = 1024, SWIZZLE_128_BYTES = 1;
    return (u64)((shared_address(start) & 0x3ffff) >> 4) | (u64)(leading_bytes >> 4) << 16 | (EIGHT_ROWS >> 4) << 32 |
           SWIZZLE_128_BYTES << 62;
}

// Before the first product after a use of registers that products have.
INLINE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

#define FLOATS_8(d, i)                                                                                             \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),     \
        "+f"(d[i + 7])
#define FLOATS_32(d, i) FLOATS_8(d, i), FLOATS_8(d, i + 8), FLOATS_8(d, i + 16), FLOATS_8(d, i + 24)
#define NAMES_32                                                                                                   \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"   \
    "%29,%30,%31"
#define NAMES_64                                                                                                   \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,"   \
             "%56,%57,%58,%59,%60,%61,%62,%63"

// Waits until at most `N` committed groups are under way; d is what those before have left.
template <int N> INLINE void wgmma_wait(float (&d)[32]) {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : FLOATS_32(d, 0) : "n"(N) : "memory");
}
template <int N> INLINE void wgmma_wait(float (&d)[64]) {
    asm volatile("wgmma.wait_group.sync.aligned %64;" : FLOATS_32(d, 0), FLOATS_32(d, 32) : "n"(N) : "memory");
}

// d (64 rows, 64 or 128 columns) = a·bᵀ over 16 columns of both, added to d if `ADD`.
template <bool ADD> INLINE void wgmma(float (&d)[32], u64 a, u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : FLOATS_32(d, 0)
                 : "l"(a), "l"(b), "n"((int)ADD) : "memory");
}
template <bool ADD> INLINE void wgmma(float (&d)[64], u64 a, u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : FLOATS_32(d, 0), FLOATS_32(d, 32)
                 : "l"(a), "l"(b), "n"((int)ADD) : "memory");
}

// The same for a in registers as mma's; it stays there until the product has been waited for.
template <bool ADD> INLINE void wgmma(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32
                 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}"
                 : FLOATS_32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ADD) : "memory");
}
template <bool ADD> INLINE void wgmma(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64
                 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 0;\n}"
                 : FLOATS_32(d, 0), FLOATS_32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ADD) : "memory");
}

// d += a·b over 16 rows of b, for a in registers.
INLINE void wgmma(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32
                 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}"
                 : FLOATS_32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1) : "memory");
}
INLINE void wgmma(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64
                 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;\n}"
                 : FLOATS_32(d, 0), FLOATS_32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1) : "memory");
}

// What comes later in the program does not begin before `bits` are known: the compiler sees no reason why arithmetic
// between two waits should not come after the second, where it would run beside nothing. Nothing is ever stored.
INLINE void finish_bits(u32 bits) {
    asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p st.volatile.shared.f32 [%1], %0;\n}"
                 ::"f"(__uint_as_float(bits & 0x7fffffff)), "r"(0) : "memory");
}

// Lets products see what this thread has written to shared memory or copied there, once a barrier has been passed.
INLINE void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

#endif
