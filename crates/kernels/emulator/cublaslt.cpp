// libcublasLt.so.13 without a GPU: D = alpha·op(A)·op(B) + beta·C (+ bias) for f32 and bf16 with sums in f32, by plain
// loops. Refuses what the library's table of types doesn't have, addresses that aren't the device's and pointers less
// aligned than the heuristic was asked for.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

// cublasStatus_t
constexpr int SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15;
// cudaDataType_t
constexpr int F32 = 0, BF16 = 14;
// cublasComputeType_t
constexpr int COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_16BF = 75, COMPUTE_32F_FAST_TF32 = 77;
// cublasLtEpilogue_t, sums of these
constexpr int DEFAULT = 1, RELU = 2, BIAS = 4, GELU = 32, BGRADA = 256, BGRADB = 512;

struct MatmulDesc {
    int compute_type, scale_type;
    int pointer_mode = 0, transpose_a = 0, transpose_b = 0;
    int epilogue = DEFAULT;
    void* bias = nullptr;
    int bias_type = -1;
};

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t ld;
    int row_major = 0;
    int batch = 1;
    int64_t batch_stride = 0;
};

struct Preference {
    uint64_t workspace_bytes = 0;
    uint32_t alignments[4] = {256, 256, 256, 256};  // of A, B, C, D
};

constexpr uint64_t ALGORITHM = 0x656d756c61746f72;

struct Algorithm {
    uint64_t name, alignments[4], unused[3];
};

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

int refuse(int status, const std::string& why) {
    fprintf(stderr, "cublasLt emulator: %s\n", why.c_str());
    return status;
}

template <class T> int set(T& to, const void* from, size_t bytes) {
    if (bytes != sizeof(T)) return refuse(INVALID_VALUE, "an attribute of " + std::to_string(bytes) + " bytes");
    memcpy(&to, from, bytes);
    return SUCCESS;
}

size_t size_of(int type) { return type == F32 ? 4 : 2; }

float read(const void* from, int type, size_t at) {
    if (type == F32) return ((const float*)from)[at];
    uint32_t bits = (uint32_t)((const uint16_t*)from)[at] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

void write(void* to, int type, size_t at, float x) {
    if (type == F32) {
        ((float*)to)[at] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    ((uint16_t*)to)[at] = x != x ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Distances in elements between neighbours in a column and in a row.
struct Strides {
    size_t down, right;
};

Strides strides(const Layout& layout, bool transposed = false) {
    Strides s = {1, (size_t)layout.ld};
    return (layout.row_major != 0) != transposed ? Strides{s.right, s.down} : s;
}

size_t elements(const Layout& layout) {
    uint64_t lines = layout.row_major ? layout.rows : layout.columns, line = layout.row_major ? layout.columns : layout.rows;
    return lines == 0 || line == 0 ? 0 : (size_t)((lines - 1) * (uint64_t)layout.ld + line);
}

// Whether all of `bytes` is in one allocation, as the emulated driver knows them.
bool on_device(const void* at, size_t bytes) {
    typedef int Find(uintptr_t*, size_t*, uintptr_t);
    static Find* const find = [] {
        void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        return driver ? (Find*)dlsym(driver, "cuMemGetAddressRange_v2") : nullptr;
    }();
    uintptr_t start;
    size_t size;
    if (!find || bytes == 0) return true;
    return find(&start, &size, (uintptr_t)at) == SUCCESS && (uintptr_t)at + bytes <= start + size;
}

int check_operand(const char* name, const void* at, const Layout& layout, const Algorithm* algorithm, int index) {
    size_t bytes = ((size_t)(layout.batch - 1) * (size_t)layout.batch_stride + elements(layout)) * size_of(layout.type);
    if (!on_device(at, bytes)) return refuse(INVALID_VALUE, std::string(name) + " isn't " + std::to_string(bytes) + " bytes of device memory");
    // Kernels read 16 bytes at most at once, whatever was promised.
    size_t alignment = algorithm ? (size_t)algorithm->alignments[index] : size_of(layout.type);
    if ((uintptr_t)at % (alignment < 16 ? alignment : 16) != 0)
        return refuse(INVALID_VALUE, std::string(name) + " is less aligned than the " + std::to_string(alignment) +
                                         " bytes that the heuristic was told (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT)");
    return SUCCESS;
}

// m, n and k; what is checked here, the heuristic checks, too.
int check_problem(const MatmulDesc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    for (const Layout* layout : {&a, &b, &c, &d}) {
        if (layout->type != F32 && layout->type != BF16) return refuse(NOT_SUPPORTED, "types other than f32 and bf16");
        if (layout->ld < (int64_t)(layout->row_major ? layout->columns : layout->rows)) return refuse(INVALID_VALUE, "a leading dimension below a line's length");
        if (layout->batch != d.batch) return refuse(INVALID_VALUE, "layouts with different batch counts");
    }
    if (a.type != b.type || c.type != d.type || (a.type == F32 && d.type != F32))
        return refuse(NOT_SUPPORTED, "a combination of types that cublasLt doesn't have");
    bool f32 = desc.compute_type == COMPUTE_32F || desc.compute_type == COMPUTE_32F_PEDANTIC ||
               desc.compute_type == COMPUTE_32F_FAST_TF32 || desc.compute_type == COMPUTE_32F_FAST_16BF;
    if (!f32 || desc.scale_type != F32) return refuse(NOT_SUPPORTED, "sums and scales other than f32");
    if (a.type == BF16 && desc.compute_type > COMPUTE_32F_PEDANTIC) return refuse(NOT_SUPPORTED, "a fast compute type with bf16");
    if (desc.pointer_mode != 0) return refuse(NOT_SUPPORTED, "scales on the device");
    if (desc.transpose_a > 1 || desc.transpose_b > 1) return refuse(NOT_SUPPORTED, "conjugate transposes");
    if (desc.epilogue & ~(DEFAULT | RELU | BIAS | GELU | BGRADA | BGRADB)) return refuse(NOT_SUPPORTED, "epilogue " + std::to_string(desc.epilogue));
    if (desc.epilogue & (BIAS | BGRADA | BGRADB) && desc.bias_type >= 0 && desc.bias_type != d.type)
        return refuse(NOT_SUPPORTED, "a bias of another type than D");
    uint64_t m = desc.transpose_a ? a.columns : a.rows, k = desc.transpose_a ? a.rows : a.columns;
    uint64_t k_b = desc.transpose_b ? b.columns : b.rows, n = desc.transpose_b ? b.rows : b.columns;
    if (k != k_b || d.rows != m || d.columns != n || c.rows != m || c.columns != n)
        return refuse(INVALID_VALUE, "op(A) is " + std::to_string(m) + "×" + std::to_string(k) + ", op(B) " + std::to_string(k_b) + "×" +
                                         std::to_string(n) + ", D " + std::to_string(d.rows) + "×" + std::to_string(d.columns));
    if (m == 0 || n == 0 || k == 0) return refuse(INVALID_VALUE, "a product with no elements");
    return SUCCESS;
}

// The product of blocks of ROWS×COLUMNS; operands are f32, `a` k lines of m (padded), `b` n (padded) lines of k.
constexpr size_t ROWS = 32, COLUMNS = 4;

void product_block(const float* a, size_t a_line, const float* b, size_t k, float (&sums)[COLUMNS][ROWS]) {
    float s[COLUMNS][ROWS] = {};
    for (size_t l = 0; l < k; l++)
        for (size_t j = 0; j < COLUMNS; j++)
            for (size_t i = 0; i < ROWS; i++) s[j][i] += a[l * a_line + i] * b[j * k + l];
    memcpy(sums, s, sizeof s);
}

float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

struct Scales {
    float alpha, beta;
};

void multiply(const MatmulDesc& desc, Scales scales, const void* A, const Layout& a_layout, const void* B, const Layout& b_layout,
              const void* C, const Layout& c_layout, void* D, const Layout& d_layout) {
    size_t m = d_layout.rows, n = d_layout.columns, k = desc.transpose_a ? a_layout.rows : a_layout.columns;
    size_t m_padded = round_up(m, ROWS), n_padded = round_up(n, COLUMNS);
    Strides at_a = strides(a_layout, desc.transpose_a != 0), at_b = strides(b_layout, desc.transpose_b != 0);
    Strides at_c = strides(c_layout), at_d = strides(d_layout);
    std::vector<float> a(k * m_padded), b(n_padded * k);
    for (size_t l = 0; l < k; l++)
        for (size_t i = 0; i < m; i++) a[l * m_padded + i] = read(A, a_layout.type, i * at_a.down + l * at_a.right);
    for (size_t j = 0; j < n; j++)
        for (size_t l = 0; l < k; l++) b[j * k + l] = read(B, b_layout.type, l * at_b.down + j * at_b.right);

    for (size_t j0 = 0; j0 < n; j0 += COLUMNS)
        for (size_t i0 = 0; i0 < m; i0 += ROWS) {
            float sums[COLUMNS][ROWS];
            product_block(&a[i0], m_padded, &b[j0 * k], k, sums);
            for (size_t j = j0; j < j0 + COLUMNS && j < n; j++)
                for (size_t i = i0; i < i0 + ROWS && i < m; i++) {
                    float x = scales.alpha * sums[j - j0][i - i0];
                    if (scales.beta != 0) x += scales.beta * read(C, c_layout.type, i * at_c.down + j * at_c.right);
                    if (desc.epilogue & BIAS) x += read(desc.bias, d_layout.type, i);
                    if (desc.epilogue & RELU) x = x > 0 ? x : 0;
                    if (desc.epilogue & GELU) x = gelu(x);
                    write(D, d_layout.type, i * at_d.down + j * at_d.right, x);
                }
        }

    for (size_t i = 0; i < m && desc.epilogue & BGRADA; i++) {
        float sum = 0;
        for (size_t l = 0; l < k; l++) sum += a[l * m_padded + i];
        write(desc.bias, d_layout.type, i, sum);
    }
    for (size_t j = 0; j < n && desc.epilogue & BGRADB; j++) {
        float sum = 0;
        for (size_t l = 0; l < k; l++) sum += b[j * k + l];
        write(desc.bias, d_layout.type, j, sum);
    }
}

}  // namespace

API cublasLtCreate(void** it) { return *it = new char, SUCCESS; }
API cublasLtDestroy(void* it) { return delete (char*)it, SUCCESS; }
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 130000; }
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetCudartVersion() { return 13000; }
extern "C" __attribute__((visibility("default"))) const char* cublasLtGetStatusName(int status) {
    return status == SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
           : status == INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE"
           : status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                     : "CUBLAS_STATUS_INTERNAL_ERROR";
}
extern "C" __attribute__((visibility("default"))) const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

API cublasLtMatmulDescCreate(MatmulDesc** it, int compute_type, int scale_type) {
    *it = new MatmulDesc{compute_type, scale_type};
    return SUCCESS;
}
API cublasLtMatmulDescDestroy(MatmulDesc* it) { return delete it, SUCCESS; }
// cublasLtMatmulDescAttributes_t
API cublasLtMatmulDescSetAttribute(MatmulDesc* it, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 0: return set(it->compute_type, value, bytes);
        case 1: return set(it->scale_type, value, bytes);
        case 2: return set(it->pointer_mode, value, bytes);
        case 3: return set(it->transpose_a, value, bytes);
        case 4: return set(it->transpose_b, value, bytes);
        case 7: return set(it->epilogue, value, bytes);
        case 8: return set(it->bias, value, bytes);
        case 15: return SUCCESS;  // SM_COUNT_TARGET
        case 26: return set(it->bias_type, value, bytes);
        default: return refuse(NOT_SUPPORTED, "attribute " + std::to_string(attribute) + " of a product");
    }
}

API cublasLtMatrixLayoutCreate(Layout** it, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    *it = new Layout{type, rows, columns, ld};
    return SUCCESS;
}
API cublasLtMatrixLayoutDestroy(Layout* it) { return delete it, SUCCESS; }
// cublasLtMatrixLayoutAttribute_t
API cublasLtMatrixLayoutSetAttribute(Layout* it, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 0: return set(it->type, value, bytes);
        case 1: return set(it->row_major, value, bytes);
        case 2: return set(it->rows, value, bytes);
        case 3: return set(it->columns, value, bytes);
        case 4: return set(it->ld, value, bytes);
        case 5: return set(it->batch, value, bytes);
        case 6: return set(it->batch_stride, value, bytes);
        default: return refuse(NOT_SUPPORTED, "attribute " + std::to_string(attribute) + " of a layout");
    }
}

API cublasLtMatmulPreferenceCreate(Preference** it) { return *it = new Preference, SUCCESS; }
API cublasLtMatmulPreferenceDestroy(Preference* it) { return delete it, SUCCESS; }
// cublasLtMatmulPreferenceAttributes_t
API cublasLtMatmulPreferenceSetAttribute(Preference* it, int attribute, const void* value, size_t bytes) {
    if (attribute == 1) return set(it->workspace_bytes, value, bytes);
    if (attribute >= 5 && attribute <= 8) return set(it->alignments[attribute - 5], value, bytes);
    return SUCCESS;
}

API cublasLtMatmulAlgoGetHeuristic(void*, MatmulDesc* desc, Layout* a, Layout* b, Layout* c, Layout* d, Preference* preference,
                                   int requested, HeuristicResult* results, int* returned) {
    *returned = 0;
    if (int status = check_problem(*desc, *a, *b, *c, *d)) return status;
    if (requested < 1) return INVALID_VALUE;
    results[0] = HeuristicResult{};
    results[0].algorithm.name = ALGORITHM;
    for (int i = 0; i < 4; i++) results[0].algorithm.alignments[i] = preference->alignments[i];
    results[0].waves = 1;
    *returned = 1;
    return SUCCESS;
}

API cublasLtMatmul(void*, MatmulDesc* desc, const float* alpha, const void* A, Layout* a, const void* B, Layout* b, const float* beta,
                   const void* C, Layout* c, void* D, Layout* d, const Algorithm* algorithm, void* workspace, size_t, void*) {
    if (int status = check_problem(*desc, *a, *b, *c, *d)) return status;
    if (algorithm && algorithm->name != ALGORITHM) return refuse(INVALID_VALUE, "an algorithm that isn't from the heuristic");
    if ((uintptr_t)workspace % 256 != 0) return refuse(INVALID_VALUE, "a workspace that isn't aligned to 256 bytes");
    if (int status = check_operand("A", A, *a, algorithm, 0)) return status;
    if (int status = check_operand("B", B, *b, algorithm, 1)) return status;
    if (*beta != 0)
        if (int status = check_operand("C", C, *c, algorithm, 2)) return status;
    if (int status = check_operand("D", D, *d, algorithm, 3)) return status;
    size_t bias_bytes = (desc->epilogue & BGRADB ? d->columns : d->rows) * size_of(d->type);
    if (desc->epilogue & (BIAS | BGRADA | BGRADB) && (!desc->bias || !on_device(desc->bias, bias_bytes)))
        return refuse(INVALID_VALUE, "the bias isn't " + std::to_string(bias_bytes) + " bytes of device memory");
    if (getenv("SFT_EMULATOR_IDLE")) return 0;
    auto at = [](const void* from, const Layout& layout, int batch) {
        return (char*)from + (std::ptrdiff_t)batch * layout.batch_stride * (std::ptrdiff_t)size_of(layout.type);
    };
    for (int i = 0; i < d->batch; i++)
        multiply(*desc, Scales{*alpha, *beta}, at(A, *a, i), *a, at(B, *b, i), *b, at(C, *c, i), *c, at(D, *d, i), *d);
    return SUCCESS;
}
