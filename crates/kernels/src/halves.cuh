// A float in two halves of 16 bits, see halves.rs.

struct FloatHalves {
    bf16 high;
    u16 low;
};

INLINE FloatHalves halves_of(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) bits = 0x7fc00000u;
    return FloatHalves{bf16{(u16)((bits + 0x8000u) >> 16)}, (u16)bits};
}

INLINE float whole_of(FloatHalves halves) {
    return __uint_as_float(((u32)halves.high.bits << 16) + (u32)(int)(short)halves.low);
}
