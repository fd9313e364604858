//! NVIDIA GPUs: what is opened at run time, memory, launches, products.
//!
//! Nothing here is needed to build or to run on a CPU: libraries are opened when a device is asked for. Kernels are
//! CUDA C++ beside the op that they belong to, compiled by NVRTC for the card at hand and kept in a cache folder. All
//! work goes to one stream, in order, so that memory can be reused without waiting; only reading results waits.

mod blas;
mod clock;
mod libraries;
mod memory;
mod sources;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{DriverError, result, sys};
use thiserror::Error;

pub(crate) use blas::Product;
pub(crate) use clock::Span;
pub use libraries::{Found, Library, look_for_libraries};
pub(crate) use memory::{DeviceMemory, DevicePtr, Scratch};
pub use sources::{ARCHITECTURES, CompileError, Source, all as sources, cache_folder};

use crate::DType;
use blas::Blas;
use memory::{Allocation, Sent, Staging};
use sources::Modules;

/// Why a GPU cannot be used.
#[derive(Debug, Error)]
pub enum CudaError {
    /// A library is missing.
    #[error("{library} was not found\nhelp: {}", library.help())]
    Library {
        /// Which one.
        library: Library,
    },
    /// There is no such card.
    #[error(
        "cuda:{asked} was asked for, and there are {there} CUDA devices\nhelp: `sft doctor` lists what is there"
    )]
    NoDevice {
        /// Its number.
        asked: usize,
        /// How many there are.
        there: usize,
    },
    /// The card is older than the kernels.
    #[error(
        "{name} has compute capability {}.{}, and 8.0 (Ampere) is the oldest that is supported\nhelp: use `device: cpu`",
        capability.0, capability.1
    )]
    TooOld {
        /// The card's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The driver refuses something.
    #[error("the CUDA driver cannot {what}: {reason}\nhelp: `sft doctor` and `nvidia-smi` say what they see")]
    Driver {
        /// What was asked of it.
        what: &'static str,
        /// What it says.
        reason: String,
    },
    /// A kernel does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// cuBLASLt refuses to start.
    #[error("cuBLASLt cannot be started: {0}")]
    Blas(String),
}

/// What a card can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Its name.
    pub name: String,
    /// Compute capability, (9, 0) for Hopper.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory_bytes: usize,
}

/// A card, its stream, and what was loaded onto it.
pub struct Cuda {
    properties: Properties,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Modules,
    /// Entry points by name and element types.
    functions: Mutex<HashMap<Entry, Function>>,
    staging: Mutex<Staging>,
    sent: Mutex<Sent>,
    scratch: Mutex<Option<Allocation>>,
    blas: Blas,
    this: std::sync::Weak<Cuda>,
}

// SAFETY: the driver's handles may be used from any thread that has the context bound, which every use does first;
// what changes is behind mutexes.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// The name of a source, that of an entry point before the element types are appended, and these.
type Entry = (&'static str, &'static str, [Option<DType>; 3]);

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Bytes of dynamic shared memory that it may have.
    shared_bytes: u32,
}

// SAFETY: a handle of the driver, see `Cuda`.
unsafe impl Send for Function {}

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub blocks: [u32; 3],
    /// Threads of a block, whole warps.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Grid {
    /// `blocks` in a row.
    pub fn new(blocks: usize, threads: usize) -> Self {
        Self { blocks: [dimension(blocks), 1, 1], threads: dimension(threads), shared_bytes: 0 }
    }

    /// A thread for each 16 bytes of a tensor, as `span_of_thread` of the prelude shares them out.
    pub fn element_wise(elements: usize, dtype: DType) -> Self {
        const THREADS: usize = 256;
        Self::new(elements.div_ceil(THREADS * (16 / dtype.bytes())), THREADS)
    }

    /// With dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: dimension(bytes), ..self }
    }
}

fn dimension(size: usize) -> u32 {
    u32::try_from(size)
        .ok()
        .filter(|size| *size <= i32::MAX as u32)
        .expect("a launch of less than 2³¹ blocks")
}

/// The one argument of a kernel.
///
/// # Safety
/// It is `repr(C)` with the fields of the kernel's struct, and its pointers lead to as much device memory as the kernel
/// reads and writes.
pub(crate) unsafe trait Params: Copy {}

impl Cuda {
    /// Opens card number `ordinal`.
    ///
    /// # Errors
    /// No driver, no such card, a library that is missing, a kernel that does not compile.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        libraries::open_all()?;
        let (properties, device) = usable(ordinal)?;
        let said = |what| move |error: DriverError| CudaError::Driver { what, reason: error.to_string() };
        // SAFETY: the device is one that the driver named.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(said("open the card"))?;
        // SAFETY: just retained.
        unsafe { result::ctx::set_current(context) }.map_err(said("bind the card"))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(said("create a stream"))?;
        let modules = sources::load_all(properties.capability)?;
        let functions = Mutex::new(HashMap::new());
        let blas = Blas::new().map_err(CudaError::Blas)?;
        let staging = Staging::new().map_err(said("allocate pinned memory"))?;
        Ok(Arc::new_cyclic(|this| Self {
            properties,
            context,
            stream,
            modules,
            functions,
            staging: Mutex::new(staging),
            sent: Mutex::default(),
            scratch: Mutex::default(),
            blas,
            this: this.clone(),
        }))
    }

    /// What the card can do.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Launches the entry point of `source` that is called `name`, with `types` appended.
    ///
    /// # Panics
    /// If there is none, or the driver refuses: bugs both.
    pub(crate) fn launch<P: Params>(
        &self,
        source: &'static Source,
        name: &'static str,
        types: &[DType],
        grid: Grid,
        mut params: P,
    ) {
        if grid.blocks.contains(&0) {
            return;
        }
        self.bind();
        let function = self.function(source, name, types, grid.shared_bytes);
        let [x, y, z] = grid.blocks;
        let mut arguments = [(&raw mut params).cast::<c_void>()];
        // SAFETY: the kernel takes one argument, `Params` promises that this is it.
        let launched = unsafe {
            let shape = ((x, y, z), (grid.threads, 1, 1));
            result::launch_kernel(function, shape.0, shape.1, grid.shared_bytes, self.stream, &mut arguments)
        };
        launched.unwrap_or_else(|error| panic!("launching {name} with {grid:?}: {error}"));
        if cfg!(debug_assertions) {
            self.synchronize();
        }
    }

    fn function(
        &self,
        source: &'static Source,
        name: &'static str,
        types: &[DType],
        shared_bytes: u32,
    ) -> sys::CUfunction {
        let mut key = [None; 3];
        key.iter_mut().zip(types).for_each(|(key, dtype)| *key = Some(*dtype));
        let mut functions = lock(&self.functions);
        let function = functions.entry((source.name(), name, key)).or_insert_with(|| {
            let full =
                types.iter().fold(name.to_owned(), |full, dtype| format!("{full}_{}", in_kernels(*dtype)));
            Function { handle: self.modules.function(source, &full), shared_bytes: 48 << 10 }
        });
        if shared_bytes > function.shared_bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of this context.
            let raised = unsafe {
                result::function::set_function_attribute(function.handle, attribute, shared_bytes as i32)
            };
            raised
                .unwrap_or_else(|error| panic!("{name} with {shared_bytes} bytes of shared memory: {error}"));
            function.shared_bytes = shared_bytes;
        }
        function.handle
    }

    /// Makes the card the one of this thread.
    fn bind(&self) {
        thread_local!(static BOUND: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
        let context = self.context.addr();
        if BOUND.get() != context {
            // SAFETY: retained in `open` and released when `self` goes.
            unsafe { result::ctx::set_current(self.context) }
                .expect("the context is there as long as `self`");
            BOUND.set(context);
        }
    }

    /// Waits until everything so far is done.
    ///
    /// # Panics
    /// If a kernel went wrong.
    pub fn synchronize(&self) {
        self.bind();
        // SAFETY: a stream of this context.
        unsafe { result::stream::synchronize(self.stream) }
            .unwrap_or_else(|error| panic!("the GPU stopped: {error}"));
    }

    /// The most bytes of its memory that this process had at a time, the driver's own apart.
    pub fn peak_bytes(&self) -> usize {
        memory::peak_bytes()
    }

    /// How often this process took memory of cards. Giving it back waits for all that runs there, so that no step does.
    pub fn allocations(&self) -> usize {
        memory::allocations()
    }

    fn arc(&self) -> Arc<Cuda> {
        self.this.upgrade().expect("whoever calls has it")
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        self.bind();
        // SAFETY: both are this struct's own, and nothing uses them any more. Errors have no one to go to.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::destroy(self.stream);
        }
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("properties", &self.properties).finish_non_exhaustive()
    }
}

/// Cards that the driver names, in its order, those that are too old too.
///
/// # Errors
/// No driver, or one that does not start.
pub fn cards() -> Result<Vec<Properties>, CudaError> {
    libraries::open(Library::Driver)?;
    (0..count()?).map(|ordinal| properties(ordinal).map(|(properties, _)| properties)).collect()
}

/// The card that is used where none is named: the first one, if everything that it needs is there.
///
/// # Errors
/// Why there is none.
pub fn best_card() -> Result<usize, CudaError> {
    libraries::open_all()?;
    usable(0).map(|_| 0)
}

/// Bytes that are free on a card.
///
/// # Errors
/// No driver, no such card.
pub fn free_bytes(ordinal: usize) -> Result<usize, CudaError> {
    libraries::open(Library::Driver)?;
    let (_, device) = properties(ordinal)?;
    let said = |error: DriverError| CudaError::Driver { what: "open the card", reason: error.to_string() };
    // SAFETY: the device is one that the driver named. The context stays for whoever opens the card.
    unsafe { result::primary_ctx::retain(device).and_then(|context| result::ctx::set_current(context)) }
        .map_err(said)?;
    result::mem_get_info().map(|(free, _)| free).map_err(said)
}

fn count() -> Result<usize, CudaError> {
    let said = |what| move |error: DriverError| CudaError::Driver { what, reason: error.to_string() };
    result::init().map_err(said("start"))?;
    Ok(result::device::get_count().map_err(said("count the cards"))?.max(0) as usize)
}

fn properties(ordinal: usize) -> Result<(Properties, sys::CUdevice), CudaError> {
    let there = count()?;
    if ordinal >= there {
        return Err(CudaError::NoDevice { asked: ordinal, there });
    }
    let said =
        |error: DriverError| CudaError::Driver { what: "describe the card", reason: error.to_string() };
    let device = result::device::get(ordinal as i32).map_err(said)?;
    // SAFETY: the device is one that the driver named.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(said);
    let properties = Properties {
        name: result::device::get_name(device).map_err(said)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }.map_err(said)?,
    };
    Ok((properties, device))
}

/// The properties of a card that is not too old.
fn usable(ordinal: usize) -> Result<(Properties, sys::CUdevice), CudaError> {
    let (properties, device) = properties(ordinal)?;
    if properties.capability < ARCHITECTURES[0] {
        return Err(CudaError::TooOld { name: properties.name, capability: properties.capability });
    }
    Ok((properties, device))
}

/// What kernels call an element type.
const fn in_kernels(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
