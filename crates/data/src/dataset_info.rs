//! `dataset_info.json`: the names of data sets, where their files are and how they are written.
//!
//! In: a name of the configuration. Out: an [`Entry`] with a path and a format. The file is
//! LLaMA-Factory's; what is not supported (scripts, clouds, preference data, media) is refused
//! by name. Unlike there, a column or tag that is not listed keeps its default name when others are
//! listed.

mod split;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::dataset::Stage;
use crate::error::{DataError, nearby};
use crate::formats::{AlpacaColumns, Format, PlainColumns, Tags, TurnColumns};
use crate::hub::{self, HubDataset, HubOptions, Site};
use crate::rows::{FileKind, Source, is_of_split, kind_of};

pub use split::{Boundary, SplitPart};

/// Name of the file in `dataset_dir`.
pub const DATASET_INFO: &str = "dataset_info.json";

const HUBS: [(&str, Option<Site>); 3] =
    [("hf_hub_url", Some(Site::HuggingFace)), ("ms_hub_url", Some(Site::ModelScope)), ("om_hub_url", None)];
/// The `dataset_dir` with which every name is one of a hub.
const ONLINE: &str = "ONLINE";
const KEYS: [&str; 14] = [
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
    "tags",
];
const COLUMNS: [&str; 14] = [
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios",
    "chosen", "rejected", "kto_tag", "loss",
];
/// Columns of what is no text.
pub(crate) const MEDIA: [&str; 3] = ["images", "videos", "audios"];
const TAGS: [&str; 7] =
    ["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"];

/// A data set of local files.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name in the configuration.
    pub name: String,
    /// File or folder.
    pub path: PathBuf,
    /// Which of the files and of their rows count; never empty.
    pub split: Vec<SplitPart>,
    /// How the rows are written; `None`: to be told from their columns.
    pub format: Option<Format>,
    /// Columns that the entry names.
    pub listed: Vec<String>,
    /// How many rows to draw, if not each once.
    pub num_samples: Option<usize>,
    /// What a reader of the entry would not expect.
    pub notes: Vec<String>,
}

/// The data set `name`: an entry of `dataset_info.json` in `dataset_dir`, or a path (as it is, or
/// below `dataset_dir`).
///
/// # Errors
/// When there is no such entry or path, or the entry is wrong or needs what is not supported.
pub fn find(name: &str, dataset_dir: &Path, stage: Stage, hub: &HubOptions) -> Result<Entry, DataError> {
    if dataset_dir == Path::new(ONLINE) {
        let reader = EntryReader { path: dataset_dir, name, dataset_dir, hub };
        let site = if hub.prefer_modelscope { Site::ModelScope } else { Site::HuggingFace };
        let (path, split) = reader.fetched(&Map::new(), site, name)?;
        let format = (stage == Stage::Pt).then(|| Format::Plain(PlainColumns::default()));
        return Ok(Entry {
            name: name.to_owned(),
            path,
            split,
            format,
            listed: Vec::new(),
            num_samples: None,
            notes: Vec::new(),
        });
    }
    let info = read_info(dataset_dir)?;
    if let Some((path, entries)) = &info
        && let Some(entry) = entries.get(name)
    {
        return EntryReader { path, name, dataset_dir, hub }.read(entry, stage);
    }
    for path in [PathBuf::from(name), dataset_dir.join(name)] {
        if path.exists() && !name.is_empty() {
            let format = (stage == Stage::Pt).then(|| Format::Plain(PlainColumns::default()));
            let (name, notes) = (name.to_owned(), Vec::new());
            let split = vec![SplitPart::default()];
            return Ok(Entry { name, path, split, format, listed: Vec::new(), num_samples: None, notes });
        }
    }
    Err(unknown(name, dataset_dir, info.as_ref().map(|(_, entries)| entries)))
}

/// The names that a folder's `dataset_info.json` gives; none when it has no such file.
///
/// # Errors
/// A file that cannot be read, or is none.
pub fn names(dataset_dir: &Path) -> Result<Vec<String>, DataError> {
    let info = read_info(dataset_dir)?;
    Ok(info.map(|(_, entries)| entries.into_iter().map(|(name, _)| name).collect()).unwrap_or_default())
}

/// `num_samples` at most: more is a slip of the pen that memory would not hold.
const MOST_SAMPLES: u64 = 100_000_000;

/// The path and the entries of a `dataset_info.json`.
type Info = (PathBuf, Map<String, Value>);

/// `dataset_info.json` of a folder; `None` when the folder has none.
fn read_info(dataset_dir: &Path) -> Result<Option<Info>, DataError> {
    let given = dataset_dir.to_string_lossy();
    if given.starts_with("REMOTE:") {
        return Err(DataError::Option {
            key: "dataset_dir",
            reason: format!("`{given}` names a {DATASET_INFO} on a hub, which is not read"),
            help: format!("download it, and name the folder; or name data sets of a hub with `{ONLINE}`"),
        });
    }
    let path = dataset_dir.join(DATASET_INFO);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataError::Io { path, source }),
    };
    let wrong = |path, reason| DataError::DatasetInfo {
        path,
        reason,
        nearby: Vec::new(),
        help: r#"the file is one JSON object: {"name": {"file_name": "data.json"}, …}"#.to_owned(),
    };
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(entries)) => Ok(Some((path, entries))),
        Ok(other) => Err(wrong(path, format!("the file holds {}, not an object", kind_of(&other)))),
        Err(error) => Err(wrong(path, format!("invalid JSON: {error}"))),
    }
}

/// The error for a name that is neither an entry nor a path.
fn unknown(name: &str, dataset_dir: &Path, entries: Option<&Map<String, Value>>) -> DataError {
    let info = dataset_dir.join(DATASET_INFO);
    let mut known: Vec<String> = entries.into_iter().flat_map(Map::keys).cloned().collect();
    for path in [PathBuf::from(name), dataset_dir.join(name)] {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let files = fs::read_dir(folder.unwrap_or(Path::new("."))).into_iter().flatten().flatten();
        let below = Path::new(name).parent().unwrap_or(Path::new(""));
        known.extend(
            files
                .filter(|file| file.path().is_dir() || FileKind::of(&file.path()).is_ok())
                .map(|file| below.join(file.file_name()))
                .filter(|file| !file.ends_with(DATASET_INFO))
                .map(|file| file.to_string_lossy().into_owned()),
        );
    }
    known.sort_unstable();
    known.dedup();
    let (reason, help) = match entries {
        Some(_) => (
            format!("is no entry of `{}`, and no file or folder", info.display()),
            "check the name; a data set is an entry of that file, or the path of a data file".to_owned(),
        ),
        None => (
            format!("is no file or folder, and `{}` does not exist", info.display()),
            format!("set `dataset_dir` to the folder that holds {DATASET_INFO}, or name a data file"),
        ),
    };
    DataError::UnknownDataset {
        name: name.to_owned(),
        reason,
        nearby: nearby(name, known.iter().map(String::as_str)),
        help,
    }
}

/// Where a data set is.
enum Location<'a> {
    Local(PathBuf),
    Hub(Site, &'a str),
}

/// Reads one entry; knows what to name in a message.
struct EntryReader<'a> {
    path: &'a Path,
    name: &'a str,
    dataset_dir: &'a Path,
    hub: &'a HubOptions,
}

impl EntryReader<'_> {
    fn read(&self, entry: &Value, stage: Stage) -> Result<Entry, DataError> {
        let Value::Object(entry) = entry else {
            return Err(self.wrong("", format!("is {}, not an object", kind_of(entry))));
        };
        self.check_keys(entry, "", &KEYS)?;
        if entry.get("ranking").is_some_and(|ranking| *ranking == true) {
            return Err(self.preference("ranking"));
        }
        let mut notes = Vec::new();
        let (path, split) = match self.location(entry, &mut notes)? {
            Location::Local(path) => {
                let split = self.split(entry, &path)?;
                (path, split)
            }
            Location::Hub(site, repo) => self.fetched(entry, site, repo)?,
        };
        let columns = self.names(entry, "columns", &COLUMNS)?;
        let tags = self.names(entry, "tags", &TAGS)?;
        let format = self.format(entry, &columns, &tags, stage, &mut notes)?;
        let num_samples = match entry.get("num_samples") {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_u64() {
                Some(count @ 1..=MOST_SAMPLES) => Some(count as usize),
                _ => {
                    let reason = format!("is {value}, not a whole number from 1 to {MOST_SAMPLES}");
                    return Err(self.wrong("num_samples", reason));
                }
            },
        };
        let is_read = |column: &&str| format.columns().contains(column);
        let listed = columns.values().filter_map(Value::as_str).filter(is_read).map(str::to_owned).collect();
        Ok(Entry {
            name: self.name.to_owned(),
            path,
            split,
            format: Some(format),
            listed,
            num_samples,
            notes,
        })
    }

    /// The data set of an entry that is on a hub, fetched: a name for it, and its files.
    fn fetched(
        &self,
        entry: &Map<String, Value>,
        site: Site,
        repo: &str,
    ) -> Result<(PathBuf, Vec<SplitPart>), DataError> {
        let (subset, folder) = (self.text(entry, "subset")?, self.text(entry, "folder")?);
        let mut parts = self.parts(self.text(entry, "split")?.unwrap_or("train"))?;
        let splits: Vec<&str> = parts.iter().map(|part| part.name.as_deref().unwrap_or("train")).collect();
        let files = hub::files(self.hub, HubDataset { site, repo, subset, folder }, &splits)?;
        for (part, files) in parts.iter_mut().zip(files) {
            part.files = Some(files);
        }
        Ok((PathBuf::from(repo), parts))
    }

    /// Where the data set of an entry is; scripts and clouds are refused.
    fn location<'e>(
        &self,
        entry: &'e Map<String, Value>,
        notes: &mut Vec<String>,
    ) -> Result<Location<'e>, DataError> {
        let file_name = self.text(entry, "file_name")?.map(|name| self.dataset_dir.join(name));
        let mut hubs = Vec::new();
        for (key, site) in HUBS {
            hubs.extend(self.text(entry, key)?.map(|repo| (key, site, repo)));
        }
        if let (Some((key, ..)), Some(path)) = (hubs.first(), file_name.as_ref().filter(|path| path.exists()))
        {
            notes.push(format!("`{key}` is not used: `{}` is read", path.display()));
        } else if let Some((key, _, repo)) = hubs.first().copied() {
            let wanted = if self.hub.prefer_modelscope { Site::ModelScope } else { Site::HuggingFace };
            let known = || hubs.iter().filter_map(|(_, site, repo)| Some(((*site)?, *repo)));
            return match known().find(|(site, _)| *site == wanted).or(known().next()) {
                Some((site, repo)) => Ok(Location::Hub(site, repo)),
                None => Err(DataError::Unsupported {
                    dataset: self.name.to_owned(),
                    key: key.to_owned(),
                    reason: format!("`{repo}` is on a hub that is not known here"),
                    help: format!(
                        "download it and set `file_name` to the file or folder in {}",
                        self.path.display()
                    ),
                }),
            };
        }
        for (key, what) in
            [("script_url", "a loading script would be run"), ("cloud_file_name", "it is in a cloud's store")]
        {
            if entry.get(key).is_some_and(|value| !value.is_null()) {
                return Err(DataError::Unsupported {
                    dataset: self.name.to_owned(),
                    key: key.to_owned(),
                    reason: format!("{what}, and data sets are read from local files only"),
                    help: "save the data as json, jsonl, csv or parquet and set `file_name`".to_owned(),
                });
            }
        }
        let Some(mut path) = file_name else {
            return Err(self.wrong("file_name", "is missing".to_owned()));
        };
        for key in ["folder", "subset"] {
            if let Some(below) = self.text(entry, key)? {
                if path.is_file() {
                    return Err(self.wrong(key, format!("is `{below}`, but `file_name` is a single file")));
                }
                path.push(below);
            }
        }
        Ok(Location::Local(path))
    }

    /// The parts of a `split`.
    fn parts(&self, split: &str) -> Result<Vec<SplitPart>, DataError> {
        split::parse(split).map_err(|reason| {
            let help = "(`train`, `train[:10%]`, `train[100:]+test`)";
            self.wrong("split", format!("is `{split}`: {reason} {help}"))
        })
    }

    /// Which of the files and rows below `path` count.
    fn split(&self, entry: &Map<String, Value>, path: &Path) -> Result<Vec<SplitPart>, DataError> {
        let Some(split) = self.text(entry, "split")? else {
            return Ok(vec![SplitPart::default()]);
        };
        let mut parts = self.parts(split)?;
        for part in &mut parts {
            let Some(name) = part.name.clone() else { continue };
            if path.is_file()
                && name != "train"
                && !is_of_split(path.file_name().map_or(path, Path::new), &name)
            {
                return Err(self.wrong("split", format!("is `{split}`, but `file_name` is a single file")));
            }
            // Files that do not tell their split are all `train`, as in Hugging Face's loaders.
            let told = name != "train" || Source::open(path, Some(&name)).is_ok();
            part.name = part.name.take().filter(|_| path.is_dir() && told);
        }
        Ok(parts)
    }

    fn format(
        &self,
        entry: &Map<String, Value>,
        columns: &Map<String, Value>,
        tags: &Map<String, Value>,
        stage: Stage,
        notes: &mut Vec<String>,
    ) -> Result<Format, DataError> {
        for key in MEDIA {
            if columns.get(key).is_some_and(|column| !column.is_null()) {
                return Err(DataError::Unsupported {
                    dataset: self.name.to_owned(),
                    key: format!("columns.{key}"),
                    reason: "only text is trained".to_owned(),
                    help: "leave this data set out of `dataset`".to_owned(),
                });
            }
        }
        for key in ["chosen", "rejected", "kto_tag"] {
            if columns.get(key).is_some_and(|column| !column.is_null()) {
                return Err(self.preference(&format!("columns.{key}")));
            }
        }
        let formatting = self.text(entry, "formatting")?.unwrap_or("alpaca");
        let (format, reads, uses_tags): (Format, &[&str], bool) = match (formatting, stage) {
            ("alpaca", Stage::Pt) => {
                let text = columns.get("prompt").and_then(Value::as_str).map(str::to_owned);
                (Format::Plain(PlainColumns { text }), &["prompt"], false)
            }
            ("alpaca", Stage::Sft) => {
                let reads = &["prompt", "query", "response", "history", "system", "tools", "loss"];
                (Format::Alpaca(self.alpaca(columns)?), reads, false)
            }
            ("sharegpt" | "openai", Stage::Pt) => {
                return Err(DataError::Format {
                    dataset: self.name.to_owned(),
                    reason: format!(
                        "`stage: pt` reads plain text, and the data set's formatting is {formatting}"
                    ),
                    help: "set `stage: sft`, or name a data set with a column of text".to_owned(),
                });
            }
            ("sharegpt", Stage::Sft) => {
                let names = turn_columns(TurnColumns::sharegpt(), columns, tags);
                (Format::Sharegpt(names), &["messages", "system", "tools"], true)
            }
            ("openai", Stage::Sft) => {
                let names = turn_columns(TurnColumns::openai(), columns, tags);
                (Format::OpenAi(names), &["messages", "system", "tools"], true)
            }
            (other, _) => {
                return Err(DataError::DatasetInfo {
                    path: self.path.to_owned(),
                    reason: format!("`{}`: `formatting` is `{other}`", self.name),
                    nearby: nearby(other, ["alpaca", "sharegpt", "openai"]),
                    help: "it is one of alpaca, sharegpt, openai".to_owned(),
                });
            }
        };
        let unread = columns.keys().filter(|key| !reads.contains(&key.as_str()));
        let mut unread: Vec<String> = unread.map(|key| format!("`columns.{key}`")).collect();
        if !uses_tags && !tags.is_empty() {
            unread.push("`tags`".to_owned());
        }
        if !unread.is_empty() {
            notes.push(format!("{} not read: formatting is {formatting}", unread.join(", ")));
        }
        Ok(format)
    }

    fn alpaca(&self, columns: &Map<String, Value>) -> Result<AlpacaColumns, DataError> {
        let mut names = AlpacaColumns::default();
        for (key, name) in [("prompt", &mut names.prompt), ("response", &mut names.response)] {
            match columns.get(key) {
                None => {}
                Some(Value::String(column)) => *name = column.clone(),
                Some(_) => {
                    return Err(
                        self.wrong(&format!("columns.{key}"), "is null, but every row needs it".to_owned())
                    );
                }
            }
        }
        for (key, name) in [
            ("query", &mut names.query),
            ("history", &mut names.history),
            ("system", &mut names.system),
            ("tools", &mut names.tools),
            ("loss", &mut names.loss),
        ] {
            if let Some(column) = columns.get(key) {
                *name = column.as_str().map(str::to_owned);
            }
        }
        Ok(names)
    }

    /// An object of names (`columns`, `tags`) with known keys, each a text or null.
    fn names(
        &self,
        entry: &Map<String, Value>,
        key: &str,
        known: &[&str],
    ) -> Result<Map<String, Value>, DataError> {
        let names = match entry.get(key) {
            None | Some(Value::Null) => return Ok(Map::new()),
            Some(Value::Object(names)) => names,
            Some(other) => {
                return Err(self.wrong(key, format!("is {}, not an object", kind_of(other))));
            }
        };
        self.check_keys(names, key, known)?;
        for (inner, value) in names {
            if !value.is_string() && !value.is_null() {
                return Err(
                    self.wrong(&format!("{key}.{inner}"), format!("is {}, not a name", kind_of(value)))
                );
            }
        }
        Ok(names.clone())
    }

    fn check_keys(&self, object: &Map<String, Value>, within: &str, known: &[&str]) -> Result<(), DataError> {
        match object.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(DataError::DatasetInfo {
                path: self.path.to_owned(),
                reason: match within {
                    "" => format!("`{}`: unknown key `{key}`", self.name),
                    within => format!("`{}`: unknown key `{key}` in `{within}`", self.name),
                },
                nearby: nearby(key, known.iter().copied()),
                help: format!("known are {}", known.join(", ")),
            }),
        }
    }

    fn text<'a>(&self, entry: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, DataError> {
        match entry.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, format!("is {}, not a text", kind_of(other)))),
        }
    }

    fn wrong(&self, key: &str, reason: String) -> DataError {
        let key = if key.is_empty() { String::new() } else { format!(" `{key}`") };
        DataError::DatasetInfo {
            path: self.path.to_owned(),
            reason: format!("`{}`:{key} {reason}", self.name),
            nearby: Vec::new(),
            help: "mend the entry".to_owned(),
        }
    }

    fn preference(&self, key: &str) -> DataError {
        DataError::Unsupported {
            dataset: self.name.to_owned(),
            key: key.to_owned(),
            reason: "preference data trains reward models, DPO and KTO, not supervised fine-tuning"
                .to_owned(),
            help: "name a data set of questions and answers".to_owned(),
        }
    }
}

/// The default columns and tags of a format with those that an entry names.
fn turn_columns(
    mut names: TurnColumns,
    columns: &Map<String, Value>,
    tags: &Map<String, Value>,
) -> TurnColumns {
    if let Some(Value::String(column)) = columns.get("messages") {
        names.messages = column.clone();
    }
    for (key, name) in [("system", &mut names.system), ("tools", &mut names.tools)] {
        if let Some(column) = columns.get(key) {
            *name = column.as_str().map(str::to_owned);
        }
    }
    let Tags { role, content, user, assistant, observation, function, system } = &mut names.tags;
    let words = [role, content, user, assistant, observation, function, system];
    for (key, word) in TAGS.into_iter().zip(words) {
        if let Some(Value::String(tag)) = tags.get(key) {
            *word = tag.clone();
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Finds the data set `x` whose entry is `entry`, beside a file `x.json`.
    fn find_in(entry: Value, stage: Stage) -> Result<Entry, DataError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("x.json"), "[]").expect("room for the file");
        let info = json!({"x": entry}).to_string();
        fs::write(folder.path().join(DATASET_INFO), info).expect("room for the file");
        find("x", folder.path(), stage, &HubOptions::default())
    }

    fn format_of(entry: Value, stage: Stage) -> Format {
        find_in(entry, stage).expect("a good entry").format.expect("entries have a format")
    }

    /// The message of the error, without the folder in front.
    fn refusal(entry: Value) -> String {
        let message = find_in(entry, Stage::Sft).expect_err("refused").to_string();
        let message = message.split_once("dataset_info.json: ").map_or(message.as_str(), |(_, rest)| rest);
        message.to_owned()
    }

    #[test]
    fn a_column_that_is_not_listed_keeps_its_default_name() {
        let names = AlpacaColumns { response: "target".to_owned(), ..AlpacaColumns::default() };
        let entry =
            json!({"file_name": "x.json", "columns": {"prompt": "instruction", "response": "target"}});
        assert_eq!(format_of(entry, Stage::Sft), Format::Alpaca(names));
        let off = json!({"file_name": "x.json", "columns": {"query": null}});
        let names = AlpacaColumns { query: None, ..AlpacaColumns::default() };
        assert_eq!(format_of(off, Stage::Sft), Format::Alpaca(names), "null turns an optional column off");
    }

    #[test]
    fn a_tag_that_is_not_listed_keeps_its_default_name() {
        let entry = json!({
            "file_name": "x.json", "formatting": "sharegpt", "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        });
        let Format::Sharegpt(names) = format_of(entry, Stage::Sft) else {
            panic!("the formatting is sharegpt");
        };
        assert_eq!((names.messages.as_str(), names.tags.role.as_str()), ("messages", "role"));
        assert_eq!((names.tags.user.as_str(), names.tags.assistant.as_str()), ("user", "assistant"));
        let kept =
            (names.tags.system.as_str(), names.tags.observation.as_str(), names.tags.function.as_str());
        assert_eq!(kept, ("system", "observation", "function_call"));
    }

    #[test]
    fn openai_without_tags_is_openai() {
        let entry = json!({"file_name": "x.json", "formatting": "openai"});
        assert_eq!(format_of(entry, Stage::Sft), Format::OpenAi(TurnColumns::openai()));
    }

    #[test]
    fn plain_text_is_the_prompt_column() {
        let entry = json!({"file_name": "x.json", "columns": {"prompt": "raw"}});
        let named = Format::Plain(PlainColumns { text: Some("raw".to_owned()) });
        assert_eq!(format_of(entry, Stage::Pt), named);
        assert_eq!(
            format_of(json!({"file_name": "x.json"}), Stage::Pt),
            Format::Plain(PlainColumns::default())
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (entry, expected) in [
            (json!({"om_hub_url": "a/b"}), "`om_hub_url` is not supported: `a/b` is on a hub"),
            (json!({"script_url": "a"}), "`script_url` is not supported"),
            (json!({"cloud_file_name": "s3://a"}), "`cloud_file_name` is not supported"),
            (json!({"file_name": "x.json", "ranking": true}), "`ranking` is not supported: preference data"),
            (
                json!({"file_name": "x.json", "columns": {"kto_tag": "l"}}),
                "`columns.kto_tag` is not supported",
            ),
            (json!({"file_name": "x.json", "columns": {"images": "i"}}), "`columns.images` is not supported"),
        ] {
            let message = refusal(entry);
            assert!(message.contains(expected) && message.contains("\nhelp: "), "{message}");
        }
    }

    #[test]
    fn a_file_beside_a_hub_name_is_read() {
        let entry = json!({"hf_hub_url": "a/b", "file_name": "x.json"});
        let found = find_in(entry, Stage::Sft).expect("the file is there");
        assert!(found.path.ends_with("x.json"));
        assert!(found.notes[0].starts_with("`hf_hub_url` is not used"), "{:?}", found.notes);
    }

    #[test]
    fn unknown_keys_and_wrong_values_say_what_is_meant() {
        for (entry, expected) in [
            (json!({"file_nmae": "x.json"}), "`x`: unknown key `file_nmae` (did you mean `file_name`?)"),
            (
                json!({"file_name": "x.json", "columns": {"promt": "a"}}),
                "`x`: unknown key `promt` in `columns` (did you mean `prompt`?)",
            ),
            (
                json!({"file_name": "x.json", "tags": {"user": "a"}}),
                "`x`: unknown key `user` in `tags` (did you mean `user_tag`?)",
            ),
            (
                json!({"file_name": "x.json", "formatting": "shargpt"}),
                "`x`: `formatting` is `shargpt` (did you mean `sharegpt`?)",
            ),
            (json!({}), "`x`: `file_name` is missing"),
            (json!([]), "`x`: is an array, not an object"),
            (json!({"file_name": 3}), "`x`: `file_name` is a number, not a text"),
            (
                json!({"file_name": "x.json", "num_samples": 0}),
                "`x`: `num_samples` is 0, not a whole number from 1 to 100000000",
            ),
            (
                json!({"file_name": "x.json", "split": "test"}),
                "`x`: `split` is `test`, but `file_name` is a single file",
            ),
            (
                json!({"file_name": "x.json", "split": "train[3]"}),
                "`x`: `split` is `train[3]`: `train[3]` is no split (`train`, `train[:10%]`, `train[100:]+test`)",
            ),
            (
                json!({"file_name": "x.json", "subset": "en"}),
                "`x`: `subset` is `en`, but `file_name` is a single file",
            ),
        ] {
            let message = refusal(entry);
            assert_eq!(message.lines().next(), Some(expected));
        }
    }

    #[test]
    fn a_name_that_is_nowhere_lists_what_resembles_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("alpaca.json"), "[]").expect("room for the file");
        let message = |name: &str| {
            find(name, folder.path(), Stage::Sft, &HubOptions::default()).expect_err("nowhere").to_string()
        };
        assert!(message("alpaka.json").contains("(did you mean `alpaca.json`?)"));
        assert!(message("alpaka.json").contains("dataset_info.json` does not exist"));
        fs::write(folder.path().join(DATASET_INFO), r#"{"identity": {}}"#).expect("room for the file");
        assert!(message("identiti").contains("(did you mean `identity`?)"));
        fs::write(folder.path().join(DATASET_INFO), "{").expect("room for the file");
        assert!(message("identity").contains("invalid JSON"));
    }
}
