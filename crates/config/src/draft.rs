//! A configuration that is being written: what it says so far, what is wrong with it, and its text with one key changed.
//!
//! In: the text of a file. Out: a [`Draft`], or the text anew. Values are written and shown as `key=value` has them on the
//! command line.

use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::docs;
use crate::keys::{KEYS, Key, RunConfig};
use crate::problem::{ConfigError, ConfigErrors, Place, Problem, shared_path};
use crate::resolve::{Purpose, load_text};
use crate::resolved;
use crate::source::{Content, Entry, Node, read_override, read_text};

/// What a text is called in messages.
const NAME: &str = "recipe";

/// What a text says as a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The keys that are given, in the order of the text, with their values.
    pub given: Vec<(String, String)>,
    /// The resolved configuration, or all that is wrong.
    pub config: Result<RunConfig, ConfigErrors>,
}

impl Draft {
    /// Reads a text for `purpose`; `overrides` are `key=value`, `name` stands for the file in messages.
    pub fn read(text: &str, name: &str, overrides: &[String], purpose: Purpose) -> Self {
        let (entries, _) = read_text(text, Path::new(name));
        let given = entries.into_iter().map(|entry| (entry.key, typed(&entry.node))).collect();
        Self { given, config: load_text(text, name, overrides, purpose) }
    }
}

/// The text with another value of `key`, or without the key. Everything else stays as it is, comments too, but for those
/// within a value that is replaced.
///
/// # Errors
/// A text that is no configuration or has a key twice, a value that is none, or a key that cannot be changed by itself, as in a
/// mapping in braces or where another value refers to it.
pub fn with_value(text: &str, key: &str, value: Option<&str>) -> Result<String, Problem> {
    if let Some(rest) = text.strip_prefix('\u{feff}') {
        return Ok(format!("\u{feff}{}", with_value(rest, key, value)?));
    }
    let (entries, problems) = read_text(text, Path::new(NAME));
    let is_empty = |problem: &Problem| matches!(*problem.error, ConfigError::Empty);
    if let Some(problem) = problems.into_iter().find(|problem| !is_empty(problem)) {
        return Err(problem);
    }
    let place = entries.iter().position(|entry| entry.key == key);
    let alone = || {
        let nowhere = || Place::File(shared_path(Path::new(NAME)));
        let place = place.map_or_else(nowhere, |index| entries[index].place.clone());
        Problem::new(&place, ConfigError::NotAlone { key: key.to_owned() }).help("change it in the text")
    };
    let new = value.map(|value| {
        let mut entry = read_override(&format!("{key}={value}"))?;
        let line = format!("{key}: {}", written(key, value, &mut entry.node));
        Ok::<_, Problem>((line, entry.node))
    });
    let new = new.transpose()?;
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut lines: Vec<String> =
        text.split('\n').map(|line| line.trim_end_matches('\r').to_owned()).collect();
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    // What ends a line to YAML and not here, as a carriage return alone does.
    if lines.iter().any(|line| line.contains('\r'))
        || entries.iter().any(|entry| line_of(entry) >= lines.len())
    {
        return Err(alone());
    }
    let indent = entries.first().map_or("", |entry| indent_of(&lines[line_of(entry)])).to_owned();
    match (place, &new) {
        (None, None) => return Ok(text.to_owned()),
        (Some(index), new) => {
            let old = range(&entries, index, &lines);
            let line = new
                .as_ref()
                .map(|(line, _)| format!("{indent}{line}{}", comment(&lines[old.clone()], &entries[index])));
            lines.splice(old, line);
        }
        (None, Some((line, _))) => {
            let at = place_of_new(&entries, key, &lines);
            lines.insert(at, format!("{indent}{line}"));
        }
    }
    let changed: String = lines.iter().flat_map(|line| [line.as_str(), end]).collect();
    // What was not to be changed is the same.
    let (found, problems) = read_text(&changed, Path::new(NAME));
    let of = |entries: &[Entry]| -> Map<String, Json> {
        entries.iter().map(|entry| (entry.key.clone(), plain(&entry.node))).collect()
    };
    let mut wanted = of(&entries);
    match &new {
        Some((_, node)) => wanted.insert(key.to_owned(), plain(node)),
        None => wanted.shift_remove(key),
    };
    match of(&found) == wanted && problems.iter().all(is_empty) {
        true => Ok(changed),
        false => Err(alone()),
    }
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

/// The line that an entry begins on, from 0.
fn line_of(entry: &Entry) -> usize {
    match entry.place {
        Place::Line { line, .. } => line.saturating_sub(1),
        _ => 0,
    }
}

fn indent_of(line: &str) -> &str {
    &line[..line.len() - line.trim_start_matches(' ').len()]
}

/// The lines of an entry: up to the next one, without what stands before that, comments and empty lines.
fn range(entries: &[Entry], index: usize, lines: &[String]) -> Range<usize> {
    let first = line_of(&entries[index]);
    let next = entries.iter().map(line_of).filter(|line| *line > first).min().unwrap_or(lines.len());
    let depth = indent_of(&lines[first]).len();
    let is_of_it = |line: &String| match line.trim() {
        "" | "..." => false,
        // Deeper than the key it is part of the value, or of nobody else.
        text => !text.starts_with('#') || indent_of(line).len() > depth,
    };
    let last = lines[first..next].iter().rposition(is_of_it).unwrap_or(0);
    first..first + last + 1
}

/// The comment behind a value that stands on one line.
fn comment<'t>(lines: &'t [String], entry: &Entry) -> &'t str {
    /// Marks that are looked at: each takes a reading of the line.
    const MOST: usize = 32;
    let [line] = lines else { return "" };
    let is_all = |text: &str| {
        let (entries, _) = read_text(text, Path::new(NAME));
        matches!(entries.as_slice(), [only] if plain(&only.node) == plain(&entry.node) && only.key == entry.key)
    };
    let marks = line.match_indices([' ', '\t']).filter(|(at, _)| line[at + 1..].starts_with('#')).take(MOST);
    let mut ends = marks.map(|(at, _)| line[..at].trim_end().len());
    ends.find(|end| is_all(&line[..*end])).map_or("", |end| &line[end..])
}

/// Where a new key is written: behind the last one of its group, or at the end.
fn place_of_new(entries: &[Entry], key: &str, lines: &[String]) -> usize {
    let group = |name: &str| KEYS.iter().find(|key| key.name == name).map(|key| key.group);
    let of_group = |index: &usize| group(&entries[*index].key).is_some_and(|of| Some(of) == group(key));
    let ends = (0..entries.len()).filter(of_group).map(|index| range(entries, index, lines).end);
    let end = || lines.iter().position(|line| line.trim() == "...").unwrap_or(lines.len());
    ends.max().unwrap_or_else(end)
}

/// A value as a line of a file has it; the node becomes what is read from there.
fn written(key: &str, value: &str, node: &mut Node) -> String {
    let is_number = KEYS.iter().any(|known| known.name == key && docs::kind(known) == "number");
    match &mut node.content {
        Content::Scalar { text, plain: true } => {
            // YAML 1.1 readers take `1e-4` for a text.
            if is_number && text.parse::<f64>().is_ok_and(f64::is_finite) && !text.contains('.') {
                *text = text.replacen(['e', 'E'], ".0e", 1);
            }
            let (entries, _) = read_text(&format!("key: {text}\n"), Path::new(NAME));
            let reads_back = |node: &Node| matches!(&node.content, Content::Scalar { text: found, plain: true } if found == text);
            match matches!(entries.as_slice(), [only] if reads_back(&only.node)) {
                true => text.clone(),
                false => Json::from(text.as_str()).to_string(),
            }
        }
        Content::Scalar { text, .. } => Json::from(text.as_str()).to_string(),
        Content::List(_) | Content::Map(_) => value.trim().replace(['\n', '\r'], " "),
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

/// A value as JSON, in which numbers are texts.
fn plain(node: &Node) -> Json {
    match &node.content {
        Content::Scalar { .. } if node.is_null() => Json::Null,
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
        let value = |key: &str, value: &str| {
            let text = with_value("", key, Some(value)).unwrap();
            text.trim_end().strip_prefix(key).unwrap().strip_prefix(": ").unwrap().to_owned()
        };
        assert_eq!(value("run_name", "a: b"), r#""a: b""#);
        assert_eq!(value("run_name", "a #b"), r#""a #b""#);
        assert_eq!(value("run_name", "'12'"), r#""12""#);
        assert_eq!(value("run_name", "*x"), r#""*x""#);
        assert_eq!(value("lr_scheduler_kwargs", "{min_lr: 1e-6}"), "{min_lr: 1e-6}");
        assert_eq!(value("learning_rate", "1e-4"), "1.0e-4");
        assert_eq!(value("model_revision", "1234e56"), "1234e56", "a text is no number");
    }

    #[test]
    fn the_ends_of_lines_and_what_is_deeper_than_a_key_stay() {
        let set = |text: &str, key: &str, value| with_value(text, key, value).unwrap();
        assert_eq!(
            set("seed: 1\t# why\r\nbf16: true\r\n", "seed", Some("2")),
            "seed: 2\t# why\r\nbf16: true\r\n"
        );
        let block = "default_system: |\n  a\n  # b\n# c\nseed: 1\n";
        assert_eq!(set(block, "default_system", None), "# c\nseed: 1\n");
        assert_eq!(
            set("  seed: 1\n  bf16: true\n", "lora_rank", Some("4")),
            "  seed: 1\n  bf16: true\n  lora_rank: 4\n"
        );
        assert_eq!(set("seed: 1\n...\n", "lora_rank", Some("4")), "seed: 1\nlora_rank: 4\n...\n");
        assert_eq!(set("\u{feff}seed: 1\n", "seed", Some("2")), "\u{feff}seed: 2\n");
        assert_eq!(set("\u{feff}seed: 1\n", "lora_rank", Some("4")), "\u{feff}seed: 1\nlora_rank: 4\n");
    }

    #[test]
    fn whatever_ends_a_line_a_change_is_right_or_refused() {
        let pieces =
            ["seed: 1", "bf16: true # c", "run_name: |\n  a\n  # b", "lora_target:\n- a\n- b", "# c", ""];
        for end in ["\n", "\r\n", "\r", "\u{85}", "\u{2028}", "\u{2029}", "\x0b", "\x0c", "\n\n", "\n---\n"] {
            for first in pieces {
                for second in pieces {
                    let text = format!("{first}{end}{second}{end}");
                    for (key, value) in [
                        ("seed", Some("2")),
                        ("lora_rank", Some("4")),
                        ("bf16", None),
                        ("lora_target", Some("x")),
                    ] {
                        let before = Draft::read(&text, NAME, &[], Purpose::Data).given;
                        let Ok(changed) = with_value(&text, key, value) else { continue };
                        let mut after = Draft::read(&changed, NAME, &[], Purpose::Data).given;
                        let others = |given: &[(String, String)]| -> Vec<_> {
                            given.iter().filter(|(name, _)| name != key).cloned().collect()
                        };
                        assert_eq!(others(&after), others(&before), "{text:?} → {changed:?}");
                        after.retain(|(name, _)| name == key);
                        let found = after.first().map(|(_, value)| value.as_str());
                        assert_eq!(found, value, "{text:?} → {changed:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_text_in_which_a_key_does_not_stand_alone_is_left_to_its_writer() {
        for text in [
            "{seed: 1, lora_rank: 4}\n",
            "seed: &a 1\ndata_seed: *a\n",
            "{\n \"seed\": 1,\n \"lora_rank\": 2\n}\n",
            "seed: 1\rlora_rank: 4 # c\r# note\routput_dir: x\n",
        ] {
            let problem = with_value(text, "seed", Some("2")).unwrap_err();
            assert!(problem.to_string().contains("change it in the text"), "{problem}");
        }
        for (text, expected) in
            [("seed: [1\n", "not valid YAML"), ("seed: 1\nbf16: true\nseed: 2\n", "already given")]
        {
            let problem = with_value(text, "bf16", Some("false")).unwrap_err();
            assert!(problem.to_string().contains(expected), "{problem}");
        }
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
        let problems = draft.config.unwrap_err().problems;
        let places: Vec<_> = problems.iter().map(|problem| problem.place.to_string()).collect();
        assert_eq!(places, ["recipe:1", "recipe:3", "recipe"]);
    }
}
