//! The one way in which a run changes files: weights, states, logs, pictures, folders.
//!
//! In: bytes, names → out: what `std::fs` does with them (stage 14). With the feature `faults`, which tests of this
//! repository alone ask for, each of these can be made to fail; see [`faults`].

#[cfg(feature = "faults")]
pub mod faults;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1 << 16;

/// Something that changes a file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "faults"), allow(dead_code, reason = "read where faults are made"))]
enum Op<'a> {
    Create(&'a Path),
    Write(&'a Path, &'a [u8]),
    Cut(&'a Path),
    Sync(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
}

/// What is to happen instead.
#[derive(Debug)]
#[cfg_attr(not(feature = "faults"), allow(dead_code, reason = "made where faults are"))]
enum Verdict {
    Go,
    /// Only so many bytes are written.
    Short(usize),
    /// So many bytes are written, then it fails.
    Fail(usize, io::Error),
}

#[cfg(feature = "faults")]
fn ask(op: Op<'_>) -> Verdict {
    faults::ask(op)
}

#[cfg(not(feature = "faults"))]
#[inline]
fn ask(_: Op<'_>) -> Verdict {
    Verdict::Go
}

/// Does something that is done or not, unless it is to fail.
fn change<T>(op: Op<'_>, done: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match ask(op) {
        Verdict::Go | Verdict::Short(_) => done(),
        Verdict::Fail(_, error) => Err(error),
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    file: File,
}

impl DiskFile {
    /// An empty file, in the place of one that is there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = change(Op::Create(path), || File::create(path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// A file opened by `options`, which make it or write to its end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let file = change(Op::Create(path), || options.open(path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// After this its content outlives a power cut.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync_all(&self) -> io::Result<()> {
        change(Op::Sync(&self.path), || self.file.sync_all())
    }

    /// Cuts it to `bytes`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        change(Op::Cut(&self.path), || self.file.set_len(bytes))
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match ask(Op::Write(&self.path, bytes)) {
            Verdict::Go => self.file.write(bytes),
            Verdict::Short(count) => self.file.write(&bytes[..count]),
            Verdict::Fail(count, error) => {
                self.file.write_all(&bytes[..count])?;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file beside `path`, to the disk, and renames it to `path`: what is there is the old content or the new. It has
/// the permissions of the file that it replaces.
///
/// # Errors
/// What the file system says; the old file is then as it was.
pub fn replace(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<DiskFile>) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial"));
    let permissions = fs::metadata(path).ok().map(|old| old.permissions());
    let written = || {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, DiskFile::create(&partial)?);
        content(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        if let Some(permissions) = permissions {
            fs::set_permissions(&partial, permissions)?;
        }
        rename(&partial, path)?;
        sync_folder(path.parent().unwrap_or(Path::new("")))
    };
    // What is left of it is no file of the run; the error is what matters.
    written().inspect_err(|_| _ = remove_file(&partial))
}

/// As [`replace`], of bytes that are there.
///
/// # Errors
/// As [`replace`].
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

/// Renames a file or a folder.
///
/// # Errors
/// What the file system says.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    change(Op::Rename(from, to), || fs::rename(from, to))
}

/// Makes a folder.
///
/// # Errors
/// What the file system says.
pub fn create_dir(path: &Path) -> io::Result<()> {
    change(Op::Create(path), || fs::create_dir(path))
}

/// Makes a folder with those above it.
///
/// # Errors
/// What the file system says.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    change(Op::Create(path), || fs::create_dir_all(path))
}

/// Removes a file.
///
/// # Errors
/// What the file system says.
pub fn remove_file(path: &Path) -> io::Result<()> {
    change(Op::Remove(path), || fs::remove_file(path))
}

/// Removes a folder with all that is in it.
///
/// # Errors
/// What the file system says.
pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    change(Op::Remove(path), || fs::remove_dir_all(path))
}

/// After this a file that is there has its content after a power cut too.
///
/// # Errors
/// What the file system says.
pub fn sync_file(path: &Path) -> io::Result<()> {
    change(Op::Sync(path), || OpenOptions::new().read(true).write(true).open(path)?.sync_all())
}

/// After this renames in a folder outlive a power cut (nothing where folders cannot be synced).
///
/// # Errors
/// What the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    change(Op::Sync(folder), || File::open(folder)?.sync_all())
}
