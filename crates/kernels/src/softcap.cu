// The formula is that of softcap.rs.

struct Softcap {
    float* z;
    u64 elements;
    float cap;
};

extern "C" __global__ void softcap_forward(Softcap p) {
    constexpr int N = Width<f32>::value;
    Span span = span_of_thread<N>(p.elements, is_aligned<f32, N>(p.z));
    float z[N];
    load_span(z, p.z, span);
#pragma unroll
    for (int i = 0; i < N; i++) z[i] = p.cap * tanhf(z[i] / p.cap);
    store_span(p.z, z, span);
}
