// What a compiled kernel and the emulated driver know of each other. The driver owns one `Emulator`; every image has a
// pointer to it, set when the image is loaded. In a namespace, since kernels have names of their own.
#pragma once

namespace emulation {

struct Dim3 {
    unsigned x, y, z;
};

// What all lanes of `mask` do together once the last of them has arrived; lanes[l] is what lane l gave.
typedef void Together(void** lanes, unsigned mask);

// The place in the kernel's source where a thread waits.
struct Place {
    const char* file;
    int line;
};

// Errors of a kernel, with the numbers of CUresult.
enum KernelError { ILLEGAL_ADDRESS = 700, MISALIGNED_ADDRESS = 716, LAUNCH_FAILED = 719 };

// d (64 × columns) = a·b + (add ? d : 0) of a warpgroup over 16 columns of a and rows of b. What is in shared memory is
// given as a matrix descriptor.
struct Wgmma {
    float* d;
    int columns;
    const unsigned* a_registers;  // or null
    unsigned long long a, b;
    bool transposed_b, add;
};

struct Emulator {
    Dim3 thread, block, block_size, grid_size;
    int lane;
    unsigned char* dynamic_shared;

    // Returns for how many threads of the block `predicate` holds, once all have arrived.
    int (*barrier)(bool predicate, Place);
    // Lanes meet if mask and function agree; where `aligned`, the place must agree, too.
    void (*meet)(unsigned mask, Together*, void* given, bool aligned, Place);
    void (*copy_async)(void* shared, const void* global, int bytes, bool valid);
    void (*copy_async_commit)();
    void (*copy_async_wait)(int under_way);
    // Barriers in shared memory, of eight bytes.
    void (*mbarrier_init)(void* barrier, unsigned arrivals);
    void (*mbarrier_arrive)(void* barrier);
    void (*copy_async_arrive)(void* barrier);
    void (*mbarrier_wait)(void* barrier, unsigned phase, Place);
    // What copies have written to shared memory is visible to `wgmma` after the thread's fence and a barrier.
    void (*fence_for_wgmma)();
    // Products of a warp, its part of a warpgroup's; see emulator.h.
    void (*wgmma_fence)();
    void (*wgmma)(const Wgmma&, Place);
    void (*wgmma_commit)();
    void (*wgmma_wait)(int under_way, Place);
    // Ends the kernel; its launch returns `error`.
    void (*fail)(KernelError error, const char* format, ...);
};

}  // namespace emulation
