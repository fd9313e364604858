// The functions of `gated::Activation`, their slopes, and σ: what gated.cu and activation.cu have in common.

// σ as exact as values of type T can show: those of bf16 hide the few ulp of the short instructions.
template <class T> struct Sigmoid;
template <> struct Sigmoid<f32> {
    static __device__ __forceinline__ float of(float x) { return 1.0f / (1.0f + expf(-x)); }
};
template <> struct Sigmoid<bf16> {
    static __device__ __forceinline__ float of(float x) {
        constexpr float LOG2_E = 1.44269504f;
        return __fdividef(1.0f, 1.0f + exp2_approx(-LOG2_E * x));
    }
};

// Each has act(x) and act′(x), from x and, where there is one, σ of its argument.
// What multiplies act(g) in a gated layer, and its slope: u itself.
struct Plain {
    static __device__ __forceinline__ float factor(float u) { return u; }
    static __device__ __forceinline__ float factor_slope(float) { return 1.0f; }
};

template <class T> struct Silu : Plain {
    static __device__ __forceinline__ float sigmoid(float x) { return Sigmoid<T>::of(x); }
    static __device__ __forceinline__ float value(float x, float s) { return x * s; }
    static __device__ __forceinline__ float slope(float x, float s) { return s * (1.0f + x * (1.0f - s)); }
};

template <class T> struct Gelu : Plain {
    // Φ(x), the normal distribution, in the place of σ.
    static __device__ __forceinline__ float sigmoid(float x) { return 0.5f * (1.0f + erff(x * 0.707106781f)); }
    static __device__ __forceinline__ float value(float x, float s) { return x * s; }
    static __device__ __forceinline__ float slope(float x, float s) {
        constexpr float OVER_SQRT_2PI = 0.3989423f;
        return s + x * OVER_SQRT_2PI * expf(-0.5f * x * x);
    }
};

template <class T> struct GeluTanh : Plain {
    static constexpr float SQRT_2_OVER_PI = 0.7978846f;
    static __device__ __forceinline__ float sigmoid(float x) {
        return Sigmoid<T>::of(2.0f * SQRT_2_OVER_PI * (x + 0.044715f * x * x * x));
    }
    static __device__ __forceinline__ float value(float x, float s) { return x * s; }
    static __device__ __forceinline__ float slope(float x, float s) {
        float dz = SQRT_2_OVER_PI * (1.0f + 3.0f * 0.044715f * x * x);
        return s + x * s * (1.0f - s) * 2.0f * dz;
    }
};

template <class T> struct Relu : Plain {
    static __device__ __forceinline__ float sigmoid(float) { return 0.0f; }
    static __device__ __forceinline__ float value(float x, float) { return x > 0.0f ? x : 0.0f; }
    static __device__ __forceinline__ float slope(float x, float) { return x > 0.0f ? 1.0f : 0.0f; }
};

template <class T> struct Relu2 : Plain {
    static __device__ __forceinline__ float sigmoid(float) { return 0.0f; }
    static __device__ __forceinline__ float value(float x, float) { return x > 0.0f ? x * x : 0.0f; }
    static __device__ __forceinline__ float slope(float x, float) { return x > 0.0f ? 2.0f * x : 0.0f; }
};

template <class T> struct Logistic : Plain {
    static __device__ __forceinline__ float sigmoid(float x) { return Sigmoid<T>::of(x); }
    static __device__ __forceinline__ float value(float, float s) { return s; }
    static __device__ __forceinline__ float slope(float, float s) { return s * (1.0f - s); }
};

template <class T> struct Identity : Plain {
    static __device__ __forceinline__ float sigmoid(float) { return 0.0f; }
    static __device__ __forceinline__ float value(float x, float) { return x; }
    static __device__ __forceinline__ float slope(float, float) { return 1.0f; }
};

template <class T> struct ClampedSwish {
    static constexpr float ALPHA = 1.702f, LIMIT = 7.0f;
    static __device__ __forceinline__ float sigmoid(float x) { return Sigmoid<T>::of(ALPHA * (x < LIMIT ? x : LIMIT)); }
    static __device__ __forceinline__ float value(float x, float s) { return s * (x < LIMIT ? x : LIMIT); }
    static __device__ __forceinline__ float slope(float x, float s) {
        return x <= LIMIT ? s * (1.0f + ALPHA * x * (1.0f - s)) : 0.0f;
    }
    static __device__ __forceinline__ float factor(float u) { return 1.0f + (u < -LIMIT ? -LIMIT : u > LIMIT ? LIMIT : u); }
    static __device__ __forceinline__ float factor_slope(float u) { return u >= -LIMIT && u <= LIMIT ? 1.0f : 0.0f; }
};

// function<T, Act<T>>(p), by the number of the activation: the order of `gated::Activation`.
#define WITH_ACTIVATION(function, T, p)                 \
    switch (p.activation) {                             \
        case 0: return function<T, Silu<T>>(p);         \
        case 1: return function<T, Gelu<T>>(p);         \
        case 2: return function<T, GeluTanh<T>>(p);     \
        case 3: return function<T, Relu<T>>(p);         \
        case 4: return function<T, Relu2<T>>(p);        \
        case 5: return function<T, Logistic<T>>(p);     \
        case 6: return function<T, Identity<T>>(p);     \
        default: return function<T, ClampedSwish<T>>(p); \
    }
