//! The one place where files are mapped into memory.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// A file in memory, shared by the tensors in it.
pub type MappedFile = Arc<Mmap>;

/// Maps a file, read-only.
///
/// # Errors
/// What the operating system says of opening or mapping it.
pub fn map_file(path: &Path) -> io::Result<MappedFile> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only and every bit pattern is valid for what is read from it. A file that another
    // process shortens meanwhile ends this process with a bus error; model files are not changed while in use.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Arc::new(map))
}
