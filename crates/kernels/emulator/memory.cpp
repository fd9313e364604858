#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

namespace {

constexpr size_t PAGE = 4096;
// Addresses are never used twice, so that a read of freed memory is seen: enough of them for any run.
constexpr size_t ADDRESSES = size_t(16) << 40;

struct Allocation {
    size_t bytes, padded;  // up to the page that can't be read
    bool live;
};

uintptr_t first, next;
size_t used;
std::map<uintptr_t, Allocation> allocations;  // freed ones, too

size_t environment(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

// CUDA's is 256. With SFT_EMULATOR_ALIGNMENT=16 the unreadable page follows more closely.
size_t alignment() {
    static const size_t bytes = environment("SFT_EMULATOR_ALIGNMENT", 256);
    return bytes;
}

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Makes fresh memory NaN. Large memory is mapped from one file that is full of it, so that pages take time only once
// they are written to.
constexpr size_t PATTERN = 4 << 20;

bool fill(uintptr_t page, size_t pages) {
    static const int file = [] {
        int it = memfd_create("nan", MFD_CLOEXEC);
        void* at = ftruncate(it, PATTERN) == 0 ? mmap(nullptr, PATTERN, PROT_WRITE, MAP_SHARED, it, 0) : MAP_FAILED;
        if (at == MAP_FAILED) return -1;
        memset(at, 0xff, PATTERN);
        munmap(at, PATTERN);
        return it;
    }();
    if (pages < PATTERN / 4 || file < 0) {
        if (mprotect((void*)page, pages, PROT_READ | PROT_WRITE) != 0) return false;
        memset((void*)page, 0xff, pages);
        return true;
    }
    for (size_t at = 0; at < pages; at += PATTERN)
        if (mmap((void*)(page + at), std::min(PATTERN, pages - at), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, file, 0) == MAP_FAILED)
            return false;
    return true;
}

bool overrun(uintptr_t start, const Allocation& allocation) {
    for (size_t i = allocation.bytes; i < allocation.padded; i++)
        if (((const unsigned char*)start)[i] != 0xff) return true;
    return false;
}

// The last allocation that starts at or before `address`.
std::map<uintptr_t, Allocation>::const_iterator before(uintptr_t address) {
    auto after = allocations.upper_bound(address);
    return after == allocations.begin() ? allocations.end() : std::prev(after);
}

std::string size_in_words(const Allocation& allocation) {
    return (allocation.live ? "an allocation of " : "a freed allocation of ") + std::to_string(allocation.bytes) + " bytes";
}

}  // namespace

size_t memory_total() {
    static const size_t bytes = environment("SFT_EMULATOR_MEMORY", size_t(4) << 30);
    return bytes;
}

size_t memory_used() { return used; }

void* memory_allocate(size_t bytes) {
    if (first == 0) {
        void* at = mmap(nullptr, ADDRESSES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return nullptr;
        first = next = (uintptr_t)at;
    }
    if (bytes > memory_total() - used) return nullptr;
    size_t padded = round_up(bytes, alignment()), pages = round_up(padded, PAGE);
    if (next + pages + 2 * PAGE > first + ADDRESSES) return nullptr;
    uintptr_t page = next + PAGE;
    if (!fill(page, pages)) return nullptr;
    uintptr_t start = page + pages - padded;
    next = page + pages;
    used += bytes;
    allocations[start] = Allocation{bytes, padded, true};
    return (void*)start;
}

bool memory_free(void* at) {
    auto found = allocations.find((uintptr_t)at);
    if (found == allocations.end() || !found->second.live) return false;
    found->second.live = false;
    used -= found->second.bytes;
    uintptr_t page = found->first / PAGE * PAGE;
    mmap((void*)page, found->first + found->second.padded - page, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return true;
}

bool memory_find(uintptr_t address, uintptr_t* start, size_t* bytes) {
    auto found = before(address);
    if (found == allocations.end() || !found->second.live || address >= found->first + found->second.bytes) return false;
    *start = found->first;
    *bytes = found->second.bytes;
    return true;
}

bool memory_holds(uintptr_t address, size_t bytes) {
    uintptr_t start;
    size_t size;
    return memory_find(address, &start, &size) && bytes <= start + size - address;
}

bool memory_is_device(uintptr_t address) { return address >= first && address < first + ADDRESSES && first != 0; }

std::string memory_overrun() {
    for (auto& [start, allocation] : allocations)
        if (allocation.live && overrun(start, allocation)) {
            memset((void*)(start + allocation.bytes), 0xff, allocation.padded - allocation.bytes);
            return "written beyond the end of " + size_in_words(allocation);
        }
    return "";
}

std::string memory_describe(uintptr_t address) {
    if (address < PAGE) return "a null pointer";
    if (!memory_is_device(address)) return "an address that isn't the device's";
    auto found = before(address);
    if (found == allocations.end()) return "before the first allocation";
    uintptr_t start = found->first, end = start + found->second.bytes;
    if (address < end) return std::to_string(address - start) + " bytes into " + size_in_words(found->second);
    auto after = std::next(found);
    if (after != allocations.end() && after->first - address < address - end)
        return std::to_string(after->first - address) + " bytes before " + size_in_words(after->second);
    return std::to_string(address - end) + " bytes beyond the end of " + size_in_words(found->second);
}
