//! What ids and labels depend on, by content: data, tokenizer, template, options, and the program that made them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dataset::{self, DatasetOptions};
use crate::error::DataError;
use crate::labels::Policy;
use crate::template::TemplateOptions;
use crate::tokenize::NewTokens;

/// Raised when the same inputs give other ids or labels, or the form of a cache changes.
const FORM: u32 = 2;

/// Everything that decides ids and labels.
#[derive(Debug, Clone, Copy)]
pub struct KeyInputs<'a> {
    /// Which rows.
    pub dataset: &'a DatasetOptions,
    /// The folder of the model: its tokenizer and its template.
    pub model: &'a Path,
    /// What is added to its tokenizer.
    pub new_tokens: &'a NewTokens,
    /// Name of the template.
    pub template: &'a str,
    /// What the template is asked for.
    pub template_options: &'a TemplateOptions,
    /// Which tokens are trained.
    pub policy: &'a Policy,
    /// Texts are one stream (`stage: pt` with `packing`).
    pub packing: bool,
}

/// Digests of what ids and labels depend on, by what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    parts: Vec<(String, String)>,
}

impl Key {
    /// The key of a run; reads all data files and the tokenizer's once.
    ///
    /// # Errors
    /// A data set or a file that cannot be found or read.
    pub fn new(inputs: &KeyInputs<'_>) -> Result<Self, DataError> {
        let mut data = blake3::Hasher::new();
        for (description, files) in dataset::inputs(inputs.dataset)? {
            data.update(description.as_bytes());
            add_files(&mut data, &files)?;
        }
        let mut tokenizer = blake3::Hasher::new();
        add_files(&mut tokenizer, &tokenizer_files(inputs.model)?)?;
        tokenizer.update(format!("{:?}", inputs.new_tokens).as_bytes());
        let template = format!("{} {:?}", inputs.template, inputs.template_options);
        let options = format!("{:?} {:?} {}", inputs.dataset, inputs.policy, inputs.packing);
        Ok(Self::of_parts([
            ("data", &*data.finalize().to_hex()),
            ("tokenizer", &tokenizer.finalize().to_hex()),
            ("template", &blake3::hash(template.as_bytes()).to_hex()),
            ("set of options", &blake3::hash(options.as_bytes()).to_hex()),
            ("version of the program", &blake3::hash(program().as_bytes()).to_hex()),
        ]))
    }

    pub(super) fn of_parts<'a>(parts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self { parts: parts.into_iter().map(|(what, digest)| (what.to_owned(), digest.to_owned())).collect() }
    }

    /// One name for all of it.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.parts.iter().for_each(|(what, digest)| {
            hasher.update(format!("{what} {digest}\n").as_bytes());
        });
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// What another key was made of otherwise.
    pub(super) fn differs(&self, other: &Self) -> Vec<String> {
        let is_other = |(what, _): &&(String, String)| {
            let of = |key: &Self| key.parts.iter().find(|(name, _)| name == what).map(|part| part.1.clone());
            of(self) != of(other)
        };
        self.parts.iter().filter(is_other).map(|(what, _)| what.clone()).collect()
    }
}

/// The program: its version, and of what is built anew all the time, when.
fn program() -> String {
    let built = std::env::current_exe().and_then(fs::metadata);
    let built = built.map(|file| (file.len(), file.modified().ok()));
    format!("{} {FORM} {built:?}", env!("CARGO_PKG_VERSION"))
}

/// Files of a model's folder that say how it tokenises and what its template is.
fn tokenizer_files(model: &Path) -> Result<Vec<PathBuf>, DataError> {
    const ENDS: [&str; 5] = ["json", "jinja", "model", "txt", "tiktoken"];
    let mut files = Vec::new();
    for folder in [model.to_owned(), model.join("additional_chat_templates")] {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(_) if folder != model => continue,
            Err(source) => return Err(DataError::Io { path: folder, source }),
        };
        let described = |path: &PathBuf| {
            let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            ENDS.contains(&end) && !name.ends_with(".index.json") && path.is_file()
        };
        files.extend(entries.flatten().map(|entry| entry.path()).filter(described));
    }
    files.sort();
    Ok(files)
}

/// Adds the names, the lengths and the contents of files.
fn add_files(hasher: &mut blake3::Hasher, files: &[PathBuf]) -> Result<(), DataError> {
    const CHUNK: usize = 8 << 20;
    let mut chunk = Vec::new();
    for path in files {
        let failed = |source| DataError::Io { path: path.clone(), source };
        let mut file = fs::File::open(path).map_err(failed)?;
        hasher.update(path.as_os_str().as_encoded_bytes());
        loop {
            chunk.clear();
            let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).map_err(failed)?;
            // The length of each chunk too, so that no two lists of files give the same bytes.
            hasher.update(&(read as u64).to_le_bytes());
            if read == 0 {
                break;
            }
            hasher.update_rayon(&chunk);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Mix, ProblemLimit, Stage};

    #[test]
    fn a_change_of_anything_is_another_key_and_says_of_what() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (data, model) = (folder.path().join("d.jsonl"), folder.path().join("model"));
        fs::create_dir(&model).expect("room");
        fs::write(&data, "{}").expect("room");
        fs::write(model.join("tokenizer.json"), "{}").expect("room");
        fs::write(model.join("model.safetensors"), "weights").expect("room");
        let mut dataset = DatasetOptions {
            dataset: vec!["d.jsonl".to_owned()],
            eval_dataset: Vec::new(),
            dataset_dir: folder.path().to_owned(),
            hub: crate::hub::HubOptions::default(),
            stage: Stage::Sft,
            max_samples: None,
            val_size: None,
            mix: Mix::default(),
            eval_on_each_dataset: false,
            streaming: None,
            seed: 1,
            problem_limit: ProblemLimit::Rows(0),
        };
        let (options, mut policy) = (TemplateOptions::default(), Policy::default());
        let key = |dataset: &DatasetOptions, template: &str, policy: &Policy| {
            let (template_options, packing, model) = (&options, false, model.as_path());
            let new_tokens = &NewTokens::default();
            Key::new(&KeyInputs { dataset, model, new_tokens, template, template_options, policy, packing })
                .expect("a key")
        };
        let first = key(&dataset, "auto", &policy);
        assert_eq!(first, key(&dataset, "auto", &policy));
        fs::write(model.join("model.safetensors"), "others").expect("room");
        assert!(first.differs(&key(&dataset, "auto", &policy)).is_empty(), "weights change no ids");
        assert_eq!(first.differs(&key(&dataset, "qwen", &policy)), ["template"]);
        policy.cutoff_len = 7;
        assert_eq!(first.differs(&key(&dataset, "auto", &policy)), ["set of options"]);
        policy = Policy::default();
        dataset.seed = 2;
        assert_eq!(first.differs(&key(&dataset, "auto", &policy)), ["set of options"]);
        dataset.seed = 1;
        fs::write(&data, "{ }").expect("room");
        assert_eq!(first.differs(&key(&dataset, "auto", &policy)), ["data"]);
        fs::write(&data, "{}").expect("room");
        fs::write(model.join("chat_template.jinja"), "").expect("room");
        assert_eq!(first.differs(&key(&dataset, "auto", &policy)), ["tokenizer"]);
    }
}
