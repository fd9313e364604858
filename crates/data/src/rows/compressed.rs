//! Compressed files as streams: gzip, zstd, xz and bzip2, told by their first bytes and not by their names.
//!
//! In: a file. Out: its bytes, decompressed as they are read; files of several members are one text. Memory is
//! bounded by [`MEMORY_BYTES`], and a file that grows out of proportion is refused ([`RATIO`]).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::DataError;

/// The extensions that compressed files have after the one that tells their type.
pub(super) const EXTENSIONS: [&str; 6] = ["gz", "gzip", "zst", "zstd", "xz", "bz2"];

/// What a decoder may take: the largest window of `zstd -19` and four times the dictionary of `xz -9`.
const MEMORY_BYTES: u64 = 256 << 20;
const ZSTD_WINDOW_LOG: u32 = 27;
/// Text is rarely more than a hundred times as long as what it is compressed to.
const RATIO: u64 = 1000;
/// What may come out of a file whatever its ratio.
const FREE_BYTES: u64 = 1 << 30;

const BUFFER_BYTES: usize = 1 << 16;

/// Bytes of a file, plain or decompressed.
pub(super) type Reader = BufReader<Box<dyn Read>>;

/// Opens a file, decompressing if it begins as a compressed one does.
///
/// # Errors
/// When it cannot be opened or read.
pub(super) fn open(path: &Path) -> Result<Reader, DataError> {
    let unreadable = |source| DataError::Io { path: path.to_owned(), source };
    let taken = Arc::new(AtomicU64::new(0));
    let file = Counted { file: File::open(path).map_err(unreadable)?, taken: Arc::clone(&taken) };
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let start = reader.fill_buf().map_err(unreadable)?;
    let decoder: (Box<dyn Read>, _) = match start {
        [0x1f, 0x8b, ..] => (Box::new(flate2::bufread::MultiGzDecoder::new(reader)), "gzip"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => {
            (Box::new(bzip2::bufread::MultiBzDecoder::new(reader)), "bzip2")
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let limit = (MEMORY_BYTES >> 10) as u32;
            (Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, limit)), "xz")
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(unreadable)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(unreadable)?;
            (Box::new(decoder), "zstd")
        }
        _ => return Ok(BufReader::with_capacity(BUFFER_BYTES, Box::new(reader))),
    };
    let (decoder, kind) = decoder;
    let bounded = Bounded { decoder, kind, taken, given: 0 };
    Ok(BufReader::with_capacity(BUFFER_BYTES, Box::new(bounded)))
}

/// A fault in what a file holds, carried through [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Damaged(String);

impl DataError {
    /// A read that failed: the system's fault, or the file's.
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        match source.get_ref().and_then(|inner| inner.downcast_ref::<Damaged>()) {
            None => Self::Io { path: path.to_owned(), source },
            Some(Damaged(reason)) => Self::BrokenFile {
                path: path.to_owned(),
                line: 0,
                reason: reason.clone(),
                help: "the file is incomplete or damaged: fetch or compress it again".to_owned(),
            },
        }
    }
}

/// A file that counts what is read of it.
struct Counted {
    file: File,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// What comes out of a decoder, as long as it is in proportion to what goes in.
struct Bounded {
    decoder: Box<dyn Read>,
    kind: &'static str,
    taken: Arc<AtomicU64>,
    given: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let kind = self.kind;
        let read = self.decoder.read(buffer).map_err(|error| match error.kind() {
            // An error of the system keeps its code; what decoders make has none.
            _ if error.raw_os_error().is_some() => error,
            io::ErrorKind::Interrupted => error,
            _ => io::Error::other(Damaged(format!(
                "the {kind} data is damaged, cut off or needs too much memory: {error}"
            ))),
        })?;
        self.given += read as u64;
        let taken = self.taken.load(Ordering::Relaxed);
        if self.given > FREE_BYTES && self.given / RATIO > taken {
            let reason = format!(
                "{} MiB came out of {} KiB of {kind} data, over {RATIO} to 1",
                self.given >> 20,
                taken >> 10
            );
            return Err(io::Error::other(Damaged(reason)));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::rows::{Rows, Source};

    /// Written by gzip, xz, bzip2 and zstd; `tests/data/README.md` says how.
    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

    fn rows(path: &Path) -> Result<Vec<(u64, String)>, DataError> {
        let source = Source::open(path, None)?;
        Rows::open("test", &source)
            .map(|row| {
                let row = row?.expect("a good row");
                Ok((row.origin.line, row.columns["output"].as_str().expect("a text").to_owned()))
            })
            .collect()
    }

    #[test]
    fn every_kind_reads_as_the_plain_file_does() {
        let plain = [(1, "eins".to_owned()), (2, "zwei ☃".to_owned()), (4, "drei".to_owned())];
        for end in ["gz", "xz", "bz2", "zst"] {
            let path = Path::new(DATA).join(format!("three.jsonl.{end}"));
            assert_eq!(rows(&path).expect("a good file"), plain, "{end}");
        }
    }

    #[test]
    fn files_of_several_members_are_one_text() {
        for end in ["gz", "xz", "bz2", "zst"] {
            let one =
                std::fs::read(Path::new(DATA).join(format!("three.jsonl.{end}"))).expect("the test's file");
            let mut file =
                tempfile::Builder::new().suffix(&format!(".jsonl.{end}")).tempfile().expect("room");
            file.write_all(&[one.clone(), one].concat()).expect("room");
            let lines: Vec<u64> = rows(file.path()).expect("a good file").iter().map(|row| row.0).collect();
            assert_eq!(lines, [1, 2, 4, 5, 6, 8], "{end}");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_so() {
        for end in ["gz", "xz", "bz2", "zst"] {
            let good =
                std::fs::read(Path::new(DATA).join(format!("three.jsonl.{end}"))).expect("the test's file");
            for at in 6..good.len() {
                let mut file =
                    tempfile::Builder::new().suffix(&format!(".jsonl.{end}")).tempfile().expect("room");
                file.write_all(&good[..at]).expect("room");
                match rows(file.path()) {
                    Err(DataError::BrokenFile { reason, .. }) => {
                        assert!(reason.contains("damaged"), "{reason}")
                    }
                    other => panic!("{end} cut at {at}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_stopped() {
        // More than a gibibyte of spaces in a hundred kilobytes, as zstd writes it.
        let mut file = tempfile::Builder::new().suffix(".jsonl.zst").tempfile().expect("room");
        let mut encoder = zstd::stream::write::Encoder::new(&mut file, 1).expect("an encoder");
        let spaces = vec![b' '; 1 << 20];
        (0..1100).for_each(|_| encoder.write_all(&spaces).expect("room"));
        encoder.finish().expect("room");
        match rows(file.path()) {
            Err(DataError::BrokenFile { reason, .. }) => {
                assert!(reason.ends_with("over 1000 to 1"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    }
}
