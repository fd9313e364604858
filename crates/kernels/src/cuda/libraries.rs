//! Which CUDA libraries there are, and where: the loader's paths, `SFT_CUDA_LIBS`, toolkits, Python's wheels.
//!
//! A library that is opened by its full path is found again by its name, so whoever asks the loader for it later gets
//! the same one. What a library opens itself is opened before it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::cublaslt::sys as cublaslt;
use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;

use super::CudaError;

/// A library of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The driver's.
    Driver,
    /// The compiler.
    Nvrtc,
    /// Matrix products.
    CublasLt,
}

/// A library, and where it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which one.
    pub library: Library,
    /// A file, or a name that the system's loader knows; `None` if it is missing.
    pub at: Option<PathBuf>,
    /// Its version: of the driver, the latest CUDA that it runs.
    pub version: Option<(u32, u32)>,
}

impl Library {
    const ALL: [Library; 3] = [Library::Driver, Library::Nvrtc, Library::CublasLt];

    /// Names of its file, newest first.
    fn names(self) -> &'static [&'static str] {
        match self {
            Library::Driver => &["libcuda.so.1", "libcuda.so", "nvcuda.dll"],
            Library::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
            Library::CublasLt => {
                &["libcublasLt.so.13", "libcublasLt.so.12", "cublasLt64_13.dll", "cublasLt64_12.dll"]
            }
        }
    }

    /// Beginnings of names of files beside it that it opens itself.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Library::Driver | Library::CublasLt => &[],
            Library::Nvrtc => &["libnvrtc-builtins.so"],
        }
    }

    /// Its version, once it is open.
    pub(super) fn version(self) -> Option<(u32, u32)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: functions that write or return numbers.
        unsafe {
            match self {
                Library::Driver => {
                    driver::cuDriverGetVersion(&raw mut major).result().ok()?;
                    (major, minor) = (major / 1000, major % 1000 / 10);
                }
                Library::Nvrtc => nvrtc::nvrtcVersion(&raw mut major, &raw mut minor).result().ok()?,
                Library::CublasLt => {
                    let version = i32::try_from(cublaslt::cublasLtGetVersion()).ok()?;
                    (major, minor) = (version / 10_000, version % 10_000 / 100);
                }
            }
        }
        Some((major.try_into().ok()?, minor.try_into().ok()?))
    }

    /// How to get it.
    pub fn help(self) -> &'static str {
        match self {
            Library::Driver => "install NVIDIA's driver; or use `device: cpu`",
            Library::Nvrtc => {
                "`pip install nvidia-cuda-nvrtc` (13) or `nvidia-cuda-nvrtc-cu12`, or install the CUDA toolkit; name its folder in SFT_CUDA_LIBS if it is in none of the usual places"
            }
            Library::CublasLt => {
                "`pip install nvidia-cublas` (13) or `nvidia-cublas-cu12`, or install the CUDA toolkit; name its folder in SFT_CUDA_LIBS if it is in none of the usual places"
            }
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Library::Driver => "the CUDA driver (libcuda)",
            Library::Nvrtc => "CUDA's run-time compiler (libnvrtc)",
            Library::CublasLt => "cuBLASLt (libcublasLt)",
        })
    }
}

/// Looks for every library, without an error for those that are missing.
pub fn look_for_libraries() -> Vec<Found> {
    let found = Library::ALL.map(|library| {
        let at = open_one(library);
        let version = at.as_ref().and_then(|_| library.version());
        Found { library, at, version }
    });
    found.into()
}

/// Opens all.
pub(super) fn open_all() -> Result<(), CudaError> {
    Library::ALL.into_iter().try_for_each(open)
}

/// Opens one.
pub(super) fn open(library: Library) -> Result<(), CudaError> {
    static OPENED: [OnceLock<bool>; 3] = [const { OnceLock::new() }; 3];
    let opened = OPENED[library as usize].get_or_init(|| open_one(library).is_some());
    opened.then_some(()).ok_or(CudaError::Library { library })
}

fn open_one(library: Library) -> Option<PathBuf> {
    let named = std::env::var_os("SFT_CUDA_LIBS");
    let mut named = named.iter().flat_map(std::env::split_paths);
    let in_folder = |folder: PathBuf| {
        let file = library.names().iter().map(|name| folder.join(name)).find(|file| file.is_file())?;
        for needed in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = needed.file_name();
            if library.needs().iter().any(|start| name.to_string_lossy().starts_with(start)) {
                load(needed.path().into_os_string());
            }
        }
        load(file.clone().into_os_string()).then_some(file)
    };
    named
        .find_map(in_folder)
        .or_else(|| library.names().iter().find(|name| load(name.into())).map(PathBuf::from))
        .or_else(|| folders().into_iter().find_map(in_folder))
}

/// Loads a library for good, for all that look for it later; says whether it could.
fn load(file: OsString) -> bool {
    #[cfg(unix)]
    // SAFETY: running the initialisers of NVIDIA's libraries is what opening them means.
    let opened = unsafe {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
        Library::open(Some(file), RTLD_LAZY | RTLD_GLOBAL)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let opened = unsafe { libloading::Library::new(file) };
    opened.map(std::mem::forget).is_ok()
}

/// Folders of toolkits and of Python's wheels, the environment's first.
fn folders() -> Vec<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut environments: Vec<PathBuf> =
        [of("VIRTUAL_ENV"), of("CONDA_PREFIX")].into_iter().flatten().collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&path).filter(|folder| folder.join("python3").exists());
    environments.extend(pythons.filter_map(|folder| folder.parent().map(Path::to_owned)));
    environments.extend(std::env::home_dir().map(|home| home.join(".local")));
    let mut all = Vec::new();
    for environment in environments {
        for python in listed(&environment.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                all.extend(
                    listed(&python.join(packages).join("nvidia"), "").into_iter().map(|p| p.join("lib")),
                );
            }
        }
    }
    let toolkits = [of("CUDA_HOME"), of("CUDA_PATH")].into_iter().flatten();
    all.extend(toolkits.chain(listed(Path::new("/usr/local"), "cuda")).map(|toolkit| toolkit.join("lib64")));
    all.push("/usr/local/nvidia/lib64".into());
    all
}

/// What is in a folder and begins with `start`, sorted, the last first.
fn listed(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths.reverse();
    paths
}
