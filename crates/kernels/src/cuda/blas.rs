//! Matrix products by cuBLASLt.
//!
//! cuBLASLt is column-major: to it our row-major C [M, N] is Cᵀ, and Cᵀ = op(B)ᵀ·op(A)ᵀ, so B goes first. Which
//! algorithm runs is what its heuristic names first, of those with [`PLAIN_TILES`], asked once for each kind of product
//! and kept: choices that were timed would differ from run to run, and with them the last bits.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};

use super::memory::Allocation;
use super::{Cuda, DevicePtr, lock};
use crate::DType;

/// Bytes of workspace: as NVIDIA recommends for Hopper.
const WORKSPACE: usize = 64 << 20;
/// Alignment that is asked for at most.
const ALIGNMENT: u64 = 16;

/// Algorithms that the heuristic is asked for.
const CANDIDATES: usize = 8;
/// Numbers of tiles whose sides are powers of two: 64x64 to 512x64. The heuristic likes others where they leave fewer
/// multiprocessors idle at the end; on an H200, which its power holds back, those that it named first were up to 6 %
/// slower than the first plain one, and none was more than 1.6 % faster (17 kinds of product of a 7B and an 8B model,
/// benchmarks/gpu/results/products-h200.txt).
const PLAIN_TILES: std::ops::RangeInclusive<u32> = 15..=25;

/// C [m, n] = alpha·op(A)·op(B) (+ C) (+ bias), all on the card. A and B have one type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: DevicePtr,
    /// Stored [k, m] rather than [m, k].
    pub a_transposed: bool,
    pub b: DevicePtr,
    /// Stored [n, k] rather than [k, n].
    pub b_transposed: bool,
    /// Of A and B.
    pub dtype: DType,
    pub c: DevicePtr,
    pub c_dtype: DType,
    pub alpha: f32,
    pub accumulate: bool,
    /// [n], of C's type.
    pub bias: Option<DevicePtr>,
}

/// What an algorithm was chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    sizes: [usize; 3],
    transposed: [bool; 2],
    dtypes: [DType; 2],
    accumulate: bool,
    bias: bool,
    alignment: [u64; 3],
}

/// A kind of product, ready to run.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library's handle and what was planned.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Allocation,
    plans: Mutex<HashMap<Kind, Plan>>,
}

// SAFETY: the handle may be used from any thread; plans are behind a mutex.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    /// In the current context.
    pub fn new() -> Result<Self, String> {
        let handle = result::create_handle().map_err(|error| error.to_string())?;
        Ok(Self { handle, workspace: Allocation::new(WORKSPACE), plans: Mutex::default() })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made in `new`. An error has no one to go to.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Cuda {
    /// Runs a product.
    ///
    /// # Panics
    /// If cuBLASLt has no algorithm for it or refuses to run it.
    pub(crate) fn product(&self, product: &Product) {
        self.bind();
        let alignment = [product.a, product.b, product.c].map(|start| {
            let low = start.address() | ALIGNMENT;
            1 << low.trailing_zeros()
        });
        let kind = Kind {
            sizes: [product.m, product.n, product.k],
            transposed: [product.a_transposed, product.b_transposed],
            dtypes: [product.dtype, product.c_dtype],
            accumulate: product.accumulate,
            bias: product.bias.is_some(),
            alignment,
        };
        let mut plans = lock(&self.blas.plans);
        let plan = plans.entry(kind).or_insert_with(|| {
            Plan::new(self.blas.handle, kind)
                .unwrap_or_else(|error| panic!("cuBLASLt has nothing for {kind:?}: {error}"))
        });
        let (alpha, beta) = (product.alpha, if product.accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: the plan's layouts are those of the product's matrices, and its memory is as large by the caller's word.
        let run = unsafe {
            plan.set_bias(product.bias).and_then(|()| {
                result::matmul(
                    self.blas.handle,
                    plan.description,
                    (&raw const alpha).cast(),
                    (&raw const beta).cast(),
                    product.b.address() as *const c_void,
                    plan.a,
                    product.a.address() as *const c_void,
                    plan.b,
                    product.c.address() as *const c_void,
                    plan.c,
                    product.c.address() as *mut c_void,
                    plan.c,
                    &raw const plan.algorithm,
                    self.blas.workspace.start().address() as *mut c_void,
                    WORKSPACE,
                    self.stream.cast(),
                )
            })
        };
        run.unwrap_or_else(|error| panic!("cuBLASLt refuses {kind:?}: {error}"));
    }
}

fn data_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, kind: Kind) -> Result<Self, CublasError> {
        let [m, n, k] = kind.sizes.map(|size| size as u64);
        let [of_operands, of_c] = kind.dtypes.map(data_type);
        let layout =
            |dtype, rows: u64, columns: u64| result::create_matrix_layout(dtype, rows, columns, rows as i64);
        // Our B, then our A, as column-major matrices; both as they are stored.
        let [a_transposed, b_transposed] = kind.transposed;
        let a = if b_transposed { layout(of_operands, k, n) } else { layout(of_operands, n, k) }?;
        let b = if a_transposed { layout(of_operands, m, k) } else { layout(of_operands, k, m) }?;
        let c = layout(of_c, n, m)?;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?;
        let preference = result::create_matmul_pref()?;
        // SAFETY: every attribute gets a value of its type and size, and the objects were just made.
        let algorithm = unsafe {
            use sys::cublasLtMatmulDescAttributes_t as Of;
            use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
            let operation = |transposed: bool| i32::from(transposed);
            set(description, Of::CUBLASLT_MATMUL_DESC_TRANSA, operation(b_transposed))?;
            set(description, Of::CUBLASLT_MATMUL_DESC_TRANSB, operation(a_transposed))?;
            if kind.bias {
                let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                set(description, Of::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            }
            let [of_a, of_b, of_c] = kind.alignment.map(|alignment| alignment as u32);
            let preferences = [
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_b),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_a),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_c),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_c),
            ];
            for (which, value) in preferences {
                result::set_matmul_pref_attribute(preference, which, (&raw const value).cast(), 4)?;
            }
            let workspace = WORKSPACE as u64;
            let which = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, which, (&raw const workspace).cast(), 8)?;
            algorithm(handle, description, [a, b, c], preference)?
        };
        // SAFETY: made above, and not used any more.
        unsafe { result::destroy_matmul_pref(preference) }?;
        Ok(Self { description, a, b, c, algorithm })
    }

    /// # Safety
    /// It leads to as many values as C has columns.
    unsafe fn set_bias(&self, bias: Option<DevicePtr>) -> Result<(), CublasError> {
        let Some(bias) = bias else { return Ok(()) };
        let which = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        // SAFETY: the attribute is a pointer; the rest is the caller's word.
        unsafe { set(self.description, which, bias.address()) }
    }
}

/// # Safety
/// All are the library's, and live.
unsafe fn algorithm(
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    [a, b, c]: [sys::cublasLtMatrixLayout_t; 3],
    preference: sys::cublasLtMatmulPreference_t,
) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
    // SAFETY: plain data that the library fills.
    let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    // SAFETY: there is room for as many results as are asked for; the rest is the caller's word.
    unsafe {
        let (results, wanted) = (found.as_mut_ptr(), CANDIDATES as i32);
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            description,
            a,
            b,
            c,
            c,
            preference,
            wanted,
            results,
            &raw mut count,
        )
        .result()?;
    }
    let found = &found[..usize::try_from(count).unwrap_or(0).min(CANDIDATES)];
    let best = found.iter().find(|result| found.len() > 1 && is_plain(&result.algo)).or(found.first());
    best.map(|result| result.algo).ok_or(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))
}

/// Whether an algorithm's tile is one of [`PLAIN_TILES`].
fn is_plain(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    let which = sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_TILE_ID;
    let (mut tile, mut written) = (0u32, 0);
    // SAFETY: the attribute is a number of four bytes.
    let status = unsafe {
        let value = (&raw mut tile).cast();
        sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, which, value, size_of::<u32>(), &raw mut written)
    };
    status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && PLAIN_TILES.contains(&tile)
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `new`. Errors have no one to go to.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in [self.a, self.b, self.c] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// # Safety
/// The attribute is of type `T`.
unsafe fn set<T>(
    description: sys::cublasLtMatmulDesc_t,
    which: sys::cublasLtMatmulDescAttributes_t,
    value: T,
) -> Result<(), CublasError> {
    // SAFETY: the library copies `size_of::<T>()` bytes before it returns.
    unsafe {
        result::set_matmul_desc_attribute(description, which, (&raw const value).cast(), size_of::<T>())
    }
}
