// Runs the blocks of a launch, one after the other, each thread a fiber.
#pragma once
#include "runtime.h"

#include <string>

using emulation::Dim3;
using emulation::Emulator;

struct Launch {
    const char* kernel;
    void (*entry)(void** arguments);
    void** arguments;
    Dim3 grid, block;
    unsigned dynamic_shared_bytes;
    char* shared[2];  // begin and end of static shared memory
    int image;        // file descriptor, to name lines of the source in reports
};

struct Failure {
    int error = 0;  // of CUresult
    std::string message;
};

Failure run_blocks(const Launch&);

// Of which images get a pointer.
Emulator* blocks_emulator();
