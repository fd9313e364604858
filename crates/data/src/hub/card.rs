//! The card of a data set (`README.md`): which files each of its subsets and splits has (`configs`).

use granit_parser::{Event, Parser};
use regex::Regex;
use serde_json::{Map, Value};

/// Deepest nesting of a card's head.
const DEPTH: usize = 32;
/// Longest head, in bytes.
const MOST_BYTES: usize = 1 << 20;

/// The files of one subset: each split with the patterns of its files.
#[derive(Debug, PartialEq)]
pub(super) struct DataFiles(Vec<(String, Vec<String>)>);

/// The files of a subset that a card names; `None` where it names none at all.
///
/// # Errors
/// A card that names subsets, and not this one; or several, and none was asked for.
pub(super) fn data_files(card: &str, subset: Option<&str>) -> Result<Option<DataFiles>, String> {
    let Some(head) = head(card) else { return Ok(None) };
    // A head that is not understood names nothing: the names of the files say enough.
    let Some(Value::Object(head)) = yaml(head) else { return Ok(None) };
    let with_files = |config: &&Value| !config["data_files"].is_null() || !config["data_dir"].is_null();
    let configs: Vec<&Value> =
        head.get("configs").and_then(Value::as_array).into_iter().flatten().filter(with_files).collect();
    if configs.is_empty() {
        return Ok(None);
    }
    let name = |config: &Value| config["config_name"].as_str().unwrap_or("default").to_owned();
    let chosen = match subset {
        Some(subset) => configs.iter().find(|config| name(config) == subset),
        None => configs
            .iter()
            .find(|config| config["default"] == "true" || name(config) == "default")
            .or(configs.first().filter(|_| configs.len() == 1)),
    };
    let names = || configs.iter().map(|config| name(config)).collect::<Vec<_>>().join(", ");
    match (chosen, subset) {
        (Some(config), _) => Ok(Some(DataFiles(splits(config)))),
        (None, Some(subset)) => Err(format!("has no subset `{subset}`, only {}", names())),
        (None, None) => Err(format!("has several subsets: {}", names())),
    }
}

impl DataFiles {
    /// The names that a split's patterns fit.
    pub(super) fn files_of<'a>(&self, split: &str, names: &'a [String]) -> Vec<&'a str> {
        let patterns = self.0.iter().filter(|(of, _)| of == split).flat_map(|(_, patterns)| patterns);
        let mut found: Vec<&str> = Vec::new();
        for pattern in patterns.filter_map(|pattern| regex_of(pattern)) {
            for name in names.iter().filter(|name| pattern.is_match(name)) {
                if !found.contains(&name.as_str()) {
                    found.push(name);
                }
            }
        }
        found
    }
}

/// `data_files` is a pattern or several (all `train`), a list of `{split, path}`, or a mapping of splits.
fn splits(config: &Value) -> Vec<(String, Vec<String>)> {
    let folder =
        config["data_dir"].as_str().map(|dir| format!("{}/", dir.trim_matches('/'))).unwrap_or_default();
    let patterns = |value: &Value| -> Vec<String> {
        let one = std::slice::from_ref(value);
        let items = value.as_array().map_or(one, Vec::as_slice);
        items.iter().filter_map(Value::as_str).map(|path| format!("{folder}{path}")).collect()
    };
    match &config["data_files"] {
        Value::Null => vec![("train".to_owned(), vec![format!("{folder}**")])],
        Value::Object(of) => of.iter().map(|(split, path)| (split.clone(), patterns(path))).collect(),
        Value::Array(items) if items.iter().any(Value::is_object) => items
            .iter()
            .map(|item| (item["split"].as_str().unwrap_or("train").to_owned(), patterns(&item["path"])))
            .collect(),
        value => vec![("train".to_owned(), patterns(value))],
    }
}

/// A pattern as shells have it: `*` inside of a folder, `**` across folders, `?`, `[abc]`, `{a,b}`.
fn regex_of(pattern: &str) -> Option<Regex> {
    let mut text = String::from("^");
    let mut rest = pattern.trim_start_matches("./");
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '*' if rest.starts_with("*/") => {
                rest = &rest[2..];
                text += "(?:.*/)?";
            }
            '*' if rest.starts_with('*') => {
                rest = &rest[1..];
                text += ".*";
            }
            '*' => text += "[^/]*",
            '?' => text += "[^/]",
            '[' | ']' => text.push(letter),
            '{' => text += "(?:",
            '}' => text.push(')'),
            ',' => text.push('|'),
            letter => text += &regex::escape(letter.encode_utf8(&mut [0; 4])),
        }
    }
    Regex::new(&(text + "$")).ok()
}

/// What stands between the two lines `---` at the beginning.
fn head(card: &str) -> Option<&str> {
    let rest = card.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let end = rest.find("\n---")?;
    Some(&rest[..end]).filter(|head| head.len() <= MOST_BYTES)
}

/// YAML as JSON, every scalar a text; `None` where it is not understood.
fn yaml(text: &str) -> Option<Value> {
    let mut events = Parser::new_from_str(text).map_while(Result::ok).map(|(event, _)| event);
    let root = events.find(|event| !matches!(event, Event::StreamStart | Event::DocumentStart(..)))?;
    value_of(root, &mut events, DEPTH)
}

fn value_of<'a>(
    event: Event<'a>,
    events: &mut impl Iterator<Item = Event<'a>>,
    depth: usize,
) -> Option<Value> {
    let deeper = depth.checked_sub(1)?;
    match event {
        Event::Scalar(text, ..) => Some(Value::String(text.to_string())),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match events.next()? {
                    Event::SequenceEnd => return Some(Value::Array(items)),
                    event => items.push(value_of(event, events, deeper)?),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut map = Map::new();
            loop {
                match events.next()? {
                    Event::MappingEnd => return Some(Value::Object(map)),
                    Event::Scalar(key, ..) => {
                        let event = events.next()?;
                        map.insert(key.to_string(), value_of(event, events, deeper)?);
                    }
                    _ => return None,
                }
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "README.md",
        "data/en/train-00000.parquet",
        "data/en/train-00001.parquet",
        "data/en/test.parquet",
        "data/de/train.parquet",
        "extra.jsonl",
    ];

    fn chosen(head: &str, subset: Option<&str>, split: &str) -> Vec<String> {
        let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        let files =
            data_files(&format!("---\n{head}\n---\n# Words\n"), subset).expect("a subset").expect("files");
        files.files_of(split, &names).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn every_way_to_name_files_is_read() {
        let listed = "configs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n    path: data/en/train-*\n  - split: test\n    path: [data/en/test.parquet]\n- config_name: de\n  data_files: data/de/*.parquet";
        assert_eq!(
            chosen(listed, None, "train"),
            ["data/en/train-00000.parquet", "data/en/train-00001.parquet"]
        );
        assert_eq!(chosen(listed, Some("en"), "test"), ["data/en/test.parquet"]);
        assert_eq!(chosen(listed, Some("de"), "train"), ["data/de/train.parquet"]);
        let mapped =
            "configs: [{config_name: default, data_files: {train: '**/train*.parquet', test: extra.jsonl}}]";
        assert_eq!(chosen(mapped, None, "train").len(), 3);
        assert_eq!(chosen(mapped, None, "test"), ["extra.jsonl"]);
        let folder = "configs:\n- config_name: x\n  data_dir: data/de";
        assert_eq!(chosen(folder, None, "train"), ["data/de/train.parquet"]);
    }

    #[test]
    fn a_subset_must_be_named_where_there_are_several_and_exist() {
        let head = "---\nconfigs:\n- {config_name: a, data_files: a.json}\n- {config_name: b, data_files: b.json}\n---\n";
        assert_eq!(data_files(head, None), Err("has several subsets: a, b".to_owned()));
        assert_eq!(data_files(head, Some("c")), Err("has no subset `c`, only a, b".to_owned()));
    }

    #[test]
    fn a_card_that_names_no_files_says_nothing() {
        for card in ["", "# Words", "---\nlicense: mit\n---\n", "---\n{\n---\n", "---\nconfigs: 3\n---\n"] {
            assert_eq!(data_files(card, Some("x")), Ok(None), "{card}");
        }
    }
}
