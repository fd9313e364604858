//! What the folder of a trained model says about how it is talked to.
//!
//! In: what made ids of the rows that trained it, and the folder with the base model's files → out: the files that change, so
//! that other programs render a conversation as training did and stop where the answers ended (stage 16). With
//! `template: auto` the base model's files say so already, and nothing changes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::encoder::Encoder;
use crate::error::DataError;
use crate::tokenize::NewToken;

/// A file of a model folder: name and content.
pub type NamedFile = (&'static str, String);

/// What a folder is told of what made ids; the tokenizer itself, many times its file, is not kept.
#[derive(Debug)]
pub struct Told {
    /// The tokenizer's folder.
    tokenizer: PathBuf,
    /// Tokens that its files do not have.
    new: Vec<NewToken>,
    conversation: Option<Conversation>,
}

/// How a named template talks.
#[derive(Debug)]
struct Conversation {
    /// As Jinja.
    template: String,
    eos: Option<String>,
    /// Every token that ends an answer.
    stops: Vec<u32>,
}

impl Told {
    /// What there is to say.
    pub fn of(encoder: &Encoder) -> Self {
        let tokenizer = encoder.tokenizer();
        let conversation = encoder.pipeline().and_then(|pipeline| {
            Some(Conversation {
                template: pipeline.template().written(pipeline.policy().mask_history)?,
                eos: pipeline.tokenizer().special_tokens().get("eos_token").cloned(),
                stops: pipeline.stop_ids().to_vec(),
            })
        });
        Self { tokenizer: tokenizer.dir().to_owned(), new: tokenizer.new_tokens().to_vec(), conversation }
    }

    /// The folder of the tokenizer, whose files a trained model's folder has too.
    pub fn tokenizer_folder(&self) -> &Path {
        &self.tokenizer
    }

    /// The files of `folder` that tokens which were added, and a named template, change: `tokenizer.json` gets the tokens,
    /// `tokenizer_config.json` the template as Jinja and the end-of-sequence token it was trained with,
    /// `generation_config.json` every token that ends an answer.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a JSON object.
    pub fn files(&self, folder: &Path) -> Result<Vec<NamedFile>, DataError> {
        let mut changed = Vec::new();
        let mut config = read(folder, "tokenizer_config.json")?.unwrap_or_default();
        if !self.new.is_empty() {
            let tokenizer = read(folder, "tokenizer.json")?;
            if tokenizer.is_none() || config.contains_key("added_tokens_decoder") {
                NewToken::put_into_config(&self.new, &mut config);
            }
            if let Some(mut tokenizer) = tokenizer {
                NewToken::put_into_tokenizer(&self.new, &mut tokenizer);
                changed.push(("tokenizer.json", text(tokenizer)));
            }
        }
        let Some(Conversation { template, eos, stops }) = &self.conversation else {
            if !self.new.is_empty() {
                changed.push(("tokenizer_config.json", text(config)));
            }
            return Ok(changed);
        };
        put_eos(&mut config, eos.as_ref());
        config.insert("chat_template".into(), template.as_str().into());
        changed.push(("tokenizer_config.json", text(config)));
        // Where there is an older map of special tokens, or a template in a file of its own, it would win.
        if let Some(mut map) = read(folder, "special_tokens_map.json")? {
            put_eos(&mut map, eos.as_ref());
            changed.push(("special_tokens_map.json", text(map)));
        }
        if let Some(mut older) = read(folder, "chat_template.json")? {
            older.insert("chat_template".into(), template.as_str().into());
            changed.push(("chat_template.json", text(older)));
        }
        if folder.join("chat_template.jinja").is_file() {
            changed.push(("chat_template.jinja", template.clone()));
        }
        let mut generation = read(folder, "generation_config.json")?.unwrap_or_default();
        let stops = match stops[..] {
            [one] => json!(one),
            _ => json!(stops),
        };
        generation.insert("eos_token_id".into(), stops);
        changed.push(("generation_config.json", text(generation)));
        Ok(changed)
    }
}

fn put_eos(config: &mut Map<String, Value>, eos: Option<&String>) {
    let stored = config.get("eos_token").map(|token| token.get("content").unwrap_or(token).clone());
    if let Some(eos) = eos.filter(|eos| stored != Some(json!(eos))) {
        config.insert("eos_token".into(), eos.as_str().into());
    }
}

fn text(object: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(object))
}

/// The object in a file; `None` if there is no such file.
fn read(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, DataError> {
    let path: PathBuf = folder.join(name);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataError::Io { path, source }),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| DataError::Tokenizer {
        path,
        reason: format!("no JSON object: {error}"),
        help: "download the file again".into(),
    })
}
