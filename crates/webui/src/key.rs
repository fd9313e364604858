//! Keys: what requests have to show, and what a model that is served here asks for.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use axum::http::{HeaderMap, header};
use constant_time_eq::constant_time_eq;

/// The key of a folder, made when there is none: the address of the page stays the same. Only its owner can read it.
///
/// # Errors
/// The system's.
pub fn kept_key(folder: &Path) -> io::Result<String> {
    let path = folder.join("key");
    match fs::read_to_string(&path) {
        Ok(key) if !key.trim().is_empty() => return Ok(key.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    private_folder(folder)?;
    let key = new_key()?;
    private(&path)?.write_all(key.as_bytes())?;
    Ok(key)
}

/// A folder that others cannot look into; one that is there stays as it is.
pub fn private_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// 32 hexadecimal digits that nobody can guess.
pub fn new_key() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A file, new or emptied, that others cannot read.
pub fn private(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    // One that was there has the rights it had.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(file)
}

/// Whether a request shows the key: `Authorization: Bearer KEY`.
pub fn shows(headers: &HeaderMap, key: &str) -> bool {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    is_same(shown, key)
}

/// Whether two keys are the same, in a time that tells nothing of where they differ.
pub fn is_same(a: &str, b: &str) -> bool {
    constant_time_eq(a.as_bytes(), b.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_key_from_all_but_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let within = folder.path().join("jobs");
        let key = kept_key(&within).unwrap();
        assert_eq!((key.len(), &kept_key(&within).unwrap()), (32, &key));
        assert_ne!(new_key().unwrap(), key);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(within.join("key")).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::metadata(&within).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
