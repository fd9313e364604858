//! Kernels: CUDA C++ beside the ops, compiled by NVRTC to machine code for one architecture, kept in a cache folder.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::path::PathBuf;

use cudarc::driver::{result, sys};
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use thiserror::Error;

use super::CudaError;
use super::libraries::{self, Library};

/// Compute capabilities that the kernels are made for: Ampere, Ada, Hopper, Blackwell.
pub const ARCHITECTURES: [(u32, u32); 6] = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];

/// A file of kernels.
#[derive(Debug)]
pub struct Source {
    name: &'static str,
    text: &'static str,
    /// The one compute capability that it is for, with the instructions that no other has.
    only: Option<(u32, u32)>,
}

impl Source {
    pub(crate) const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, only: None }
    }

    /// With the instructions that cards of one compute capability have, and no later ones.
    pub(crate) const fn only_for(self, capability: (u32, u32)) -> Self {
        Self { only: Some(capability), ..self }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is for cards of a compute capability.
    pub fn is_for(&self, capability: (u32, u32)) -> bool {
        self.only.is_none_or(|only| only == capability)
    }

    /// Compiles it for a compute capability; returns the machine code, which is kept nowhere.
    ///
    /// # Errors
    /// The compiler is missing, or refuses the file.
    pub fn compile(&self, capability: (u32, u32)) -> Result<Vec<u8>, CudaError> {
        libraries::open(Library::Nvrtc)?;
        Ok(compile(self, &self.arch(capability))?)
    }

    /// Whether the cache folder has it for a compute capability, from this compiler and this text.
    pub fn is_cached(&self, capability: (u32, u32)) -> bool {
        let opened = libraries::open(Library::Nvrtc).is_ok();
        opened && self.cache_file(&self.arch(capability)).is_some_and(|file| file.exists())
    }

    /// The file of its machine code in the cache folder.
    fn cache_file(&self, arch: &str) -> Option<PathBuf> {
        let (major, minor) = Library::Nvrtc.version().unwrap_or_default();
        let key = fnv1a(&format!("{major}.{minor} {arch} {}", self.whole()));
        Some(cache_folder()?.join(format!("{}-{arch}-{key:016x}.cubin", self.name)))
    }

    /// What the compiler sees.
    fn whole(&self) -> String {
        let prelude = [include_str!("ptx.cuh"), include_str!("prelude.cuh")].concat();
        format!("{prelude}\n#line 1 \"{}.cu\"\n{}", self.name, self.text)
    }

    /// The compiler's name of an architecture.
    fn arch(&self, (major, minor): (u32, u32)) -> String {
        format!("sm_{major}{minor}{}", if self.only.is_some() { "a" } else { "" })
    }
}

/// All files of kernels. One that is not listed here cannot be launched.
pub fn all() -> Vec<&'static Source> {
    let ops: [&Source; 30] = [
        &crate::activation::SOURCE,
        &crate::adamw::SOURCE,
        &crate::columns::SOURCE,
        &crate::conv1d::SOURCE,
        &crate::convert::SOURCE,
        &crate::copies::SOURCE,
        &crate::cross_entropy::SOURCE,
        &crate::decay::SOURCE,
        &crate::dora::SOURCE,
        &crate::dropout::SOURCE,
        &crate::experts::SOURCE,
        &crate::gated::SOURCE,
        &crate::halves::SOURCE,
        &crate::quantized::on_cuda::SOURCE,
        &crate::latent::SOURCE,
        &crate::layer_norm::SOURCE,
        &crate::linear_attention::SOURCE,
        &crate::lora::SOURCE,
        &crate::objective::SOURCE,
        &crate::oft::SOURCE,
        &crate::random::SOURCE,
        &crate::rms_norm::SOURCE,
        &crate::rope::SOURCE,
        &crate::routing::SOURCE,
        &crate::row_gate::SOURCE,
        &crate::rows::SOURCE,
        &crate::sinks::SOURCE,
        &crate::softcap::SOURCE,
        &crate::update::SOURCE,
        &crate::xielu::SOURCE,
    ];
    let mut all: Vec<_> = ops.into_iter().chain(crate::attention::sources()).collect();
    all.sort_unstable_by_key(|source| source.name);
    all
}

/// A kernel that does not compile.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The compiler says no.
    #[error("{name}.cu does not compile for {arch}:\n{log}")]
    Refused {
        /// The file.
        name: &'static str,
        /// The architecture.
        arch: String,
        /// What the compiler says.
        log: String,
    },
}

fn compile(source: &Source, arch: &str) -> Result<Vec<u8>, CompileError> {
    let refused = |log: String| CompileError::Refused { name: source.name, arch: arch.to_owned(), log };
    let text = CString::new(source.whole()).map_err(|error| refused(error.to_string()))?;
    let name = CString::new(format!("{}.cu", source.name)).map_err(|error| refused(error.to_string()))?;
    let said = |error: nvrtc::NvrtcError| refused(format!("{:?}", error.0));
    let program = nvrtc::create_program(&text, Some(&name)).map_err(said)?;
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-diag-suppress=177".into()];
    // SAFETY: the program was just made, and is destroyed once, last.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let log = nvrtc::get_program_log(program).map(|log| text_of(&log)).unwrap_or_default();
        let machine_code =
            compiled.map_err(|error| refused(format!("{:?}\n{log}", error.0))).and_then(|()| {
                let mut size = 0;
                nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(said)?;
                let mut bytes = vec![0u8; size];
                nvrtc_sys::nvrtcGetCUBIN(program, bytes.as_mut_ptr().cast()).result().map_err(said)?;
                Ok(bytes)
            });
        let _ = nvrtc::destroy_program(program);
        machine_code
    }
}

fn text_of(characters: &[c_char]) -> String {
    let bytes: Vec<u8> =
        characters.iter().map(|c| u8::from_ne_bytes(c.to_ne_bytes())).take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Loaded machine code.
pub(super) struct Modules {
    handles: HashMap<&'static str, sys::CUmodule>,
}

// SAFETY: handles of the driver, used with the context bound.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Modules {
    /// An entry point of a file.
    ///
    /// # Panics
    /// If it has none of that name.
    pub fn function(&self, source: &Source, name: &str) -> sys::CUfunction {
        let module = self.handles.get(source.name);
        let module = module.unwrap_or_else(|| panic!("{}.cu is in no list of sources", source.name));
        let symbol = CString::new(name).expect("a name without zeros");
        // SAFETY: a module of this context.
        let found = unsafe { result::module::get_function(*module, symbol) };
        found.unwrap_or_else(|error| panic!("{}.cu has no entry {name}: {error}", source.name))
    }
}

/// Compiles what is not in the cache, on as many threads as there are files, and loads all into the current context.
pub(super) fn load_all(capability: (u32, u32)) -> Result<Modules, CudaError> {
    let machine_code: Vec<(&Source, Result<Vec<u8>, CompileError>)> = std::thread::scope(|scope| {
        let sources = all().into_iter().filter(|source| source.is_for(capability));
        let running: Vec<_> = sources
            .map(|source| (source, scope.spawn(move || cached(source, &source.arch(capability)))))
            .collect();
        let joined = running.into_iter();
        joined
            .map(|(source, thread)| (source, thread.join().expect("compiling returns its errors")))
            .collect()
    });
    let mut handles = HashMap::new();
    for (Source { name, .. }, machine_code) in machine_code {
        let machine_code = machine_code?;
        // SAFETY: machine code that NVRTC made, whole.
        let module = unsafe { result::module::load_data(machine_code.as_ptr().cast()) };
        let said = |error: result::DriverError| CudaError::Driver {
            what: "load a kernel",
            reason: format!("{name}.cu: {error}"),
        };
        handles.insert(*name, module.map_err(said)?);
    }
    Ok(Modules { handles })
}

/// Machine code from the cache folder, or from the compiler and then kept there.
fn cached(source: &Source, arch: &str) -> Result<Vec<u8>, CompileError> {
    let Some(file) = source.cache_file(arch) else { return compile(source, arch) };
    if let Ok(machine_code) = std::fs::read(&file) {
        return Ok(machine_code);
    }
    let machine_code = compile(source, arch)?;
    // Whole or not at all, since another process may look; a cache that cannot be written costs time alone.
    let partial = file.with_extension(std::process::id().to_string());
    let _ = std::fs::create_dir_all(file.parent().unwrap_or(&file))
        .and_then(|()| std::fs::write(&partial, &machine_code))
        .and_then(|()| std::fs::rename(&partial, &file));
    Ok(machine_code)
}

/// Where machine code is kept, if the environment names a folder for such things.
pub fn cache_folder() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = of("XDG_CACHE_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
    Some(cache.join("sft").join("kernels"))
}

/// FNV-1a of 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_compiles_for_every_architecture() {
        match libraries::open(Library::Nvrtc) {
            Ok(()) => {}
            Err(error) if std::env::var_os("SFT_TEST_NVRTC").is_some() => panic!("{error}"),
            Err(error) => return crate::testing::not_run("without the compiler", &error),
        }
        for source in all() {
            std::thread::scope(|scope| {
                for capability in ARCHITECTURES.into_iter().filter(|capability| source.is_for(*capability)) {
                    scope.spawn(move || source.compile(capability).unwrap_or_else(|error| panic!("{error}")));
                }
            });
        }
    }

    #[test]
    fn no_two_files_have_one_name() {
        let names: Vec<_> = all().iter().map(|source| source.name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }
}
