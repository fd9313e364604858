//! From entries to a [`RunConfig`]: read, merge, store, derive, check — collecting every problem.
//!
//! In: a path (or text) and overrides. Out: the resolved configuration for a [`Purpose`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::check;
use crate::keys::{KEYS, RENAMED, Refusal, RunConfig, all_names, no_effect_reason, not_yet};
use crate::nearest::nearest;
use crate::problem::{ConfigError, ConfigErrors, NoEffect, Place, Problem, shared_path};
use crate::source::{Content, Entry, MAX_BYTES, Node, read_override, read_text};
use crate::value::{Reject, number};

/// What the configuration is for: commands need different keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `sft train`, `sft bench`.
    Train,
    /// `sft chat` and whatever else answers.
    Chat,
    /// `sft export`.
    Export,
    /// `sft data show` and `sft data check`.
    Data,
}

impl Purpose {
    /// The command, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Train => "training",
            Purpose::Chat => "chat",
            Purpose::Export => "export",
            Purpose::Data => "looking at data",
        }
    }
}

/// Reads a configuration file (none: only overrides) and resolves it for `purpose`.
///
/// Overrides are `key=value` (or `--key=value`); a later one replaces an earlier one and the file.
/// A key may reach into a mapping: `lr_scheduler_kwargs.min_lr=1e-6`.
///
/// # Errors
/// Everything that is wrong, in the order of the file, then the arguments, then what is missing.
pub fn load(path: Option<&Path>, overrides: &[String], purpose: Purpose) -> Result<RunConfig, ConfigErrors> {
    let (entries, problems) = match path.map(|path| (path, read_file(path))) {
        None => (Vec::new(), Vec::new()),
        Some((path, Ok(text))) => read_text(&text, path),
        Some((_, Err(problem))) => return Err(problem.into()),
    };
    let home = path.map_or(Place::Nowhere, |path| Place::File(shared_path(path)));
    Resolver { home, purpose, config: RunConfig::default(), given: BTreeMap::new(), problems }
        .run(entries, overrides)
}

/// As [`load`], from text; `name` stands for the file in messages.
///
/// # Errors
/// As [`load`].
pub fn load_text(
    text: &str,
    name: &str,
    overrides: &[String],
    purpose: Purpose,
) -> Result<RunConfig, ConfigErrors> {
    let path = Path::new(name);
    let (entries, problems) = read_text(text, path);
    let home = Place::File(shared_path(path));
    Resolver { home, purpose, config: RunConfig::default(), given: BTreeMap::new(), problems }
        .run(entries, overrides)
}

fn read_file(path: &Path) -> Result<String, Problem> {
    let place = Place::File(shared_path(path));
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let problem = Problem::new(&place, ConfigError::FileMissing);
            return Err(match nearby_file(path) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem.help("the path is relative to the working folder"),
            });
        }
        Err(error) => return Err(Problem::new(&place, ConfigError::FileUnreadable(error.to_string()))),
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&b| b == b'\n').count();
        let Place::File(file) = place else { unreachable!("place was made as a file above") };
        Problem::new(
            &Place::Line { file, line },
            ConfigError::FileUnreadable("this line is not UTF-8".into()),
        )
        .help("save the file as UTF-8 text")
    })
}

/// A file in the same folder whose name is close to the one asked for.
fn nearby_file(path: &Path) -> Option<String> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wanted = path.file_name()?.to_str()?;
    let names =
        fs::read_dir(folder).ok()?.take(10_000).flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|n| [".yaml", ".yml", ".json"].iter().any(|end| n.ends_with(end))).collect();
    names.sort();
    let near = nearest(wanted, names.iter().map(String::as_str))?;
    Some(path.with_file_name(near).display().to_string())
}

struct Resolver {
    /// The place of what stands nowhere.
    home: Place,
    purpose: Purpose,
    config: RunConfig,
    /// Keys that were given, where, and whether their value was taken.
    given: BTreeMap<String, (Place, bool)>,
    problems: Vec<Problem>,
}

impl Resolver {
    fn run(mut self, entries: Vec<Entry>, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
        let mut merged = entries;
        for argument in overrides {
            match read_override(argument) {
                Ok(entry) => merge(&mut merged, entry),
                Err(problem) => self.problems.push(problem),
            }
        }
        for entry in &merged {
            self.store(entry);
        }
        let given = &self.given;
        self.config.derive(&|key| given.contains_key(key));
        let (contradictions, no_effect) =
            check::check(&mut self.config, &self.given, &self.home, self.purpose);
        self.problems.extend(contradictions);
        self.config.no_effect.extend(no_effect);
        self.require();
        self.problems.sort_by_key(|problem| match problem.place {
            Place::Line { line, .. } => (0, line),
            Place::CommandLine(_) => (1, 0),
            Place::File(_) | Place::Nowhere => (2, 0),
        });
        match self.problems.is_empty() {
            true => Ok(self.config),
            false => Err(ConfigErrors { problems: self.problems }),
        }
    }

    fn store(&mut self, entry: &Entry) {
        let Entry { key, place, node } = entry;
        if let Some(reason) = no_effect_reason(key) {
            let (key, place, reason) = (key.clone(), place.clone(), reason.to_string());
            self.config.no_effect.push(NoEffect { key, place, reason });
            return;
        }
        if let Some((_, default, help)) = not_yet(key) {
            if !is_default(node, default) {
                let error = ConfigError::NotYet { key: key.clone(), value: node.shown().replace('`', "") };
                self.problems.push(Problem::new(place, error).help(*help));
            }
            return;
        }
        // Null asks for the automatic value, or leaves unset what only some commands need.
        let row = KEYS.iter().find(|row| row.name == key);
        if node.is_null() && row.is_some_and(|row| row.auto.is_some() || !row.required.is_empty()) {
            return;
        }
        let stored = self.config.set(key, node);
        let taken = stored.is_ok();
        if let Err(refusal) = stored {
            self.problems.push(problem_of(key, place, node, refusal));
        }
        self.given.insert(key.clone(), (place.clone(), taken));
    }

    fn require(&mut self) {
        // What a file holds that cannot be read is not known to be missing.
        let is_unread = |problem: &Problem| {
            matches!(
                *problem.error,
                ConfigError::Syntax(_) | ConfigError::NotAMapping { .. } | ConfigError::TooLarge { .. }
            )
        };
        if self.problems.iter().any(is_unread) {
            return;
        }
        // An evaluation alone needs nothing to train on.
        let evaluates = self.purpose == Purpose::Train && !self.config.do_train;
        let required = KEYS.iter().filter(|row| row.required.contains(&self.purpose));
        for row in required.filter(|row| !(evaluates && row.name == "dataset")) {
            let empty = match self.config.get(row.name) {
                Some(serde_json::Value::String(text)) => text.is_empty(),
                Some(serde_json::Value::Array(items)) => items.is_empty(),
                _ => false,
            };
            // A value that was refused has been reported already.
            let refused = self.given.get(row.name).is_some_and(|(_, taken)| !taken);
            if empty && !refused {
                let error = ConfigError::Missing { key: row.name, purpose: self.purpose.as_str() };
                let place = self.given.get(row.name).map_or(&self.home, |(place, _)| place);
                let (doc, name) = (row.text(), row.name);
                let help = format!("{doc} Add `{name}: …` or {name}=… on the command line.");
                self.problems.push(Problem::new(place, error).help(help));
            }
        }
    }
}

/// Puts an override over the entries: mappings are merged, everything else is replaced.
fn merge(entries: &mut Vec<Entry>, new: Entry) {
    let Some(old) = entries.iter_mut().find(|old| old.key == new.key) else {
        entries.push(new);
        return;
    };
    old.place = new.place;
    match (&mut old.node.content, new.node.content) {
        (Content::Map(inside), Content::Map(added)) => {
            added.into_iter().for_each(|entry| merge(inside, entry))
        }
        (content, other) => *content = other,
    }
    old.node.place = new.node.place;
}

/// Whether a value is the default of a key that is not built: then it asks for nothing.
fn is_default(node: &Node, default: &str) -> bool {
    if node.is_null() {
        return true;
    }
    match &node.content {
        Content::Scalar { text, .. } => {
            text.eq_ignore_ascii_case(default)
                || matches!((number(text), number(default)), (Some(a), Some(b)) if a == b)
                || (default == "null" && matches!(text.as_str(), "" | "false" | "False" | "None"))
                || (default == "false" && matches!(text.to_ascii_lowercase().as_str(), "no" | "off"))
        }
        Content::List(items) => items.is_empty(),
        Content::Map(entries) => entries.is_empty(),
    }
}

fn problem_of(key: &str, place: &Place, node: &Node, refusal: Refusal) -> Problem {
    let name = key.to_string();
    match refusal {
        Refusal::Unknown => unknown(key, place),
        Refusal::Range { value, range } => {
            let error = ConfigError::OutOfRange { key: name, value, range: range.to_string() };
            Problem::new(place, error).help(documented(key))
        }
        Refusal::Value { takes, reject } => match reject {
            Reject::Type => {
                let error = ConfigError::WrongType { key: name, takes, found: node.shown() };
                Problem::new(place, error).help(documented(key))
            }
            Reject::NoValue => Problem::new(place, ConfigError::NoValue { key: name, takes })
                .help("give it one, or leave the key out for its default"),
            Reject::Because { reason, help } => {
                let problem = Problem::new(place, ConfigError::BadValue { key: name, reason });
                problem.help(help.unwrap_or_else(|| documented(key)))
            }
            Reject::NotYet { value, help } => {
                Problem::new(place, ConfigError::NotYet { key: name, value }).help(help)
            }
        },
    }
}

fn unknown(key: &str, place: &Place) -> Problem {
    let problem = Problem::new(place, ConfigError::UnknownKey(key.to_string()));
    if key == "<<" {
        return problem.help("merge keys are not read: write the keys out");
    }
    let renamed = RENAMED.iter().find(|(old, _)| *old == key).map(|(_, new)| *new);
    match renamed.or_else(|| nearest(key, all_names())) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help("`sft config` lists every key"),
    }
}

/// Whether this is the name of a key: one of sft, or one of LLaMA-Factory that is without effect, renamed or not built.
pub fn is_key(name: &str) -> bool {
    all_names().any(|known| known == name) || RENAMED.iter().any(|(old, _)| *old == name)
}

/// Whether a key takes true or false.
pub fn is_switch(name: &str) -> bool {
    KEYS.iter().any(|key| key.name == name && (key.schema)()["type"] == "boolean")
}

/// The first sentence of a key's documentation, with its default.
fn documented(key: &str) -> String {
    let Some(row) = KEYS.iter().find(|row| row.name == key) else {
        return "`sft config` lists every key".to_string();
    };
    let doc = row.text();
    let default = crate::docs::default_text(row, &RunConfig::default());
    format!("{doc} Default: {}.", default.replace('`', ""))
}
