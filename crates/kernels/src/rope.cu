// The formula is that of rope.rs.

struct Rope {
    // [N, H, width]
    void* x;
    // [N, pairs]
    const float* cos;
    const float* sin;
    u32 tokens;
    u32 heads;
    u32 width;
    u32 pairs;
    // 1, or −1 to rotate back.
    float sign;
};

// A thread rotates P neighbouring pairs of a head, or what is left of them.
struct Place {
    size_t head;
    size_t angles;
    u32 first;
    u32 count;
};

template <int P> INLINE Place place_of_thread(const Rope& p) {
    u32 places = (p.pairs + P - 1) / P, item = blockIdx.x * blockDim.x + threadIdx.x;
    u32 row = item / places, first = item % places * P, token = row / p.heads;
    u32 left = token < p.tokens ? p.pairs - first : 0;
    return Place{(size_t)row * p.width, (size_t)token * p.pairs, first, left < P ? left : P};
}

INLINE void rotate(float& a, float& b, float cos, float sin) {
    float rotated = a * cos - b * sin;
    b = b * cos + a * sin;
    a = rotated;
}

// Pairs (i, i + pairs).
template <class T> INLINE void half_style(const Rope& p) {
    constexpr int N = Width<T>::value;
    Place place = place_of_thread<N>(p);
    bool aligned = is_aligned<T, N>(p.x) && is_aligned<f32, N>(p.cos) && is_aligned<f32, N>(p.sin) &&
                   p.pairs % N == 0 && p.width % N == 0;
    Span span{place.first, place.count, aligned && place.count == N};
    T* head = (T*)p.x + place.head;
    float a[N], b[N], cos[N], sin[N];
    load_span(a, head, span);
    load_span(b, head + p.pairs, span);
    load_span(cos, p.cos + place.angles, span);
    load_span(sin, p.sin + place.angles, span);
#pragma unroll
    for (int i = 0; i < N; i++) rotate(a[i], b[i], cos[i], p.sign * sin[i]);
    store_span(head, a, span);
    store_span(head + p.pairs, b, span);
}

// Pairs (2i, 2i + 1).
template <class T> INLINE void interleaved_style(const Rope& p) {
    constexpr int N = Width<T>::value, P = N / 2;
    Place place = place_of_thread<P>(p);
    bool aligned = is_aligned<T, N>(p.x) && is_aligned<f32, P>(p.cos) && is_aligned<f32, P>(p.sin) &&
                   p.pairs % P == 0 && p.width % N == 0 && place.count == P;
    Span pairs{place.first, place.count, aligned}, span{2 * place.first, 2 * place.count, aligned};
    T* head = (T*)p.x + place.head;
    float x[N], cos[P], sin[P];
    load_span(x, head, span);
    load_span(cos, p.cos + place.angles, pairs);
    load_span(sin, p.sin + place.angles, pairs);
#pragma unroll
    for (int i = 0; i < P; i++) rotate(x[2 * i], x[2 * i + 1], cos[i], p.sign * sin[i]);
    store_span(head, x, span);
}

extern "C" __global__ void rope_half_f32(Rope p) { half_style<f32>(p); }
extern "C" __global__ void rope_half_bf16(Rope p) { half_style<bf16>(p); }
extern "C" __global__ void rope_interleaved_f32(Rope p) { interleaved_style<f32>(p); }
extern "C" __global__ void rope_interleaved_bf16(Rope p) { interleaved_style<bf16>(p); }
