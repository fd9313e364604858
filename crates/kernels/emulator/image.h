// What the emulated NVRTC returns as a cubin: this header and a shared object. The header says how long it is, since
// cuModuleLoadData isn't told.
#pragma once
#include <cstdint>

constexpr char IMAGE_MAGIC[9] = "SFTEMU01";

struct ImageHeader {
    char magic[8];
    uint64_t bytes;
};

// For a kernel NAME the object has `void entry_NAME(void** arguments)` and `int bounds_NAME`, its threads at most.
#define ENTRY_PREFIX "entry_"
#define BOUNDS_PREFIX "bounds_"
