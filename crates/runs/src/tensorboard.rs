//! TensorBoard event files.
//!
//! In: named scalars at a step → out: `runs/<name>/events.out.tfevents.*` (stage 14). The format is small enough to be
//! written by hand: TFRecord framing around two protobuf messages.
//!
//! ```text
//! record  = length: u64 le · masked CRC-32C of those 8 bytes: u32 le · payload · masked CRC-32C of the payload: u32 le
//! Event   = 1 wall_time: double · 2 step: int64 · 3 file_version: string · 5 summary: Summary · 7 session_log: SessionLog
//! Summary = 1 value: repeated { 1 tag: string · 2 simple_value: float }
//! ```
//!
//! Sources: TensorFlow's `record_writer.cc`, `event.proto`, `summary.proto`.

use crate::disk::{self, DiskFile};
use crate::error::{Result, RunError};
use crate::timing;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Protobuf wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// An open event file. Every call leaves whole records behind.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: DiskFile,
    bytes: u64,
}

impl EventWriter {
    /// Starts a new event file in `folder`, which is made when missing.
    ///
    /// `continued_after`: the step of the checkpoint that is resumed. TensorBoard then forgets later points of older
    /// files in the folder, so that a curve continues without repeat.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn create(folder: &Path, continued_after: Option<u64>) -> Result<Self> {
        disk::create_dir_all(folder).map_err(RunError::at(folder, "create the folder"))?;
        let now = wall_time();
        let (path, file) = create_file(folder, now)?;
        let mut writer = Self { path, file, bytes: 0 };
        writer.append(&event(now, 0, 3, b"brain.Event:2"))?;
        if let Some(step) = continued_after {
            // SessionLog { status: START = 1 }: later points with this step or a greater one are purged.
            writer.append(&event(now, step + 1, 7, &[1 << 3 | VARINT, 1]))?;
        }
        Ok(writer)
    }

    /// Writes all `scalars` of one step as one event.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        self.append(&event(wall_time(), step, 5, &summary(scalars)))
    }

    fn append(&mut self, payload: &[u8]) -> Result<()> {
        let record = record(payload);
        if let Err(error) = self.file.write_all(&record) {
            // If even this fails, the error below is the one that matters.
            let _ = self.file.set_len(self.bytes);
            return Err(RunError::at(&self.path, "write the events")(error));
        }
        self.bytes += record.len() as u64;
        Ok(())
    }
}

/// `runs/2026-11-23_13-09-52` or `runs/2026-11-23_13-09-52_<run_name>`: a folder name for a run that starts now (UTC).
pub fn folder_name(run_name: Option<&str>) -> String {
    let stamp = timing::format_utc(wall_time() as u64);
    match run_name.map(|name| name.replace(['/', '\\', ':'], "_")).filter(|name| !name.is_empty()) {
        Some(name) => format!("runs/{stamp}_{name}"),
        None => format!("runs/{stamp}"),
    }
}

/// The tag under which transformers shows a key of the log history: `eval_loss` → `eval/loss`, `loss` → `train/loss`.
pub fn tag(key: &str) -> String {
    match key.strip_prefix("eval_") {
        Some(rest) => format!("eval/{rest}"),
        None => format!("train/{key}"),
    }
}

/// A new file whose name no other writer has: seconds, process, and a number when that is not enough.
fn create_file(folder: &Path, now: f64) -> Result<(PathBuf, DiskFile)> {
    let mut number = 0;
    loop {
        let name = format!("events.out.tfevents.{:010}.sft.{}.{number}", now as u64, std::process::id());
        let path = folder.join(name);
        match DiskFile::open(&path, OpenOptions::new().append(true).create_new(true)) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(RunError::at(&path, "create the file")(error)),
        }
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// An `Event` with one member `field` of wire type bytes.
fn event(wall_time: f64, step: u64, field: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![1 << 3 | FIXED64];
    out.extend(wall_time.to_le_bytes());
    if step != 0 {
        out.push(2 << 3 | VARINT);
        varint(&mut out, step);
    }
    bytes_field(&mut out, field, content);
    out
}

fn summary(scalars: &[(String, f64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, value) in scalars {
        let mut member = Vec::new();
        bytes_field(&mut member, 1, tag.as_bytes());
        member.push(2 << 3 | FIXED32);
        member.extend((*value as f32).to_le_bytes());
        bytes_field(&mut out, 1, &member);
    }
    out
}

fn bytes_field(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(field << 3 | BYTES);
    varint(out, content.len() as u64);
    out.extend(content);
}

/// Seven bits a byte, lowest first, the top bit set on all but the last.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(payload);
    out.extend(masked_crc(payload).to_le_bytes());
    out
}

/// TFRecord's mask keeps a CRC stored among the data from looking like data with its CRC.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), bit by bit: a record has some hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, appendix B.4, and the usual check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn the_bytes_are_those_of_tensorboards_own_writer() {
        // tensorboard 2.21: RecordWriter over the same four events.
        let golden = concat!(
            "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110",
            "3c00000000000000c8b7a3520900005040fc54d94110012a2f0a110a0a747261696e2f6c6f737315",
            "000020400a1a0a13747261696e2f6c6561726e696e675f726174651517b7d1384681ed8010000000",
            "0000000095fbfe180900008040fc54d94110ad023a02080184a4031a2400000000000000422b804d",
            "090000c040fc54d9411094b4e4f4cb032a120a100a096576616c2f6c6f7373150000c07fe75580d9",
        );
        let train = [("train/loss".to_owned(), 2.5), ("train/learning_rate".to_owned(), 1e-4)];
        let eval = [("eval/loss".to_owned(), f64::NAN)];
        let events = [
            event(1_700_000_000.5, 0, 3, b"brain.Event:2"),
            event(1_700_000_001.25, 1, 5, &summary(&train)),
            event(1_700_000_002.0, 301, 7, &[8, 1]),
            event(1_700_000_003.0, 123_456_789_012, 5, &summary(&eval)),
        ];
        let ours: String = events.iter().flat_map(|e| record(e)).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, golden);
    }

    #[test]
    fn two_writers_in_one_folder_and_second_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::create(folder.path(), None).unwrap();
        let second = EventWriter::create(folder.path(), Some(7)).unwrap();
        assert_ne!(first.path, second.path);
        assert_eq!(fs::metadata(&first.path).unwrap().len(), first.bytes);
    }

    #[test]
    fn a_run_name_never_leaves_the_runs_folder() {
        assert!(folder_name(Some("../a:b")).ends_with("_.._a_b"));
        assert!(folder_name(None).starts_with("runs/20"));
    }

    #[test]
    fn keys_are_shown_under_train_and_eval() {
        assert_eq!(tag("learning_rate"), "train/learning_rate");
        assert_eq!(tag("eval_loss"), "eval/loss");
        assert_eq!(tag("train_runtime"), "train/train_runtime");
    }
}
