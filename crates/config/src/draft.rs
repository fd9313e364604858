//! A configuration that is being written: what it says so far, what is wrong with it, and its text with one key changed.
//!
//! In: the text of a file. Out: a [`Draft`], or the text anew. Values are written and shown as `key=value` has them on the
//! command line.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::keys::{KEYS, Key, RunConfig};
use crate::problem::{ConfigError, Place, Problem, shared_path};
use crate::resolve::{Purpose, load_text};
use crate::resolved;
use crate::source::{Content, Entry, Node, read_override, read_text};

/// What a text says as a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The keys that are given, in the order of the text, with their values.
    pub given: Vec<(String, String)>,
    /// The resolved configuration, or all that is wrong.
    pub config: Result<RunConfig, Vec<Problem>>,
}

impl Draft {
    /// Reads a text for `purpose`; `overrides` are `key=value`, `name` stands for the file in messages.
    pub fn read(text: &str, name: &str, overrides: &[String], purpose: Purpose) -> Self {
        let (entries, _) = read_text(text, Path::new(name));
        let given = entries.into_iter().map(|entry| (entry.key, typed(&entry.node))).collect();
        let config = load_text(text, name, overrides, purpose).map_err(|errors| errors.problems);
        Self { given, config }
    }
}

/// The text with another value of `key`, or without the key. Everything else stays as it is, comments too.
///
/// # Errors
/// A text that is no configuration, a value that is none, or a key that cannot be changed by itself, as in a mapping in
/// braces or where another value refers to it.
pub fn with_value(text: &str, key: &str, value: Option<&str>) -> Result<String, Problem> {
    let (entries, problems) = read_text(text, Path::new("recipe"));
    let harmless = |error: &ConfigError| matches!(error, ConfigError::Empty | ConfigError::Duplicate { .. });
    if let Some(problem) = problems.into_iter().find(|problem| !harmless(&problem.error)) {
        return Err(problem);
    }
    let node =
        value.map(|value| read_override(&format!("{key}={value}"))).transpose()?.map(|entry| entry.node);
    let line = value.zip(node.as_ref()).map(|(value, node)| format!("{key}: {}", written(value, node)));
    let mut lines: Vec<&str> = text.lines().collect();
    let place = entries.iter().position(|entry| entry.key == key);
    let changed = match (place, line) {
        (None, None) => return Ok(text.to_owned()),
        (Some(index), line) => {
            let old = range(&entries, index, &lines);
            let line = line.map(|line| line + comment(&lines[old.clone()], &entries[index]));
            lines.splice(old, line.as_deref());
            joined(&lines)
        }
        (None, Some(line)) => {
            lines.insert(place_of_new(&entries, key, &lines), &line);
            joined(&lines)
        }
    };
    // What was not to be changed is the same.
    let (found, problems) = read_text(&changed, Path::new("recipe"));
    let of = |entries: &[Entry]| -> Map<String, Json> {
        entries.iter().map(|entry| (entry.key.clone(), plain(&entry.node))).collect()
    };
    let mut wanted = of(&entries);
    match node {
        Some(node) => wanted.insert(key.to_owned(), plain(&node)),
        None => wanted.shift_remove(key),
    };
    if of(&found) != wanted || problems.iter().any(|problem| !harmless(&problem.error)) {
        let place = place.map_or(Place::File(shared_path(Path::new("recipe"))), |i| entries[i].place.clone());
        let problem = Problem::new(&place, ConfigError::NotAlone { key: key.to_owned() });
        return Err(problem.help("change it in the text"));
    }
    Ok(changed)
}

/// The keys of a run, as [`RunConfig::values`] has them, that differ from their defaults: as a recipe says it.
pub fn changed(values: &Map<String, Json>) -> String {
    let defaults = RunConfig::default().values();
    let line = |key: &'static Key| {
        let value = values.get(key.name).filter(|value| defaults.get(key.name) != Some(value))?;
        Some((key, format!("{}: {}\n", key.name, resolved::written(value))))
    };
    let mut lines: Vec<(&'static Key, String)> = KEYS.iter().filter_map(line).collect();
    let text = |lines: &[(&Key, String)]| lines.iter().map(|(_, line)| line.as_str()).collect::<String>();
    // Whatever the run was for: a recipe that says less is as good where it says the same.
    let resolved = |text: &str| Some(load_text(text, "recipe", &[], Purpose::Data).ok()?.values());
    if let Some(whole) = resolved(&text(&lines)) {
        for key in KEYS.iter().filter(|key| key.auto.is_some()) {
            let mut fewer = lines.clone();
            fewer.retain(|(other, _)| other.name != key.name);
            if fewer.len() < lines.len() && resolved(&text(&fewer)).as_ref() == Some(&whole) {
                lines = fewer;
            }
        }
    }
    text(&lines)
}

fn joined(lines: &[&str]) -> String {
    lines.iter().flat_map(|line| [*line, "\n"]).collect()
}

/// The line that an entry begins on, from 0.
fn line_of(entry: &Entry) -> usize {
    match entry.place {
        Place::Line { line, .. } => line.saturating_sub(1),
        _ => 0,
    }
}

/// The lines of an entry: up to the next one, without comments and empty lines before that.
fn range(entries: &[Entry], index: usize, lines: &[&str]) -> std::ops::Range<usize> {
    let first = line_of(&entries[index]);
    let next = entries.iter().map(line_of).filter(|line| *line > first).min().unwrap_or(lines.len());
    let is_of_it = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let last = lines[first..next].iter().rposition(is_of_it).unwrap_or(0);
    first..first + last + 1
}

/// The comment behind a value that stands on one line.
fn comment<'t>(lines: &[&'t str], entry: &Entry) -> &'t str {
    let &[line] = lines else { return "" };
    let is_all = |text: &str| {
        let (entries, _) = read_text(text, Path::new(""));
        matches!(entries.as_slice(), [only] if plain(&only.node) == plain(&entry.node) && only.key == entry.key)
    };
    let ends = line.match_indices(" #").map(|(at, _)| line[..at].trim_end().len());
    ends.into_iter().find(|end| is_all(&line[..*end])).map_or("", |end| &line[end..])
}

/// Where a new key is written: behind the last one of its group, or at the end.
fn place_of_new(entries: &[Entry], key: &str, lines: &[&str]) -> usize {
    let group = |name: &str| KEYS.iter().find(|key| key.name == name).map(|key| key.group);
    let of_group = |index: &usize| group(&entries[*index].key).is_some_and(|of| Some(of) == group(key));
    let ends = (0..entries.len()).filter(of_group).map(|index| range(entries, index, lines).end);
    ends.max().unwrap_or(lines.len())
}

/// A value as a line of a file has it.
fn written(value: &str, node: &Node) -> String {
    match &node.content {
        Content::Scalar { text, plain: true } => {
            // YAML 1.1 readers take `1e-4` for a text.
            let number = text.parse::<f64>().is_ok_and(f64::is_finite) && !text.contains('.');
            let text = if number { text.replacen(['e', 'E'], ".0e", 1) } else { text.clone() };
            let (entries, _) = read_text(&format!("key: {text}\n"), Path::new(""));
            let same = |node: &Node| matches!(&node.content, Content::Scalar { text: found, plain: true } if *found == text);
            match matches!(entries.as_slice(), [only] if same(&only.node)) {
                true => text,
                false => Json::from(text).to_string(),
            }
        }
        Content::Scalar { text, .. } => Json::from(text.as_str()).to_string(),
        Content::List(_) | Content::Map(_) => value.trim().replace('\n', " "),
    }
}

/// A value as it is typed: names with commas between, or brackets.
fn typed(node: &Node) -> String {
    let name = |node: &Node| node.text().filter(|text| !text.contains([',', '[', '{'])).map(str::to_owned);
    match &node.content {
        Content::Scalar { text, .. } => text.clone(),
        Content::List(items) => match items.iter().map(name).collect::<Option<Vec<_>>>() {
            Some(names) => names.join(", "),
            None => plain(node).to_string(),
        },
        Content::Map(_) => plain(node).to_string(),
    }
}

/// A value without what its text looks like.
fn plain(node: &Node) -> Json {
    match &node.content {
        Content::Scalar { .. } if node.is_null() => Json::Null,
        // A number is one however it is written.
        Content::Scalar { text, plain: true } => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Json::from(number),
            _ => Json::from(text.as_str()),
        },
        Content::Scalar { text, .. } => Json::from(text.as_str()),
        Content::List(items) => items.iter().map(plain).collect(),
        Content::Map(entries) => {
            Json::Object(entries.iter().map(|entry| (entry.key.clone(), plain(&entry.node))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A run\nmodel_name_or_path: base  # here\nlora_target:\n  - q_proj\n  - v_proj\n\n# Steps\n\
        learning_rate: 1.0e-3\nrun_name: 'a # b'  # shown\noutput_dir: out\n";

    fn set(key: &str, value: Option<&str>) -> String {
        with_value(TEXT, key, value).unwrap()
    }

    #[test]
    fn a_value_is_changed_where_it_stands_and_its_comment_stays() {
        assert_eq!(
            set("model_name_or_path", Some("a b")),
            TEXT.replace("path: base  # here", "path: a b  # here")
        );
        assert_eq!(set("run_name", Some("c")), TEXT.replace("'a # b'  # shown", "c  # shown"));
        assert_eq!(set("lora_target", Some("all")), TEXT.replace(":\n  - q_proj\n  - v_proj", ": all"));
    }

    #[test]
    fn a_key_that_is_left_out_takes_its_lines_along_and_no_other() {
        assert_eq!(set("lora_target", None), TEXT.replace("lora_target:\n  - q_proj\n  - v_proj\n", ""));
        assert_eq!(set("output_dir", None), TEXT.replace("output_dir: out\n", ""));
        assert_eq!(set("lora_rank", None), TEXT);
    }

    #[test]
    fn a_new_key_stands_behind_those_of_its_group() {
        let text = set("lora_rank", Some("16"));
        assert!(text.contains("  - v_proj\nlora_rank: 16\n\n# Steps\n"), "{text}");
        assert!(set("dataset", Some("a,b")).ends_with("output_dir: out\ndataset: a,b\n"));
        assert_eq!(with_value("", "lora_rank", Some("4")).unwrap(), "lora_rank: 4\n");
        assert_eq!(with_value("seed: 1", "lora_rank", Some("4")).unwrap(), "seed: 1\nlora_rank: 4\n");
    }

    #[test]
    fn what_yaml_would_read_as_something_else_is_quoted() {
        let value = |value: &str| {
            let text = with_value("", "run_name", Some(value)).unwrap();
            text.trim_end().strip_prefix("run_name: ").unwrap().to_owned()
        };
        assert_eq!(value("a: b"), r#""a: b""#);
        assert_eq!(value("a #b"), r#""a #b""#);
        assert_eq!(value("1e-4"), "1.0e-4");
        assert_eq!(value("'12'"), r#""12""#);
        assert_eq!(value("{min_lr: 1e-6}"), "{min_lr: 1e-6}");
        assert_eq!(value("*x"), r#""*x""#);
    }

    #[test]
    fn a_text_in_which_a_key_does_not_stand_alone_is_left_to_its_writer() {
        for text in [
            "{seed: 1, lora_rank: 4}\n",
            "seed: &a 1\ndata_seed: *a\n",
            "{\n \"seed\": 1,\n \"lora_rank\": 2\n}\n",
        ] {
            let problem = with_value(text, "seed", Some("2")).unwrap_err();
            assert!(problem.to_string().contains("change it in the text"), "{problem}");
        }
        let problem = with_value("seed: [1\n", "seed", Some("2")).unwrap_err();
        assert!(problem.to_string().contains("not valid YAML"), "{problem}");
    }

    #[test]
    fn a_run_is_told_by_the_keys_that_differ_from_their_defaults() {
        let text = "model_name_or_path: \"base\"\ndataset: [\"a\"]\noutput_dir: \"out\"\nlora_rank: 4\nlearning_rate: 1.0e-6\n\
            logging_steps: 7\n";
        let config = load_text(text, "recipe", &[], Purpose::Train).unwrap();
        let told = changed(&config.values());
        assert_eq!(load_text(&told, "recipe", &[], Purpose::Train).unwrap(), config);
        assert!(told.contains("learning_rate: 1.0e-6\n") && !told.contains("seed"), "{told}");
        assert!(
            told.contains("logging_steps") && !told.contains("eval_steps"),
            "what follows from another key: {told}"
        );
    }

    #[test]
    fn a_draft_tells_what_is_given_and_all_that_is_wrong() {
        let draft = Draft::read(
            "lora_rank: 0\nlora_target: [q_proj, v_proj]\nno_key: 1\n",
            "recipe",
            &[],
            Purpose::Chat,
        );
        let given: Vec<_> = draft.given.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(given, [("lora_rank", "0"), ("lora_target", "q_proj, v_proj"), ("no_key", "1")]);
        let problems = draft.config.unwrap_err();
        let places: Vec<_> = problems.iter().map(|problem| problem.place.to_string()).collect();
        assert_eq!(places, ["recipe:1", "recipe:3", "recipe"]);
    }
}
