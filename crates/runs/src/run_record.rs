//! `run_record.json`: what a run was made of, so that two runs can be told apart by more than their curves.
//!
//! In: configuration, files, program and machine of a run → out: a file in its folder, with the digest of every data and
//! model file (stage 14). The ledger keeps the same record; a folder is complete without it.

use crate::atomic;
use crate::error::{Result, RunError};
use crate::manifest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file's name.
pub const RUN_RECORD: &str = "run_record.json";

/// What a run was made of, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    /// Names the run wherever it is: 16 hexadecimal digits.
    pub uid: String,
    /// Seconds since 1970 by the clock of the machine.
    pub started_at: u64,
    /// As given.
    pub output_dir: PathBuf,
    /// The working folder, which paths of the configuration are relative to; empty in records of earlier programs.
    pub folder: PathBuf,
    /// The processes that have worked on it, one after the other, by their numbers.
    pub processes: Vec<u32>,
    /// Every key of the configuration with its value.
    pub config: Map<String, Value>,
    /// The program that ran.
    pub program: Program,
    /// The machine that it ran on.
    pub machine: Machine,
    /// Data and model files; empty until they have been read through.
    pub files: Vec<FileDigest>,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// How it ended; absent while it goes on, or when it was killed.
    pub end: Option<End>,
}

/// A program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Program {
    /// `0.1.0`.
    pub version: String,
    /// SHA-256 of the executable; empty where it cannot be read.
    pub sha256: String,
}

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Its name in the network, where it has one.
    pub host: String,
    /// Processor, threads and instruction set, or the GPU.
    pub device: String,
    /// `linux x86_64`.
    pub system: String,
}

/// A file that went into a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// What for.
    pub kind: FileKind,
    /// Where it was.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What `sha256sum` prints.
    pub sha256: String,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Rows.
    Data,
    /// Weights, configuration, tokenizer or template of the model, or an adapter.
    Model,
}

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Seconds since 1970.
    pub at: u64,
    /// What it came to.
    pub status: Status,
    /// Steps done.
    pub steps: u64,
    /// SHA-256 of the trained weights.
    pub digest: String,
    /// The error that ended it.
    pub error: Option<String>,
    /// As in `all_results.json`.
    pub results: Map<String, Value>,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It goes on, or was killed.
    #[default]
    Running,
    /// All its steps are done.
    Done,
    /// It was interrupted and can be resumed.
    Interrupted,
    /// An error ended it.
    Failed,
}

impl Status {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }
}

impl RunRecord {
    /// A name that no other run has: of the time, the process and the folder.
    pub fn new_uid(output_dir: &Path) -> String {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let text = format!("{nanos} {} {}", std::process::id(), output_dir.display());
        let hash = Sha256::digest(text.as_bytes());
        hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes `run_record.json` into the run's folder.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn save(&self, folder: &Path) -> Result<()> {
        atomic::write_json(&folder.join(RUN_RECORD), self, 2)
    }

    /// Reads `run_record.json` of a run's folder.
    ///
    /// # Errors
    /// Any I/O error, or content that is no such record.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(RUN_RECORD);
        let text = fs::read(&path).map_err(RunError::at(&path, "read the record of the run"))?;
        serde_json::from_slice(&text).map_err(|e| RunError::Unreadable { path, reason: e.to_string() })
    }
}

/// Seconds since 1970 by the clock of the machine; 0 before.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The digests of files, each read once; those that cannot be read are left out.
pub fn digests(files: &[(FileKind, PathBuf)]) -> Vec<FileDigest> {
    let digest = |(kind, path): &(FileKind, PathBuf)| {
        let bytes = fs::metadata(path).ok()?.len();
        let sha256 = manifest::sha256(path).ok()?;
        Some(FileDigest { kind: *kind, path: path.clone(), bytes, sha256 })
    };
    files.iter().filter_map(digest).collect()
}

/// The files of a model's or an adapter's folder that decide what it is.
pub fn model_files(folder: &Path) -> Vec<PathBuf> {
    const ENDS: [&str; 6] = ["safetensors", "json", "jinja", "model", "txt", "tiktoken"];
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let decides = |path: &PathBuf| {
        let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
        ENDS.contains(&end) && path.is_file()
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(decides).collect();
    files.sort();
    files
}

/// The program that runs now.
pub fn program(version: &str) -> Program {
    let sha256 = std::env::current_exe().and_then(|path| manifest::sha256(&path)).unwrap_or_default();
    Program { version: version.to_owned(), sha256 }
}

/// The name of the machine in the network; empty where it says none.
pub fn host() -> String {
    #[cfg(target_os = "linux")]
    return fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    #[cfg(not(target_os = "linux"))]
    return sysinfo::System::host_name().unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_file_with_the_digests_of_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("rows.jsonl");
        fs::write(&data, "abc").unwrap();
        let files = digests(&[(FileKind::Data, data), (FileKind::Data, folder.path().join("none"))]);
        // FIPS 180-2, appendix B.1.
        assert_eq!(files[0].sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(files.len(), 1, "a file that is not there is left out");
        let record = RunRecord { uid: RunRecord::new_uid(folder.path()), files, ..RunRecord::default() };
        record.save(folder.path()).unwrap();
        assert_eq!(RunRecord::load(folder.path()).unwrap(), record);
    }

    #[test]
    fn a_record_of_a_later_program_with_more_keys_is_read() {
        let record: RunRecord = serde_json::from_str(r#"{"uid": "a", "later": 1}"#).unwrap();
        assert_eq!((record.uid.as_str(), record.end), ("a", None));
    }
}
