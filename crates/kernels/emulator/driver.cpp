// libcuda.so.1 without a GPU: the part of the CUDA driver API that cudarc calls. Everything happens at once, in the
// thread that calls; one mutex guards it all.
//
// SFT_EMULATOR_ARCH    compute capability, 9.0 without it
// SFT_EMULATOR_MEMORY  bytes of device memory, 4 GiB without it
// SFT_EMULATOR_ALIGNMENT  of allocations, 16 without it
// SFT_EMULATOR_IDLE    if set, neither kernels nor products run: what is left is the time of the program itself
#include "blocks.h"
#include "image.h"
#include "memory.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

#define API extern "C" __attribute__((visibility("default"))) int

using namespace emulation;

namespace {

// CUresult
constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
              NOT_FOUND = 500, OUT_OF_RESOURCES = 701, NOT_SUPPORTED = 801;

constexpr int MULTIPROCESSORS = 4;
constexpr unsigned SHARED_BYTES_WITHOUT_ASKING = 48 << 10;

std::mutex mutex;
// What the last error of this thread was about; cuGetErrorString tells it.
thread_local int explained;
thread_local std::string explanation;

int refuse(int error, const std::string& why) {
    explained = error;
    explanation = why;
    fprintf(stderr, "CUDA emulator: %s\n", why.c_str());
    return error;
}

struct Capability {
    int major = 9, minor = 0;
};

Capability capability() {
    static const Capability capability = [] {
        Capability c;
        if (const char* text = getenv("SFT_EMULATOR_ARCH")) sscanf(text, "%d.%d", &c.major, &c.minor);
        return c;
    }();
    return capability;
}

// CUDA C++ Programming Guide, technical specifications per compute capability.
int shared_bytes_per_multiprocessor() {
    Capability c = capability();
    if (c.major == 8 && (c.minor == 6 || c.minor == 9)) return 100 << 10;
    if (c.major == 8) return 164 << 10;
    return c.major == 12 ? 100 << 10 : 228 << 10;
}
// The system keeps 1 KiB of each block for itself.
int shared_bytes_per_block() { return shared_bytes_per_multiprocessor() - (1 << 10); }
int threads_per_multiprocessor() {
    Capability c = capability();
    return (c.major == 8 && c.minor > 0) || c.major == 12 ? 1536 : 2048;
}

struct Module {
    void* object;
    int file;
};

struct Function {
    std::string name;
    void (*entry)(void**);
    Module* module;
    char** shared;
    int max_threads;
    int dynamic_shared_bytes = SHARED_BYTES_WITHOUT_ASKING;
};

struct Event {
    std::chrono::steady_clock::time_point time;
    bool recorded = false;
};

// Handles of what needs no state.
int context, pool;
thread_local void* current_context;

int check_range(const char* call, const void* at, size_t bytes) {
    if (!memory_is_device((uintptr_t)at)) return SUCCESS;
    if (memory_holds((uintptr_t)at, bytes)) return SUCCESS;
    return refuse(INVALID_VALUE, std::string(call) + ": " + std::to_string(bytes) + " bytes from " +
                                     memory_describe((uintptr_t)at) + " on");
}

int check_device(const char* call, const void* at, size_t bytes) {
    if (bytes > 0 && !memory_is_device((uintptr_t)at))
        return refuse(INVALID_VALUE, std::string(call) + ": " + memory_describe((uintptr_t)at));
    return bytes > 0 ? check_range(call, at, bytes) : SUCCESS;
}

int check_host(const char* call, const void* at, size_t bytes) {
    if (bytes > 0 && memory_is_device((uintptr_t)at)) return refuse(INVALID_VALUE, std::string(call) + ": not a host's address");
    return SUCCESS;
}

enum Kind { HOST, DEVICE, EITHER };

int check(const char* call, Kind kind, const void* at, size_t bytes) {
    if (kind == EITHER) return bytes > 0 ? check_range(call, at, bytes) : SUCCESS;
    return kind == HOST ? check_host(call, at, bytes) : check_device(call, at, bytes);
}

int copy(const char* call, Kind to_kind, void* to, Kind from_kind, const void* from, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    if (int error = check(call, to_kind, to, bytes)) return error;
    if (int error = check(call, from_kind, from, bytes)) return error;
    if (bytes > 0) memmove(to, from, bytes);
    return SUCCESS;
}

template <class T> int fill(const char* call, T* at, T value, size_t count) {
    std::lock_guard<std::mutex> lock(mutex);
    if (int error = check_device(call, at, count * sizeof(T))) return error;
    for (size_t i = 0; i < count; i++) at[i] = value;
    return SUCCESS;
}

int allocate(void** at, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    if (bytes == 0) return refuse(INVALID_VALUE, "allocation of 0 bytes");
    *at = memory_allocate(bytes);
    if (*at) return SUCCESS;
    return refuse(OUT_OF_MEMORY, "no memory for " + std::to_string(bytes) + " bytes, " + std::to_string(memory_used()) + " of " +
                                     std::to_string(memory_total()) + " are in use");
}

int release(void* at) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!at) return SUCCESS;
    bool overrun = false;
    if (!memory_free(at, &overrun)) return refuse(INVALID_VALUE, "free of " + memory_describe((uintptr_t)at));
    return overrun ? refuse(ILLEGAL_ADDRESS, "written beyond the end of what is freed") : SUCCESS;
}

int allocate_host(void** at, size_t bytes) {
    *at = bytes > 0 ? aligned_alloc(4096, (bytes + 4095) / 4096 * 4096) : nullptr;
    if (!*at) return bytes > 0 ? OUT_OF_MEMORY : INVALID_VALUE;
    return SUCCESS;
}

int synchronize() {
    std::lock_guard<std::mutex> lock(mutex);
    std::string overrun = memory_overrun();
    return overrun.empty() ? SUCCESS : refuse(ILLEGAL_ADDRESS, overrun);
}

std::string size_in_words(Dim3 size) {
    return std::to_string(size.x) + "×" + std::to_string(size.y) + "×" + std::to_string(size.z);
}

int launch(Function* function, Dim3 grid, Dim3 block, unsigned shared_bytes, void** arguments) {
    std::lock_guard<std::mutex> lock(mutex);
    auto refuse_launch = [&](int error, const std::string& why) { return refuse(error, "launch of " + function->name + ": " + why); };
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64)
        return refuse_launch(INVALID_VALUE, "blocks of " + size_in_words(block) + " threads");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        return refuse_launch(INVALID_VALUE, "a grid of " + size_in_words(grid) + " blocks");
    if (threads > (uint64_t)function->max_threads)
        return refuse_launch(OUT_OF_RESOURCES, std::to_string(threads) + " threads in a block, __launch_bounds__ says " +
                                                   std::to_string(function->max_threads));
    if ((int)shared_bytes > function->dynamic_shared_bytes)
        return refuse_launch(INVALID_VALUE, std::to_string(shared_bytes) + " bytes of dynamic shared memory, at most " +
                                                std::to_string(function->dynamic_shared_bytes) + " were asked for");
    if (!arguments) return refuse_launch(INVALID_VALUE, "no arguments");
    if (getenv("SFT_EMULATOR_IDLE")) return SUCCESS;
    Launch it = {function->name.c_str(), function->entry, arguments, grid, block, shared_bytes,
                 {function->shared[0], function->shared[1]}, function->module->file};
    Failure failure = run_blocks(it);
    return failure.error == 0 ? SUCCESS : refuse(failure.error, failure.message);
}

const char* error_name(int error) {
    switch (error) {
        case SUCCESS: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case OUT_OF_RESOURCES: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
        case MISALIGNED_ADDRESS: return "CUDA_ERROR_MISALIGNED_ADDRESS";
        case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
        case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
        default: return "CUDA_ERROR_UNKNOWN";
    }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Errors, device, context

API cuGetErrorName(int error, const char** name) { return *name = error_name(error), SUCCESS; }
API cuGetErrorString(int error, const char** text) {
    *text = error != SUCCESS && error == explained ? explanation.c_str() : error_name(error);
    return SUCCESS;
}

API cuInit(unsigned) { return SUCCESS; }
API cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
API cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
API cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : INVALID_DEVICE; }
API cuDeviceGetName(char* name, int bytes, int) { return snprintf(name, (size_t)bytes, "Emulated GPU"), SUCCESS; }
API cuDeviceGetUuid(char* uuid, int) { return memcpy(uuid, "sft CUDA emulate", 16), SUCCESS; }
API cuDeviceGetUuid_v2(char* uuid, int device) { return cuDeviceGetUuid(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = memory_total(), SUCCESS; }
API cuDeviceComputeCapability(int* major, int* minor, int) {
    *major = capability().major;
    *minor = capability().minor;
    return SUCCESS;
}

// CUdevice_attribute
API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;                // MAX_THREADS_PER_BLOCK
        case 2: case 3: *value = 1024; break;        // MAX_BLOCK_DIM_X, _Y
        case 4: *value = 64; break;                  // MAX_BLOCK_DIM_Z
        case 5: *value = 0x7fffffff; break;          // MAX_GRID_DIM_X
        case 6: case 7: *value = 65535; break;       // MAX_GRID_DIM_Y, _Z
        case 8: *value = SHARED_BYTES_WITHOUT_ASKING; break;  // MAX_SHARED_MEMORY_PER_BLOCK
        case 9: *value = 64 << 10; break;            // TOTAL_CONSTANT_MEMORY
        case 10: *value = 32; break;                 // WARP_SIZE
        case 12: case 82: *value = 65536; break;     // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
        case 13: case 36: *value = 1000000; break;   // CLOCK_RATE, MEMORY_CLOCK_RATE in kHz
        case 14: *value = 512; break;                // TEXTURE_ALIGNMENT
        case 16: *value = MULTIPROCESSORS; break;    // MULTIPROCESSOR_COUNT
        case 19: case 31: case 41: case 78: *value = 1; break;  // CAN_MAP_HOST_MEMORY, CONCURRENT_KERNELS, UNIFIED_ADDRESSING, STREAM_PRIORITIES
        case 37: *value = 64; break;                 // GLOBAL_MEMORY_BUS_WIDTH in bits
        case 38: *value = 4 << 20; break;            // L2_CACHE_SIZE
        case 39: *value = threads_per_multiprocessor(); break;  // MAX_THREADS_PER_MULTIPROCESSOR
        case 40: *value = 1; break;                  // ASYNC_ENGINE_COUNT
        case 75: *value = capability().major; break; // COMPUTE_CAPABILITY_MAJOR
        case 76: *value = capability().minor; break; // COMPUTE_CAPABILITY_MINOR
        case 81: *value = shared_bytes_per_multiprocessor(); break;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        case 97: *value = shared_bytes_per_block(); break;  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        case 106: *value = 32; break;                // MAX_BLOCKS_PER_MULTIPROCESSOR
        case 111: *value = 1 << 10; break;           // RESERVED_SHARED_MEMORY_PER_BLOCK
        case 115: *value = 1; break;                 // MEMORY_POOLS_SUPPORTED
        default: *value = 0;
    }
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** it, int) { return *it = &context, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, SUCCESS; }
API cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
API cuCtxCreate_v2(void** it, unsigned, int) { return *it = current_context = &context, SUCCESS; }
API cuCtxCreate_v3(void** it, void*, int, unsigned, int) { return *it = current_context = &context, SUCCESS; }
API cuCtxCreate_v4(void** it, void*, unsigned, int) { return *it = current_context = &context, SUCCESS; }
API cuCtxDestroy_v2(void*) { return SUCCESS; }
API cuCtxGetCurrent(void** it) { return *it = current_context, SUCCESS; }
API cuCtxSetCurrent(void* it) { return current_context = it, SUCCESS; }
API cuCtxPushCurrent_v2(void* it) { return current_context = it, SUCCESS; }
API cuCtxPopCurrent_v2(void** it) { return it ? *it = current_context : nullptr, SUCCESS; }
API cuCtxGetDevice(int* device) { return *device = 0, SUCCESS; }
API cuCtxSynchronize() { return synchronize(); }
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxGetLimit(size_t* value, int) { return *value = 0, SUCCESS; }
API cuCtxSetLimit(int, size_t) { return SUCCESS; }
API cuCtxGetCacheConfig(int* value) { return *value = 0, SUCCESS; }
API cuCtxSetCacheConfig(int) { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = *greatest = 0, SUCCESS; }

// ---------------------------------------------------------------------------------------------------------------------
// Memory

API cuMemGetInfo_v2(size_t* available, size_t* total) {
    std::lock_guard<std::mutex> lock(mutex);
    *total = memory_total();
    *available = *total - memory_used();
    return SUCCESS;
}
API cuMemAlloc_v2(void** at, size_t bytes) { return allocate(at, bytes); }
API cuMemAllocAsync(void** at, size_t bytes, void*) { return allocate(at, bytes); }
API cuMemAllocFromPoolAsync(void** at, size_t bytes, void*, void*) { return allocate(at, bytes); }
API cuMemFree_v2(void* at) { return release(at); }
API cuMemFreeAsync(void* at, void*) { return release(at); }
API cuMemGetAddressRange_v2(uintptr_t* start, size_t* bytes, uintptr_t at) {
    std::lock_guard<std::mutex> lock(mutex);
    uintptr_t found;
    size_t size;
    if (!memory_find(at, &found, &size)) return NOT_FOUND;
    if (start) *start = found;
    if (bytes) *bytes = size;
    return SUCCESS;
}

API cuMemHostAlloc(void** at, size_t bytes, unsigned) { return allocate_host(at, bytes); }
API cuMemAllocHost_v2(void** at, size_t bytes) { return allocate_host(at, bytes); }
API cuMemFreeHost(void* at) { return free(at), SUCCESS; }
API cuMemHostRegister_v2(void*, size_t, unsigned) { return SUCCESS; }
API cuMemHostUnregister(void*) { return SUCCESS; }

API cuDeviceGetDefaultMemPool(void** it, int) { return *it = &pool, SUCCESS; }
API cuDeviceGetMemPool(void** it, int) { return *it = &pool, SUCCESS; }
API cuDeviceSetMemPool(int, void*) { return SUCCESS; }
API cuMemPoolCreate(void** it, const void*) { return *it = &pool, SUCCESS; }
API cuMemPoolDestroy(void*) { return SUCCESS; }
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolGetAttribute(void*, int attribute, void* value) {
    constexpr int RELEASE_THRESHOLD = 4, RESERVED_CURRENT = 5;  // and above, the amounts in use
    if (attribute < RELEASE_THRESHOLD) *(int*)value = 1;
    else *(uint64_t*)value = attribute >= RESERVED_CURRENT ? memory_used() : 0;
    return SUCCESS;
}

API cuMemcpy(void* to, const void* from, size_t n) { return copy("cuMemcpy", EITHER, to, EITHER, from, n); }
API cuMemcpyAsync(void* to, const void* from, size_t n, void*) { return copy("cuMemcpyAsync", EITHER, to, EITHER, from, n); }
API cuMemcpyHtoD_v2(void* to, const void* from, size_t n) { return copy("cuMemcpyHtoD", DEVICE, to, HOST, from, n); }
API cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t n, void*) { return copy("cuMemcpyHtoDAsync", DEVICE, to, HOST, from, n); }
API cuMemcpyDtoH_v2(void* to, const void* from, size_t n) { return copy("cuMemcpyDtoH", HOST, to, DEVICE, from, n); }
API cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t n, void*) { return copy("cuMemcpyDtoHAsync", HOST, to, DEVICE, from, n); }
API cuMemcpyDtoD_v2(void* to, const void* from, size_t n) { return copy("cuMemcpyDtoD", DEVICE, to, DEVICE, from, n); }
API cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t n, void*) { return copy("cuMemcpyDtoDAsync", DEVICE, to, DEVICE, from, n); }

// CUDA_MEMCPY2D
struct Copy2D {
    struct Side {
        size_t x, y;
        int type;
        void *host, *device, *array;
        size_t pitch;
    } from, to;
    size_t width, height;
};
static char* start_of(const Copy2D::Side& side, size_t row, Kind* kind) {
    constexpr int TYPE_HOST = 1, TYPE_UNIFIED = 4;
    *kind = side.type == TYPE_HOST ? HOST : side.type == TYPE_UNIFIED ? EITHER : DEVICE;
    return (char*)(*kind == HOST ? side.host : side.device) + (side.y + row) * side.pitch + side.x;
}
API cuMemcpy2D_v2(const Copy2D* it) {
    for (size_t row = 0; row < it->height; row++) {
        Kind to_kind, from_kind;
        char *to = start_of(it->to, row, &to_kind), *from = start_of(it->from, row, &from_kind);
        if (int error = copy("cuMemcpy2D", to_kind, to, from_kind, from, it->width)) return error;
    }
    return SUCCESS;
}
API cuMemcpy2DAsync_v2(const Copy2D* it, void*) { return cuMemcpy2D_v2(it); }
API cuMemcpy2DUnaligned_v2(const Copy2D* it) { return cuMemcpy2D_v2(it); }

API cuMemsetD8_v2(uint8_t* at, uint8_t value, size_t n) { return fill("cuMemsetD8", at, value, n); }
API cuMemsetD8Async(uint8_t* at, uint8_t value, size_t n, void*) { return fill("cuMemsetD8Async", at, value, n); }
API cuMemsetD16_v2(uint16_t* at, uint16_t value, size_t n) { return fill("cuMemsetD16", at, value, n); }
API cuMemsetD16Async(uint16_t* at, uint16_t value, size_t n, void*) { return fill("cuMemsetD16Async", at, value, n); }
API cuMemsetD32_v2(uint32_t* at, uint32_t value, size_t n) { return fill("cuMemsetD32", at, value, n); }
API cuMemsetD32Async(uint32_t* at, uint32_t value, size_t n, void*) { return fill("cuMemsetD32Async", at, value, n); }

// ---------------------------------------------------------------------------------------------------------------------
// Streams and events

API cuStreamCreate(void** it, unsigned) { return *it = new char, SUCCESS; }
API cuStreamCreateWithPriority(void** it, unsigned, int) { return *it = new char, SUCCESS; }
API cuStreamDestroy_v2(void* it) { return delete (char*)it, SUCCESS; }
API cuStreamSynchronize(void*) { return synchronize(); }
API cuStreamQuery(void*) { return SUCCESS; }
API cuStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }
API cuStreamIsCapturing(void*, int* status) { return *status = 0, SUCCESS; }
API cuStreamBeginCapture_v2(void*, int) { return refuse(NOT_SUPPORTED, "no capture of streams"); }
API cuStreamAttachMemAsync(void*, void*, size_t, unsigned) { return SUCCESS; }
API cuLaunchHostFunc(void*, void (*function)(void*), void* data) { return function(data), SUCCESS; }

API cuEventCreate(Event** it, unsigned) { return *it = new Event, SUCCESS; }
API cuEventDestroy_v2(Event* it) { return delete it, SUCCESS; }
API cuEventRecord(Event* it, void*) {
    it->time = std::chrono::steady_clock::now();
    it->recorded = true;
    return SUCCESS;
}
API cuEventQuery(Event*) { return SUCCESS; }
API cuEventSynchronize(Event*) { return synchronize(); }
API cuEventElapsedTime(float* ms, Event* start, Event* end) {
    if (!start->recorded || !end->recorded) return refuse(INVALID_VALUE, "time between events that weren't recorded");
    *ms = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return SUCCESS;
}
API cuEventElapsedTime_v2(float* ms, Event* start, Event* end) { return cuEventElapsedTime(ms, start, end); }
API cuProfilerStart() { return SUCCESS; }
API cuProfilerStop() { return SUCCESS; }

// ---------------------------------------------------------------------------------------------------------------------
// Modules and launches

API cuModuleLoadData(Module** it, const void* image) {
    ImageHeader header;
    memcpy(&header, image, sizeof header);
    if (memcmp(header.magic, IMAGE_MAGIC, sizeof header.magic) != 0)
        return refuse(INVALID_IMAGE, "the image of a module isn't from the emulator's NVRTC");
    // A file without a name: gone when it isn't used any more, however the process ends.
    int file = memfd_create("kernels", MFD_CLOEXEC);
    const char* bytes = (const char*)image + sizeof header;
    for (size_t written = 0; written < header.bytes;) {
        ssize_t n = write(file, bytes + written, header.bytes - written);
        if (n <= 0) return close(file), refuse(OUT_OF_MEMORY, "can't write the image of a module");
        written += (size_t)n;
    }
    void* object = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!object) return close(file), refuse(INVALID_IMAGE, dlerror());
    *(Emulator**)dlsym(object, "emulator") = blocks_emulator();
    *it = new Module{object, file};
    return SUCCESS;
}
API cuModuleLoadDataEx(Module** it, const void* image, unsigned, void*, void*) { return cuModuleLoadData(it, image); }
API cuModuleUnload(Module* it) {
    std::lock_guard<std::mutex> lock(mutex);
    dlclose(it->object);
    close(it->file);
    delete it;
    return SUCCESS;
}
// A function lives as long as the process, there are few.
API cuModuleGetFunction(Function** it, Module* module, const char* name) {
    auto symbol = [&](const char* prefix) { return dlsym(module->object, (std::string(prefix) + name).c_str()); };
    void* entry = symbol(ENTRY_PREFIX);
    if (!entry) return refuse(NOT_FOUND, std::string("no kernel ") + name + " in the module");
    *it = new Function{name, (void (*)(void**))entry, module, (char**)dlsym(module->object, "emulator_shared"),
                       *(int*)symbol(BOUNDS_PREFIX)};
    return SUCCESS;
}
API cuModuleGetGlobal_v2(void**, size_t*, Module*, const char*) { return refuse(NOT_SUPPORTED, "no global variables of modules"); }

// CUfunction_attribute
constexpr int MAX_THREADS = 0, MAX_DYNAMIC_SHARED_BYTES = 8;
API cuFuncSetAttribute(Function* it, int attribute, int value) {
    if (attribute != MAX_DYNAMIC_SHARED_BYTES) return SUCCESS;
    if (value < 0 || value > shared_bytes_per_block())
        return refuse(INVALID_VALUE, std::to_string(value) + " bytes of dynamic shared memory for " + it->name + ", a block can have " +
                                         std::to_string(shared_bytes_per_block()));
    it->dynamic_shared_bytes = value;
    return SUCCESS;
}
API cuFuncGetAttribute(int* value, int attribute, Function* it) {
    *value = attribute == MAX_THREADS                ? it->max_threads
             : attribute == MAX_DYNAMIC_SHARED_BYTES ? it->dynamic_shared_bytes
                                                     : 0;
    return SUCCESS;
}
API cuFuncSetCacheConfig(Function*, int) { return SUCCESS; }

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function*, int threads, size_t shared_bytes) {
    int by_threads = threads_per_multiprocessor() / (threads > 0 ? threads : 1);
    int by_shared = shared_bytes_per_multiprocessor() / (int)(shared_bytes + (1 << 10));
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* it, int threads, size_t bytes, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, it, threads, bytes);
}

API cuLaunchKernel(Function* it, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void*, void** arguments, void**) {
    return launch(it, Dim3{gx, gy, gz}, Dim3{bx, by, bz}, shared_bytes, arguments);
}
// CUlaunchConfig
struct LaunchConfig {
    Dim3 grid, block;
    unsigned shared_bytes;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};
API cuLaunchKernelEx(const LaunchConfig* config, Function* it, void** arguments, void**) {
    return launch(it, config->grid, config->block, config->shared_bytes, arguments);
}
