#!/bin/sh
# Builds the emulated CUDA: `build.sh OUT_DIR` leaves libcuda.so.1, libnvrtc.so.13 and libcublasLt.so.13 there; `sft` and
# its tests take them with SFT_CUDA_LIBS=OUT_DIR, other programs with LD_LIBRARY_PATH=OUT_DIR.
set -eu
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")"

library() {
    name=$1 version=$2
    shift 2
    ${CXX:-g++} -std=c++17 -O2 -Wall -Wextra -shared -fPIC -fvisibility=hidden -pthread "$@" \
        -Wl,-soname,"$name.so.$version" -Wl,-z,defs -o "$out/$name.so.$version" -ldl
    ln -sf "$name.so.$version" "$out/$name.so"
}

library libcuda 1 driver.cpp blocks.cpp memory.cpp
library libnvrtc 13 nvrtc.cpp
library libcublasLt 13 -O3 -march=native cublaslt.cpp
