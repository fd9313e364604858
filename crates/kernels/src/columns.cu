// Copying columns between one matrix and its parts: see columns.rs. Sizes are in bytes, so that one kernel serves all
// element types.

constexpr int PARTS = 4;

struct Columns {
    u8* x;
    u8* parts[PARTS];
    u64 first[PARTS];
    u64 width[PARTS];
    u64 row_bytes;
    // Bytes that every address and size is a multiple of: 16, or those of an element.
    u32 unit;
};

// A block copies one row of the part that its y says.
template <class Unit, bool SPLIT> INLINE void copy(const Columns& p) {
    u8* of_part = p.parts[0];
    u64 first = p.first[0], width = p.width[0];
    // An index that is known only here would send the arrays through memory.
#pragma unroll
    for (int i = 1; i < PARTS; i++) {
        if (i == blockIdx.y) {
            of_part = p.parts[i];
            first = p.first[i];
            width = p.width[i];
        }
    }
    u64 row = blockIdx.x;
    Unit* x = (Unit*)(p.x + row * p.row_bytes + first);
    Unit* part = (Unit*)(of_part + row * width);
    for (u64 i = threadIdx.x; i < width / sizeof(Unit); i += blockDim.x) {
        if (SPLIT) {
            part[i] = x[i];
        } else {
            x[i] = part[i];
        }
    }
}

template <bool SPLIT> INLINE void copy_by_unit(const Columns& p) {
    if (p.unit == 16) {
        copy<Vector<u32, 4>, SPLIT>(p);
    } else if (p.unit == 4) {
        copy<u32, SPLIT>(p);
    } else {
        copy<u16, SPLIT>(p);
    }
}

extern "C" __global__ void columns_split(Columns p) { copy_by_unit<true>(p); }
extern "C" __global__ void columns_join(Columns p) { copy_by_unit<false>(p); }
