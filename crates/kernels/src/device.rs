//! Where ops run: the CPU, with its threads and its instruction set, or a GPU.
//!
//! Every op takes `&Device` first and looks inside; nobody above this crate asks what is in it.

use std::sync::Arc;

use rayon::prelude::*;
use thiserror::Error;

use crate::cuda::{self, Cuda, CudaError};
use crate::profile::{Profile, Timed};
use crate::{DType, Isa, Tensor};

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// `SFT_CPU` or the caller named an instruction set that this machine lacks.
    #[error(
        "the instruction set `{asked}` was asked for, and this CPU has none of it; its fastest is `{best}`\nhelp: unset SFT_CPU or set it to `{best}`"
    )]
    IsaMissing {
        /// What was asked for.
        asked: Isa,
        /// The strongest one here.
        best: Isa,
    },
    /// `SFT_CPU` holds a word that is no instruction set.
    #[error("SFT_CPU: {0}")]
    IsaUnknown(String),
    /// More threads than cores were asked for, or none.
    #[error(
        "threads: {asked}, and this process may use {cores} cores\nhelp: choose 1 to {cores}, or leave `threads` out"
    )]
    Threads {
        /// What was asked for.
        asked: usize,
        /// Cores that the process may use.
        cores: usize,
    },
    /// A GPU was asked for.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The operating system refused to start the threads.
    #[error("cannot start the thread pool: {0}")]
    Pool(#[from] rayon::ThreadPoolBuildError),
}

/// How to set up a CPU device.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuOptions {
    /// Number of threads; all cores of the process if `None`.
    pub threads: Option<usize>,
    /// Instruction set; the environment's `SFT_CPU`, or else the strongest, if `None`.
    pub isa: Option<Isa>,
}

/// Where tensors live and ops run.
#[derive(Debug)]
pub struct Device {
    pool: rayon::ThreadPool,
    isa: Isa,
    profile: Profile,
    cuda: Option<Arc<Cuda>>,
    no_gpu: Option<String>,
}

impl Device {
    /// A CPU device.
    ///
    /// # Errors
    /// An instruction set that the machine lacks, more threads than cores, no threads to be had.
    pub fn cpu(options: CpuOptions) -> Result<Self, DeviceError> {
        let isa = options.isa.map_or_else(Isa::chosen, Ok).map_err(DeviceError::IsaUnknown)?;
        if !isa.is_available() {
            return Err(DeviceError::IsaMissing { asked: isa, best: Isa::best() });
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or(cores);
        if threads == 0 || threads > cores {
            return Err(DeviceError::Threads { asked: threads, cores });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("sft-{i}"))
            .build()?;
        Ok(Self { pool, isa, profile: Profile::default(), cuda: None, no_gpu: None })
    }

    /// The first GPU if there is one that can be used, else the CPU; [`Device::no_gpu`] says why.
    ///
    /// # Errors
    /// As [`Device::cpu`] and [`Device::gpu`].
    pub fn best(options: CpuOptions) -> Result<Self, DeviceError> {
        match cuda::best_card() {
            Ok(ordinal) => Self::gpu(ordinal, options),
            Err(error) => Ok(Self { no_gpu: Some(error.to_string()), ..Self::cpu(options)? }),
        }
    }

    /// Why no GPU is in use where one would have been.
    pub fn no_gpu(&self) -> Option<&str> {
        self.no_gpu.as_deref()
    }

    /// What it is, in words.
    pub fn name(&self) -> String {
        match &self.cuda {
            Some(cuda) => cuda.properties().name.clone(),
            None => format!("{} with {} threads", self.isa, self.threads()),
        }
    }

    /// GPU number `ordinal`; what remains for the CPU runs with `options`.
    ///
    /// # Errors
    /// No such card, no driver, a library that is missing.
    pub fn gpu(ordinal: usize, options: CpuOptions) -> Result<Self, DeviceError> {
        Self::on_card(Cuda::open(ordinal)?, options)
    }

    /// A GPU that is open already.
    pub(crate) fn on_card(cuda: Arc<Cuda>, options: CpuOptions) -> Result<Self, DeviceError> {
        Ok(Self { cuda: Some(cuda), ..Self::cpu(options)? })
    }

    /// The GPU, if ops run there.
    pub fn cuda(&self) -> Option<&Arc<Cuda>> {
        self.cuda.as_ref()
    }

    /// The most bytes of a GPU's memory that this process had at a time; `None` on a CPU.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.cuda.as_ref().map(|cuda| cuda.peak_bytes() as u64)
    }

    /// Waits until everything so far is done.
    pub fn synchronize(&self) {
        if let Some(cuda) = &self.cuda {
            cuda.synchronize();
        }
    }

    /// Runs `f` on one of the device's threads, which saves every op inside it a hand-over.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What ops cost on this device.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Times an op of one pass over memory, if ops are timed.
    pub(crate) fn pass(&self, name: &'static str, bytes: usize) -> Option<Timed<'_>> {
        self.op(name, [0; 2], || [0, bytes])
    }

    /// Times an op, if ops are timed; `work` tells its FLOP and bytes.
    pub(crate) fn op(
        &self,
        name: &'static str,
        weight: [usize; 2],
        work: impl FnOnce() -> [usize; 2],
    ) -> Option<Timed<'_>> {
        self.profile.op(self.cuda.as_deref(), name, weight, work)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::zeros_on(self, dtype, shape)
    }

    /// Calls `f(i)` for each `i` below `tasks`, on all threads.
    ///
    /// What a task computes must depend on `i` alone: which thread runs it is not fixed.
    pub fn for_each(&self, tasks: usize, f: impl Fn(usize) + Send + Sync) {
        if tasks <= 1 || self.threads() == 1 {
            (0..tasks).for_each(f);
        } else {
            self.pool.install(|| (0..tasks).into_par_iter().for_each(f));
        }
    }

    /// Splits `out` into chunks of `chunk` elements (the last may be shorter) and calls `f(i, chunk_i)` for each.
    pub fn for_each_chunk<T: Send>(
        &self,
        out: &mut [T],
        chunk: usize,
        f: impl Fn(usize, &mut [T]) + Send + Sync,
    ) {
        let chunk = chunk.max(1);
        if out.len() <= chunk || self.threads() == 1 {
            out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
        } else {
            self.pool.install(|| out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c)));
        }
    }

    /// As [`Device::for_each_chunk`] over two slices in step: chunk `i` of `a` goes with chunk `i` of `b`.
    pub fn for_each_chunk_pair<T: Send, U: Send>(
        &self,
        (a, a_chunk): (&mut [T], usize),
        (b, b_chunk): (&mut [U], usize),
        f: impl Fn(usize, &mut [T], &mut [U]) + Send + Sync,
    ) {
        let (a_chunk, b_chunk) = (a_chunk.max(1), b_chunk.max(1));
        debug_assert_eq!(a.len().div_ceil(a_chunk), b.len().div_ceil(b_chunk));
        let pairs = a.par_chunks_mut(a_chunk).zip(b.par_chunks_mut(b_chunk));
        self.for_each_item(pairs.enumerate(), |(i, (a, b))| f(i, a, b));
    }

    /// Calls `f` for every item of a parallel iterator over disjoint parts of tensors.
    pub fn for_each_item<I: IndexedParallelIterator>(&self, items: I, f: impl Fn(I::Item) + Send + Sync) {
        self.pool.install(|| items.for_each(f));
    }
}
