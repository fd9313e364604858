#include "blocks.h"

#include "memory.h"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

// ---------------------------------------------------------------------------------------------------------------------
// Fibers: what a function call must preserve is pushed, the stack pointer exchanged, the other's popped.

extern "C" void switch_stacks(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl switch_stacks
.hidden switch_stacks
.type switch_stacks, @function
switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size switch_stacks, .-switch_stacks
)");
constexpr int SAVED_WORDS = 8;  // with the address to return to and one for alignment
constexpr int ENTRY_WORD = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl switch_stacks
.hidden switch_stacks
.type switch_stacks, %function
switch_stacks:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size switch_stacks, .-switch_stacks
)");
constexpr int SAVED_WORDS = 20;
constexpr int ENTRY_WORD = 11;
#else
#error "the emulator knows the registers of x86-64 and aarch64"
#endif

using namespace emulation;

namespace {

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 << 10, PAGE = 4096;
constexpr size_t SHARED_BYTES = 256 << 10;

enum State { READY, AT_BARRIER, AT_MBARRIER, IN_WARP, EXITED };

struct Copy {
    void* shared;
    const void* global;
    int bytes;
    bool valid;
    int group;
};

// What is in shared memory for a barrier of its own.
struct Mbarrier {
    uint16_t arrivals, missing;
    // Its number, and whether copies have arrived in it or before.
    uint16_t phase, copies;
};
static_assert(sizeof(Mbarrier) == 8, "as large as the real one");

// An arrival that waits for the first `copies` copies of its thread.
struct Delivery {
    Mbarrier* barrier;
    size_t copies;
};

// A product that hasn't been waited for. Its sums are worked on out of the thread's sight.
struct Pending {
    Wgmma it;
    int group;
    // If it was computed when it was issued, else it will be when it is waited for.
    bool early;
    std::vector<float> product;
};

struct Sums {
    float* d;
    std::vector<float> values;
};

struct Thread {
    void* stack_pointer;
    char* stack;  // its lowest page can't be accessed
    Dim3 index;
    State state;
    Place place;
    // At a barrier.
    bool predicate;
    // At a barrier in shared memory, until this phase of it ends.
    Mbarrier* barrier;
    unsigned phase;
    // In what a warp does together.
    unsigned mask;
    Together* together;
    void* given;
    bool aligned;
    // Copies to shared memory that haven't been waited for.
    std::vector<Copy> copies;
    int groups;
    std::vector<Delivery> deliveries;
    // Whether copies have written what products don't see yet: this thread's, or those of others that it has waited for.
    bool unfenced, unfenced_of_others;
    std::vector<Pending> products;
    std::vector<Sums> sums;
    int product_groups;
    bool products_fenced;
};

Emulator emulator;
Thread threads[MAX_THREADS];
char* dynamic_shared_end;
unsigned thread_count;
Thread* running;
void* scheduler_stack;
const Launch* launch;
Failure failure;
int barrier_threads;
// Whether a thread has passed a barrier in shared memory after it had been waiting there.
bool woken;
// Order of threads and blocks, see `forward`.
unsigned order = 1;

// Fibers of a block run in ascending or descending order, at random from barrier to barrier, so that a missing barrier
// shows as a wrong result: at times the reader runs before the writer.
bool forward() {
    order = order * 1664525u + 1013904223u;
    return order >> 31;
}

// The top of a stack; not at the same offset in its page for all, or they would compete for the same lines of cache.
char* stack_top(unsigned thread) { return threads[thread].stack + STACK_BYTES - thread % 61 * 64; }

void allocate_once() {
    if (dynamic_shared_end) return;
    auto map = [](size_t bytes) {
        void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) perror("emulator: mmap"), abort();
        return (char*)at;
    };
    char* stacks = map(MAX_THREADS * STACK_BYTES);
    for (unsigned t = 0; t < MAX_THREADS; t++) {
        threads[t].stack = stacks + t * STACK_BYTES;
        mprotect(threads[t].stack, PAGE, PROT_NONE);
    }
    char* shared = map(SHARED_BYTES + PAGE);
    mprotect(shared + SHARED_BYTES, PAGE, PROT_NONE);
    dynamic_shared_end = shared + SHARED_BYTES;
}

void back_to_scheduler() { switch_stacks(&running->stack_pointer, scheduler_stack); }

void run_thread() {
    launch->entry(launch->arguments);
    running->state = EXITED;
    back_to_scheduler();
}

void resume(Thread& thread) {
    running = &thread;
    emulator.thread = thread.index;
    emulator.lane = (int)((&thread - threads) % 32);
    switch_stacks(&scheduler_stack, thread.stack_pointer);
    running = nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reports

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
    char line[1024];
    va_list values;
    va_start(values, format);
    vsnprintf(line, sizeof line, format, values);
    va_end(values);
    return line;
}

std::string in_words(Dim3 at) { return text("(%u, %u, %u)", at.x, at.y, at.z); }

std::string where() {
    std::string at = text("kernel %s, block ", launch->kernel) + in_words(emulator.block);
    return running ? at + ", thread " + in_words(running->index) : at;
}

void set_failure(int error, const std::string& message) {
    if (failure.error == 0) failure = Failure{error, where() + ": " + message};
}

void fail(KernelError error, const char* format, ...) {
    char line[1024];
    va_list values;
    va_start(values, format);
    vsnprintf(line, sizeof line, format, values);
    va_end(values);
    set_failure(error, line);
    back_to_scheduler();
}

// All that threads wait for, each with the number of those that do.
std::string who_waits_where() {
    std::string list;
    std::vector<bool> told(thread_count);
    for (unsigned t = 0; t < thread_count; t++) {
        if (told[t]) continue;
        const Thread& a = threads[t];
        unsigned count = 0;
        for (unsigned u = t; u < thread_count; u++) {
            const Thread& b = threads[u];
            bool same = a.state == b.state && (a.state == EXITED || a.place.line == b.place.line) &&
                        (a.state != IN_WARP || (a.mask == b.mask && a.together == b.together));
            if (same) told[u] = true, count++;
        }
        list += text("\n  %u %s, first ", count, count == 1 ? "thread" : "threads") + in_words(a.index) + ": ";
        if (a.state == EXITED) list += "returned";
        if (a.state == AT_BARRIER) list += text("at the barrier of %s:%d", a.place.file, a.place.line);
        if (a.state == AT_MBARRIER)
            list += text("for phase %u of the barrier in shared memory, %s:%d", a.phase, a.place.file, a.place.line);
        if (a.state == IN_WARP) list += text("in a warp's operation with mask 0x%08x, %s:%d", a.mask, a.place.file, a.place.line);
    }
    return list;
}

// ---------------------------------------------------------------------------------------------------------------------
// What kernels call

int barrier(bool predicate, Place place) {
    running->state = AT_BARRIER;
    running->predicate = predicate;
    running->place = place;
    back_to_scheduler();
    return barrier_threads;
}

void meet(unsigned mask, Together* together, void* given, bool aligned, Place place) {
    Thread* me = running;
    Thread* warp = threads + (me - threads) / 32 * 32;
    if (!(mask >> emulator.lane & 1))
        fail(LAUNCH_FAILED, "lane %d isn't in mask 0x%08x, %s:%d", emulator.lane, mask, place.file, place.line);
    me->state = IN_WARP;
    me->place = place;
    me->mask = mask;
    me->together = together;
    me->given = given;
    me->aligned = aligned;
    void* lanes[32];
    for (unsigned l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        Thread& lane = warp[l];
        if (&lane >= threads + thread_count || lane.state == EXITED)
            fail(LAUNCH_FAILED, "mask 0x%08x has lane %u, which %s, %s:%d", mask, l,
                 lane.state == EXITED ? "has returned" : "isn't there", place.file, place.line);
        bool arrived = lane.state == IN_WARP && lane.mask == mask && lane.together == together &&
                       (!aligned || lane.place.line == place.line);
        if (!arrived) return back_to_scheduler();
        lanes[l] = lane.given;
    }
    together(lanes, mask);
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1) warp[l].state = READY;
}

void copy_async(void* shared, const void* global, int bytes, bool valid) {
    running->copies.push_back(Copy{shared, global, bytes, valid, running->groups});
}

void copy_async_commit() { running->groups++; }

void make_first_copies(Thread& thread, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const Copy& copy = thread.copies[i];
        if (copy.valid) memcpy(copy.shared, copy.global, (size_t)copy.bytes);
        else memset(copy.shared, 0, (size_t)copy.bytes);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + (ptrdiff_t)count);
    for (Delivery& delivery : thread.deliveries) delivery.copies -= count < delivery.copies ? count : delivery.copies;
}

void copy_async_wait(int under_way) {
    size_t done = 0;
    while (done < running->copies.size() && running->copies[done].group < running->groups - under_way) done++;
    running->unfenced |= done > 0;
    make_first_copies(*running, done);
}

// ---------------------------------------------------------------------------------------------------------------------
// Barriers in shared memory (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier")

void mbarrier_init(void* barrier, unsigned arrivals) {
    if ((size_t)barrier % 8 != 0) fail(MISALIGNED_ADDRESS, "a barrier in shared memory at a misaligned address");
    *(Mbarrier*)barrier = Mbarrier{(uint16_t)arrivals, (uint16_t)arrivals, 0, 0};
}

void arrive(Mbarrier& barrier) {
    if (barrier.missing == 0 || barrier.missing > barrier.arrivals) {
        set_failure(LAUNCH_FAILED, "a barrier in shared memory that was not initialised");
        return;
    }
    if (--barrier.missing > 0) return;
    barrier.missing = barrier.arrivals;
    barrier.phase++;
    for (unsigned t = 0; t < thread_count; t++) {
        Thread& thread = threads[t];
        bool passes = thread.state == AT_MBARRIER && thread.barrier == &barrier && thread.phase != barrier.phase % 2;
        if (!passes) continue;
        thread.state = READY;
        woken = true;
    }
}

void mbarrier_arrive(void* barrier) { arrive(*(Mbarrier*)barrier); }

// The oldest arrival of a thread's copies, if there is one.
bool deliver(Thread& thread) {
    if (thread.deliveries.empty()) return false;
    Delivery delivery = thread.deliveries.front();
    thread.deliveries.erase(thread.deliveries.begin());
    make_first_copies(thread, delivery.copies);
    delivery.barrier->copies = 1;
    arrive(*delivery.barrier);
    return true;
}

// At random at once, or when all threads wait, so that it shows if somebody doesn't.
void copy_async_arrive(void* barrier) {
    running->deliveries.push_back(Delivery{(Mbarrier*)barrier, running->copies.size()});
    if (forward()) while (deliver(*running)) continue;
}

void mbarrier_wait(void* address, unsigned phase, Place place) {
    Mbarrier* barrier = (Mbarrier*)address;
    while (barrier->phase % 2 == phase) {
        running->state = AT_MBARRIER;
        running->place = place;
        running->barrier = barrier;
        running->phase = phase;
        back_to_scheduler();
    }
    if (barrier->copies) running->unfenced_of_others = true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Products of warpgroups (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"). A warp has
// rows of its own, so its part is computed when its lanes have met: at random when the product is issued, or when it is
// waited for, so that it shows if operands aren't there yet or aren't there any more. Until then d is NaN.

// The element of a matrix in shared memory whose descriptor is given: bits 0-13 are bits 4-17 of the start address, 16-29
// and 32-45 the leading and the stride dimension's byte offset without their lowest four bits, 49-51 the base offset,
// 62-63 the swizzling mode, of which 1 is 128 bytes. With that mode, in the canonical layouts of elements of two bytes:
//   sum along the contiguous dimension (K-major): 8 rows of 128 bytes, then the next 8 after the stride offset;
//   sum along the other (MN-major): 64 elements of 128 bytes, then the next 64 after the leading offset; 8 steps of the
//   sum are rows of 128 bytes, then the next 8 after the stride offset;
// and bits 4-6 of the address are then exclusive-ored with its bits 7-9.
struct Matrix {
    uint64_t start, leading, stride;

    explicit Matrix(uint64_t descriptor) {
        auto bytes = [=](int from) { return (descriptor >> from & 0x3fff) << 4; };
        start = bytes(0), leading = bytes(16), stride = bytes(32);
        if (descriptor >> 62 != 1) fail(LAUNCH_FAILED, "wgmma with swizzling mode %d, and the emulator knows 1", (int)(descriptor >> 62));
        if ((descriptor >> 49 & 7) != 0) fail(LAUNCH_FAILED, "wgmma with a base offset, which the emulator doesn't know");
    }

    // `row` is that of M or N, k the step of the sum.
    float at(unsigned row, unsigned k, bool along_rows) const {
        uint64_t address = start;
        if (along_rows) address += row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128;
        else address += row / 8 * stride + row % 8 * 128 + k * 2;
        address ^= (address >> 7 & 7) << 4;
        // Shared memory is less than the 256 KiB that 18 bits tell apart.
        uint64_t base = (uint64_t)emulator.dynamic_shared;
        uint64_t offset = (address - base) & 0x3ffff;
        if (offset + 2 > (uint64_t)dynamic_shared_end - base)
            fail(ILLEGAL_ADDRESS, "wgmma reads %zu bytes into %u bytes of dynamic shared memory", (size_t)offset, launch->dynamic_shared_bytes);
        uint32_t bits = (uint32_t)*(const uint16_t*)(base + offset) << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
};

// One product for all lanes of a warp: pending product number `index` of each.
void multiply(Thread* warp, size_t index) {
    const Wgmma& first = warp[0].products[index].it;
    const int columns = first.columns;
    unsigned first_row = (unsigned)((warp - threads) / 32 % 4 * 16);
    static float a[16][16], b[16][256], d[16][256];
    for (int lane = 0; lane < 32; lane++) {
        const Wgmma& it = warp[lane].products[index].it;
        bool same = it.columns == columns && it.b == first.b && it.a == first.a && it.transposed_b == first.transposed_b &&
                    !it.a_registers == !first.a_registers && it.add == first.add;
        if (!same) fail(LAUNCH_FAILED, "lanes of a warp differ in the operands of wgmma");
        if (!it.a_registers) continue;
        // As mma's: rows lane / 4 and 8 more in turn, then columns from 8 on.
        for (int i = 0; i < 8; i++) {
            uint32_t word = it.a_registers[i / 2], bits = i % 2 ? word & 0xffff0000u : word << 16;
            memcpy(&a[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2], &bits, sizeof bits);
        }
    }
    if (!first.a_registers) {
        Matrix matrix(first.a);
        for (unsigned row = 0; row < 16; row++)
            for (unsigned k = 0; k < 16; k++) a[row][k] = matrix.at(first_row + row, k, false);
    }
    Matrix matrix(first.b);
    for (unsigned k = 0; k < 16; k++)
        for (int column = 0; column < columns; column++) b[k][column] = matrix.at((unsigned)column, k, first.transposed_b);
    memset(d, 0, sizeof d);
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < columns; column++) d[row][column] += a[row][k] * b[k][column];
    // Element i of a lane: eight columns after the other, in these rows lane / 4 and 8 more, two neighbours in each.
    for (int lane = 0; lane < 32; lane++) {
        std::vector<float>& product = warp[lane].products[index].product;
        product.resize((size_t)columns / 2);
        for (int i = 0; i < columns / 2; i++) product[(size_t)i] = d[i / 2 % 2 * 8 + lane / 4][i / 4 * 8 + lane % 4 * 2 + i % 2];
    }
}

Thread* warp_of(Thread* thread) { return threads + (thread - threads) / 32 * 32; }

void issue_products(void**, unsigned) {
    Thread* warp = warp_of(running);
    for (unsigned t = 0; t < thread_count; t++)
        if (threads[t].unfenced) fail(LAUNCH_FAILED, "wgmma while copies of thread %u aren't fenced for it", t);
    for (int lane = 0; lane < 32; lane++)
        if (warp[lane].unfenced_of_others) fail(LAUNCH_FAILED, "wgmma while copies that were waited for aren't fenced for it");
    size_t index = warp[0].products.size() - 1;
    bool early = forward();
    if (early) multiply(warp, index);
    for (int lane = 0; lane < 32; lane++) warp[lane].products[index].early = early;
}

int waited_for;

void finish_products(void**, unsigned) {
    Thread* warp = warp_of(running);
    size_t done = 0;
    for (; done < warp[0].products.size(); done++) {
        if (warp[0].products[done].group >= warp[0].product_groups - waited_for) break;
        if (!warp[0].products[done].early) multiply(warp, done);
    }
    for (int lane = 0; lane < 32; lane++) {
        Thread& thread = warp[lane];
        for (size_t i = 0; i < done; i++) {
            const Pending& product = thread.products[i];
            for (Sums& sums : thread.sums)
                for (size_t e = 0; sums.d == product.it.d && e < sums.values.size(); e++)
                    sums.values[e] = (product.it.add ? sums.values[e] : 0.0f) + product.product[e];
        }
        thread.products.erase(thread.products.begin(), thread.products.begin() + (ptrdiff_t)done);
        for (size_t i = thread.sums.size(); i-- > 0;) {
            Sums& sums = thread.sums[i];
            bool under_way = false;
            for (const Pending& product : thread.products) under_way |= product.it.d == sums.d;
            if (under_way) continue;
            memcpy(sums.d, sums.values.data(), sums.values.size() * sizeof(float));
            thread.sums.erase(thread.sums.begin() + (ptrdiff_t)i);
        }
        thread.products_fenced = false;
    }
}

void fence_for_wgmma() { running->unfenced = running->unfenced_of_others = false; }

void wgmma_fence() { running->products_fenced = true; }

void wgmma(const Wgmma& it, Place place) {
    if (!running->products_fenced)
        fail(LAUNCH_FAILED, "wgmma without wgmma_fence since registers could be used, %s:%d", place.file, place.line);
    bool known = false;
    for (const Sums& sums : running->sums) known |= sums.d == it.d;
    if (!known) {
        running->sums.push_back(Sums{it.d, std::vector<float>(it.d, it.d + it.columns / 2)});
        memset(it.d, 0xff, (size_t)it.columns / 2 * sizeof(float));
    }
    running->products.push_back(Pending{it, running->product_groups, false, {}});
    meet(0xffffffffu, issue_products, nullptr, true, place);
}

void wgmma_commit() { running->product_groups++; }

void wgmma_wait(int under_way, Place place) {
    waited_for = under_way;
    meet(0xffffffffu, finish_products, nullptr, true, place);
}

// ---------------------------------------------------------------------------------------------------------------------
// A block

void start_threads() {
    for (unsigned t = 0; t < thread_count; t++) {
        Thread& thread = threads[t];
        unsigned x = launch->block.x, y = launch->block.y;
        thread.index = Dim3{t % x, t / x % y, t / x / y};
        thread.state = READY;
        thread.copies.clear();
        thread.groups = 0;
        thread.deliveries.clear();
        thread.unfenced = thread.unfenced_of_others = false;
        thread.products.clear();
        thread.sums.clear();
        thread.product_groups = 0;
        thread.products_fenced = false;
        void** saved = (void**)stack_top(t) - SAVED_WORDS;
        memset(saved, 0, SAVED_WORDS * sizeof(void*));
        saved[ENTRY_WORD] = (void*)run_thread;
        thread.stack_pointer = saved;
    }
}

// Runs a warp until each of its threads waits for others or has returned.
void run_warp(unsigned first, unsigned count) {
    bool ran = true;
    while (ran && failure.error == 0) {
        ran = false;
        bool ascending = forward();
        for (unsigned i = 0; i < count && failure.error == 0; i++) {
            Thread& thread = threads[first + (ascending ? i : count - 1 - i)];
            if (thread.state != READY) continue;
            resume(thread);
            ran = true;
        }
    }
}

// False once all have returned or the kernel has failed.
bool pass_barrier() {
    if (failure.error != 0) return false;
    const Thread* waiting = nullptr;
    bool stuck = false;
    barrier_threads = 0;
    for (unsigned t = 0; t < thread_count; t++) {
        const Thread& thread = threads[t];
        if (thread.state == EXITED) continue;
        stuck |= thread.state == IN_WARP || thread.state == AT_MBARRIER || (waiting && waiting->place.line != thread.place.line);
        waiting = &thread;
        if (thread.state == AT_BARRIER) barrier_threads += thread.predicate;
    }
    if (stuck) set_failure(LAUNCH_FAILED, "deadlock, threads wait for each other:" + who_waits_where());
    if (stuck || !waiting) return false;
    for (unsigned t = 0; t < thread_count; t++)
        if (threads[t].state == AT_BARRIER) threads[t].state = READY;
    return true;
}

void run_block() {
    memset(launch->shared[0], 0xff, (size_t)(launch->shared[1] - launch->shared[0]));
    memset(emulator.dynamic_shared, 0xff, (size_t)((unsigned char*)dynamic_shared_end - emulator.dynamic_shared));
    start_threads();
    unsigned warps = (thread_count + 31) / 32;
    do {
        do {
            woken = false;
            bool ascending = forward();
            for (unsigned i = 0; i < warps; i++) {
                unsigned first = 32 * (ascending ? i : warps - 1 - i);
                run_warp(first, thread_count - first < 32 ? thread_count - first : 32);
            }
            bool delivered = true;
            while (!woken && delivered && failure.error == 0) {
                delivered = false;
                for (unsigned t = 0; t < thread_count; t++) delivered |= deliver(threads[t]);
            }
        } while (woken && failure.error == 0);
    } while (pass_barrier());
}

// ---------------------------------------------------------------------------------------------------------------------
// Faults: a signal in a fiber ends the kernel instead of the process.

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int SIGNAL_COUNT = 4;
struct sigaction previous[SIGNAL_COUNT];
pthread_t runner;

struct {
    int signal;
    uintptr_t address, instruction;
    const char* access;
} fault;

// "rms_norm.cu:43" from the image's debug information, as far as there are tools for it.
std::string source_line(uintptr_t instruction) {
    Dl_info object;
    if (!dladdr((void*)instruction, &object)) return "an unknown place";
    std::string line;
    FILE* tool = popen(text("addr2line -i -s -e /proc/%d/fd/%d 0x%zx 2>/dev/null", getpid(), launch->image,
                            (size_t)(instruction - (uintptr_t)object.dli_fbase)).c_str(), "r");
    char buffer[256];
    // From the innermost function outwards; the emulator's own aren't of interest.
    while (tool && fgets(buffer, sizeof buffer, tool))
        if (line.empty() || line.rfind("emulator.h", 0) == 0) line = std::string(buffer, strcspn(buffer, " \n"));
    if (tool) pclose(tool);
    return line.empty() || line[0] == '?' ? "an unknown line" : line;
}

// Runs on the fiber's stack, whose content isn't needed any more.
void report_fault() {
    uintptr_t stack = (uintptr_t)running->stack;
    // The processor gives no address for an access that is misaligned.
    bool misaligned = fault.signal == SIGSEGV && fault.address == 0 && fault.access == nullptr;
    std::string line = ", " + source_line(fault.instruction);
    if (fault.signal == SIGFPE) set_failure(LAUNCH_FAILED, "division of integers by zero" + line);
    else if (fault.signal == SIGILL) set_failure(LAUNCH_FAILED, "illegal instruction" + line);
    else if (misaligned) set_failure(MISALIGNED_ADDRESS, "access to a misaligned address" + line);
    else if (fault.address - stack < PAGE) set_failure(LAUNCH_FAILED, "stack overflow" + line);
    else if (fault.address - (uintptr_t)dynamic_shared_end < PAGE)
        set_failure(ILLEGAL_ADDRESS, text("%s beyond %u bytes of dynamic shared memory",
                                          fault.access ? fault.access : "access", launch->dynamic_shared_bytes) + line);
    else
        set_failure(ILLEGAL_ADDRESS, text("%s of 0x%zx, ", fault.access ? fault.access : "access", (size_t)fault.address) +
                                         memory_describe(fault.address) + line);
    back_to_scheduler();
}

void on_signal(int signal, siginfo_t* info, void* context) {
    if (!pthread_equal(pthread_self(), runner) || !running) {
        // Not a kernel's: whoever was there before handles it when the instruction runs again.
        for (int i = 0; i < SIGNAL_COUNT; i++)
            if (SIGNALS[i] == signal) sigaction(signal, &previous[i], nullptr);
        return;
    }
    mcontext_t& machine = ((ucontext_t*)context)->uc_mcontext;
    fault = {signal, (uintptr_t)info->si_addr, 0, nullptr};
    uintptr_t top = (uintptr_t)stack_top((unsigned)(running - threads)) & ~uintptr_t(15);
#if defined(__x86_64__)
    fault.instruction = (uintptr_t)machine.gregs[REG_RIP];
    constexpr int PAGE_FAULT = 14, WRITE = 2;
    if (machine.gregs[REG_TRAPNO] == PAGE_FAULT) fault.access = machine.gregs[REG_ERR] & WRITE ? "write" : "read";
    machine.gregs[REG_RIP] = (greg_t)report_fault;
    machine.gregs[REG_RSP] = (greg_t)(top - 8);
#else
    fault.instruction = machine.pc;
    if (signal == SIGSEGV) fault.access = "access";
    machine.pc = (uintptr_t)report_fault;
    machine.sp = top;
#endif
}

// Handlers for as long as a kernel runs.
struct Signals {
    stack_t previous_stack;

    Signals() {
        static char* stack = new char[32 << 10];
        stack_t ours = {};
        ours.ss_sp = stack;
        ours.ss_size = 32 << 10;
        sigaltstack(&ours, &previous_stack);
        runner = pthread_self();
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &action, &previous[i]);
    }
    ~Signals() {
        for (int i = 0; i < SIGNAL_COUNT; i++) sigaction(SIGNALS[i], &previous[i], nullptr);
        sigaltstack(&previous_stack, nullptr);
    }
};

}  // namespace

Emulator* blocks_emulator() {
    emulator.barrier = barrier;
    emulator.meet = meet;
    emulator.copy_async = copy_async;
    emulator.copy_async_commit = copy_async_commit;
    emulator.copy_async_wait = copy_async_wait;
    emulator.mbarrier_init = mbarrier_init;
    emulator.mbarrier_arrive = mbarrier_arrive;
    emulator.copy_async_arrive = copy_async_arrive;
    emulator.mbarrier_wait = mbarrier_wait;
    emulator.fence_for_wgmma = fence_for_wgmma;
    emulator.wgmma_fence = wgmma_fence;
    emulator.wgmma = wgmma;
    emulator.wgmma_commit = wgmma_commit;
    emulator.wgmma_wait = wgmma_wait;
    emulator.fail = fail;
    return &emulator;
}

Failure run_blocks(const Launch& it) {
    allocate_once();
    launch = &it;
    failure = Failure{};
    thread_count = it.block.x * it.block.y * it.block.z;
    emulator.block_size = it.block;
    emulator.grid_size = it.grid;
    unsigned shared = (it.dynamic_shared_bytes + 127) / 128 * 128;
    emulator.dynamic_shared = (unsigned char*)dynamic_shared_end - shared;

    Signals signals;
    // Ascending or descending, too: blocks mustn't depend on each other.
    bool ascending = forward();
    uint64_t blocks = (uint64_t)it.grid.x * it.grid.y * it.grid.z;
    for (uint64_t i = 0; i < blocks && failure.error == 0; i++) {
        uint64_t b = ascending ? i : blocks - 1 - i;
        emulator.block = Dim3{(unsigned)(b % it.grid.x), (unsigned)(b / it.grid.x % it.grid.y),
                              (unsigned)(b / it.grid.x / it.grid.y)};
        run_block();
    }
    std::string overrun = failure.error == 0 ? memory_overrun() : "";
    if (!overrun.empty()) failure = Failure{ILLEGAL_ADDRESS, std::string("kernel ") + it.kernel + ": " + overrun};
    return failure;
}
