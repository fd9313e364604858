//! `trainer_log.jsonl`: one line a logged step, for people, plots and web pages that follow a run.
//!
//! In: [`LogLine`] → out: one whole line, written with one call (stage 14). The keys are LLaMA-Factory's
//! (`train/callbacks.py`, `LogCallback`), with `grad_norm`, `eval_accuracy`, `eval_perplexity`, `eval_bleu-4` and `eval_rouge-…` added; as there,
//! absent values are left out. A value that is not finite is `null`: JSON has no NaN. Figures of one of several evaluated
//! data sets have its name in theirs, as in `trainer_state.json`: `eval_NAME_loss`.

use crate::atomic;
use crate::disk::DiskFile;
use crate::error::{Result, RunError};
use crate::records::Scores;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The file's name.
pub const TRAINER_LOG: &str = "trainer_log.jsonl";

/// One line of the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// Optimizer steps done.
    pub current_steps: u64,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// Mean training loss of the steps since the last line; `Some(NaN)` is written as `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Loss of an evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Token accuracy of an evaluation, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_accuracy: Option<f64>,
    /// exp(eval_loss).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_perplexity: Option<f64>,
    /// How like the expected answers the model's are: `eval_bleu-4` and so on.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub eval_scores: Option<Scores>,
    /// Name of the evaluated data set, when there are several: a part of the names of its figures in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<String>,
    /// Learning rate of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Gradient norm of the last step, before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Epochs done, with the fraction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<f64>,
    /// 100 · current_steps / total_steps, two decimals.
    pub percentage: f64,
    /// `0:01:23`.
    pub elapsed_time: String,
    /// `0:01:23`.
    pub remaining_time: String,
    /// Input tokens per second since the run began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throughput: Option<f64>,
    /// Input tokens since the run began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<u64>,
    /// Steps so far that changed nothing because their loss or gradient was not finite; absent while there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped_steps: Option<u64>,
    /// What was said of the current step that seemed wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Peak device memory in GiB, two decimals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_allocated: Option<f64>,
}

/// The figures of an evaluation: `loss` is `eval_loss`, and of a data set by itself `eval_NAME_loss`.
const FIGURES: [&str; 3] = ["loss", "accuracy", "perplexity"];

impl LogLine {
    /// The line as it is in the file, without its end.
    fn to_json(&self) -> serde_json::Result<String> {
        let Some(dataset) = &self.eval_dataset else { return serde_json::to_string(self) };
        let Value::Object(line) = serde_json::to_value(self)? else { return serde_json::to_string(self) };
        let renamed = |key: String| match FIGURES.iter().find(|figure| key == format!("eval_{figure}")) {
            Some(figure) => format!("eval_{dataset}_{figure}"),
            None => key,
        };
        let line: Map<String, Value> = line.into_iter().map(|(key, value)| (renamed(key), value)).collect();
        serde_json::to_string(&line)
    }

    /// A line of the file; those of earlier programs have `eval_loss` beside `eval_dataset`, too.
    fn from_json(text: &str) -> serde_json::Result<Self> {
        let mut line: Map<String, Value> = serde_json::from_str(text)?;
        if let Some(dataset) = line.get("eval_dataset").and_then(Value::as_str).map(str::to_owned) {
            for figure in FIGURES {
                if let Some(value) = line.remove(&format!("eval_{dataset}_{figure}")) {
                    line.insert(format!("eval_{figure}"), value);
                }
            }
        }
        serde_json::from_value(Value::Object(line))
    }
}

/// The open log of a run. At any moment the file is whole lines.
#[derive(Debug)]
pub struct TrainerLog {
    path: PathBuf,
    /// Opened by the first line, where the log goes on with what is there.
    file: Option<DiskFile>,
    bytes: u64,
}

impl TrainerLog {
    /// Starts an empty log in `output_dir`, replacing an older one.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn create(output_dir: &Path) -> Result<Self> {
        Self::with_content(output_dir, b"")
    }

    /// Continues from the snapshot that [`save`](TrainerLog::save) wrote into `checkpoint`: what came after it is gone,
    /// what came before it is there, whatever happened to the file in `output_dir`.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn restore(output_dir: &Path, checkpoint: &Path) -> Result<Self> {
        let snapshot = checkpoint.join(TRAINER_LOG);
        let content = fs::read(&snapshot).map_err(RunError::at(&snapshot, "read the log"))?;
        Self::with_content(output_dir, &content)
    }

    /// Goes on with the log in `output_dir`, or starts one, as soon as there is a line to write.
    pub fn at(output_dir: &Path) -> Self {
        Self { path: output_dir.join(TRAINER_LOG), file: None, bytes: 0 }
    }

    fn with_content(output_dir: &Path, content: &[u8]) -> Result<Self> {
        let path = output_dir.join(TRAINER_LOG);
        atomic::write(&path, content)?;
        let file = DiskFile::open(&path, OpenOptions::new().append(true));
        let file = file.map_err(RunError::at(&path, "open the log"))?;
        Ok(Self { path, file: Some(file), bytes: content.len() as u64 })
    }

    /// Appends one line with one write. When that fails half-way (a full disk), the half is taken back.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn append(&mut self, line: &LogLine) -> Result<()> {
        let mut text =
            line.to_json().map_err(|e| RunError::at(&self.path, "write the log")(e.into()))?.into_bytes();
        text.push(b'\n');
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = DiskFile::open(&self.path, OpenOptions::new().append(true).create(true));
                let file = file.map_err(RunError::at(&self.path, "open the log"))?;
                self.bytes =
                    fs::metadata(&self.path).map_err(RunError::at(&self.path, "read the log"))?.len();
                none.insert(file)
            }
        };
        if let Err(error) = file.write_all(&text) {
            // If even this fails, the error below is the one that matters.
            let _ = file.set_len(self.bytes);
            return Err(RunError::at(&self.path, "write the log")(error));
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Writes a copy of the log so far into the folder of a checkpoint.
    ///
    /// # Errors
    /// Any I/O error, with the path.
    pub fn save(&self, checkpoint: &Path) -> Result<()> {
        let mut content = fs::read(&self.path).map_err(RunError::at(&self.path, "read the log"))?;
        content.truncate(self.bytes as usize);
        atomic::write(&checkpoint.join(TRAINER_LOG), &content)
    }
}

/// Reads a log, ours or LLaMA-Factory's; keys that are not in [`LogLine`] are passed over.
///
/// # Errors
/// Any I/O error, or a line that is not such a JSON object, with path and line number.
pub fn read(path: &Path) -> Result<Vec<LogLine>> {
    let text = fs::read_to_string(path).map_err(RunError::at(path, "read the log"))?;
    let parse = |(index, line): (usize, &str)| {
        LogLine::from_json(line).map_err(|e| RunError::Unreadable {
            path: path.to_path_buf(),
            reason: format!("line {}: {e}", index + 1),
        })
    };
    text.lines().enumerate().map(parse).collect()
}

/// The last whole line of a log; none of one without.
///
/// # Errors
/// As [`read`].
pub fn last(path: &Path) -> Result<Option<LogLine>> {
    /// A line is shorter.
    const MOST: u64 = 1 << 14;
    let length = fs::metadata(path).map_err(RunError::at(path, "read the log"))?.len();
    let mut file = fs::File::open(path).map_err(RunError::at(path, "read the log"))?;
    let mut text = Vec::new();
    let read =
        file.seek(SeekFrom::Start(length.saturating_sub(MOST))).and_then(|_| file.read_to_end(&mut text));
    read.map_err(RunError::at(path, "read the log"))?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let line = text[..whole].rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.is_empty() {
        return Ok(None);
    }
    let line = LogLine::from_json(&String::from_utf8_lossy(line));
    line.map(Some).map_err(|e| RunError::Unreadable { path: path.to_path_buf(), reason: e.to_string() })
}

/// The whole lines of a log from byte `from` on, and where they end: what has come since somebody looked.
///
/// # Errors
/// As [`read`].
pub fn read_from(path: &Path, from: u64) -> Result<(Vec<LogLine>, u64)> {
    let at = || RunError::at(path, "read the log");
    let mut file = fs::File::open(path).map_err(at())?;
    file.seek(SeekFrom::Start(from)).map_err(at())?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(at())?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let unreadable = |reason: String| RunError::Unreadable { path: path.to_path_buf(), reason };
    let lines = std::str::from_utf8(&text[..whole]).map_err(|e| unreadable(e.to_string()))?.lines();
    let lines = lines.map(|line| LogLine::from_json(line).map_err(|e| unreadable(e.to_string())));
    Ok((lines.collect::<Result<_>>()?, from + whole as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> LogLine {
        LogLine { current_steps: step, total_steps: 10, loss: Some(0.5), ..LogLine::default() }
    }

    #[test]
    fn what_has_come_since_is_read_by_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TRAINER_LOG);
        fs::write(&path, "{\"current_steps\":1}\n{\"current").unwrap();
        let (lines, end) = read_from(&path, 0).unwrap();
        assert_eq!((lines.len(), end), (1, 20));
        assert_eq!(last(&path).unwrap().map(|line| line.current_steps), Some(1));
        fs::write(&path, "{\"current_steps\":1}\n{\"current_steps\":2}\n").unwrap();
        let (lines, end) = read_from(&path, end).unwrap();
        assert_eq!((lines[0].current_steps, lines.len(), end), (2, 1, 40));
        assert_eq!(read_from(&path, end).unwrap(), (vec![], 40));
        assert_eq!(last(&path).unwrap().map(|line| line.current_steps), Some(2));
        fs::write(&path, "").unwrap();
        assert_eq!(last(&path).unwrap(), None);
    }

    #[test]
    fn a_line_has_llama_factorys_keys_and_leaves_out_what_is_absent() {
        let line = LogLine {
            lr: Some(1e-4),
            epoch: Some(0.25),
            percentage: 50.0,
            elapsed_time: "0:00:05".into(),
            remaining_time: "0:00:05".into(),
            throughput: Some(12.5),
            total_tokens: Some(64),
            ..line(5)
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"current_steps":5,"total_steps":10,"loss":0.5,"lr":0.0001,"epoch":0.25,"percentage":50.0,"elapsed_time":"0:00:05","remaining_time":"0:00:05","throughput":12.5,"total_tokens":64}"#
        );
    }

    #[test]
    fn figures_of_a_data_set_by_itself_have_its_name_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let of = |dataset: Option<&str>| LogLine {
            eval_loss: Some(2.0),
            eval_accuracy: Some(0.5),
            eval_dataset: dataset.map(str::to_owned),
            ..LogLine::default()
        };
        let mut log = TrainerLog::create(folder.path()).unwrap();
        let lines = [of(Some("mine")), of(None)];
        lines.iter().for_each(|line| log.append(line).unwrap());
        let path = folder.path().join(TRAINER_LOG);
        let text = fs::read_to_string(&path).unwrap();
        let (first, last) = text.trim_end().split_once('\n').unwrap();
        assert!(first.contains(r#""eval_mine_loss":2.0,"eval_mine_accuracy":0.5"#), "{first}");
        assert!(!first.contains(r#""eval_loss""#) && last.contains(r#""eval_loss":2.0"#), "{text}");
        assert_eq!(read(&path).unwrap(), lines);
    }

    #[test]
    fn a_line_with_the_names_of_earlier_programs_reads_back() {
        let line = LogLine::from_json(r#"{"eval_loss": 2.0, "eval_dataset": "mine"}"#).unwrap();
        assert_eq!((line.eval_loss, line.eval_dataset.as_deref()), (Some(2.0), Some("mine")));
    }

    #[test]
    fn a_loss_that_is_not_finite_is_null_and_the_line_stays_json() {
        let text = serde_json::to_string(&LogLine { loss: Some(f64::NAN), ..line(1) }).unwrap();
        assert!(text.contains(r#""loss":null"#), "{text}");
    }

    #[test]
    fn every_append_is_on_the_disk_as_a_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = TrainerLog::create(folder.path()).unwrap();
        for step in 1..=3 {
            log.append(&line(step)).unwrap();
            assert_eq!(read(&folder.path().join(TRAINER_LOG)).unwrap().len(), step as usize);
        }
    }

    #[test]
    fn a_restored_log_continues_without_gap_or_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = tempfile::tempdir().unwrap();
        let mut log = TrainerLog::create(folder.path()).unwrap();
        log.append(&line(1)).unwrap();
        log.append(&line(2)).unwrap();
        log.save(checkpoint.path()).unwrap();
        log.append(&line(3)).unwrap();
        drop(log);
        let mut log = TrainerLog::restore(folder.path(), checkpoint.path()).unwrap();
        log.append(&line(3)).unwrap();
        let steps: Vec<_> =
            read(&folder.path().join(TRAINER_LOG)).unwrap().iter().map(|l| l.current_steps).collect();
        assert_eq!(steps, [1, 2, 3]);
    }

    #[test]
    fn a_llama_factory_line_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TRAINER_LOG);
        fs::write(&path, "{\"current_steps\": 10, \"total_steps\": 96, \"loss\": 1.25, \"reward\": 1, \"percentage\": 10.42, \"elapsed_time\": \"0:00:12\", \"remaining_time\": \"0:01:43\"}\n").unwrap();
        assert_eq!(read(&path).unwrap()[0].loss, Some(1.25));
    }

    #[test]
    fn a_broken_line_is_named_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TRAINER_LOG);
        fs::write(&path, "{\"current_steps\": 1}\n{\"current").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_reported_as_such() {
        let path = PathBuf::from("/dev/full");
        let file = DiskFile::open(&path, OpenOptions::new().append(true)).unwrap();
        let mut log = TrainerLog { path, file: Some(file), bytes: 0 };
        let error = log.append(&line(1)).unwrap_err();
        assert!(matches!(error, RunError::DiskFull { .. }), "{error}");
    }
}
