//! The program itself, run on the quick start's model: what tests of processes share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The quick start's folder.
pub const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

/// A folder for runs, with a base model, a configuration and a ledger of its own.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// Makes it. `keys` are further lines of the configuration.
    pub fn new(keys: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let text = format!(
            "model_name_or_path: {QUICKSTART}/base\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\n\
             max_samples: 24\ncutoff_len: 64\nfinetuning_type: full\ntrain_from_scratch: true\n\
             per_device_train_batch_size: 2\nlearning_rate: 1e-3\nlogging_steps: 1\ndevice: cpu\nthreads: 1\n{keys}"
        );
        fs::write(place.path("config.yaml"), text).unwrap();
        place
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `sft` with these words.
    pub fn sft(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sft"));
        command
            .args(words)
            .env("SFT_LEDGER", self.path("runs.sqlite"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// `sft train` into a folder of this name.
    pub fn train(&self, output: &str, keys: &[&str]) -> Command {
        let output = format!("output_dir={output}");
        self.sft(&[&["train", "config.yaml", output.as_str()], keys].concat())
    }

    /// The same as a process that is not waited for.
    pub fn start(&self, output: &str, keys: &[&str]) -> Child {
        self.train(output, keys).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// What a program wrote, both ways.
pub fn text(output: &Output) -> String {
    [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat()
}

/// The digest of the trained weights, which `sft train` prints.
pub fn digest(output: &Output) -> String {
    let text = text(output);
    let line = text.lines().find_map(|line| line.strip_prefix("digest of the trained weights: "));
    line.unwrap_or_else(|| panic!("no digest: {text}")).to_owned()
}

/// The lines of a run's log without what depends on the clock.
pub fn log(output: &Path) -> Vec<String> {
    let lines = sft_runs::trainer_log::read(&output.join("trainer_log.jsonl")).expect("whole lines");
    let line = |line: &sft_runs::LogLine| {
        let values = (line.loss, line.eval_loss, line.lr, line.grad_norm, line.total_tokens);
        format!("{} {values:?}", line.current_steps)
    };
    lines.iter().map(line).collect()
}
