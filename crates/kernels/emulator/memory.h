// Device memory: a range of addresses of its own, with unreadable pages around each allocation.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

// What is allocated may be as large as this together; SFT_EMULATOR_MEMORY in bytes, 4 GiB without it.
size_t memory_total();
size_t memory_used();

// Null if there isn't enough. New memory is NaN, whether f32 or bf16.
void* memory_allocate(size_t bytes);
// False if `at` isn't the start of an allocation. What was there stays unreadable for good.
bool memory_free(void* at);
// The allocation that `address` is in or, if it is in none, false.
bool memory_find(uintptr_t address, uintptr_t* start, size_t* bytes);
// True if all of the range is in one allocation.
bool memory_holds(uintptr_t address, size_t bytes);
bool memory_is_device(uintptr_t address);
// Empty, or which allocation was written to beyond its end (within the rounding of its size up to the alignment).
std::string memory_overrun();
// An address in words, for a report.
std::string memory_describe(uintptr_t address);
