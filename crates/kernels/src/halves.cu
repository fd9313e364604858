// A float32 tensor in two halves: see halves.rs.

struct HalvesSplit {
    const float* from;
    bf16* high;
    u16* low;
    u64 elements;
};

extern "C" __global__ void halves_split(HalvesSplit p) {
    constexpr int N = Width<bf16>::value;
    bool aligned = ((u64)p.from | (u64)p.high | (u64)p.low) % 16 == 0;
    Span span = span_of_thread<N>(p.elements, aligned);
    float x[N];
    load_span(x, p.from, span);
    Vector<bf16, N> high;
    Vector<u16, N> low;
#pragma unroll
    for (int i = 0; i < N; i++) {
        FloatHalves halves = halves_of(x[i]);
        high.at[i] = halves.high;
        low.at[i] = halves.low;
    }
    if (span.whole) {
        *(Vector<bf16, N>*)(p.high + span.first) = high;
        *(Vector<u16, N>*)(p.low + span.first) = low;
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i >= span.count) continue;
        p.high[span.first + i] = high.at[i];
        p.low[span.first + i] = low.at[i];
    }
}
