//! Text → a tree of values in which every key and value knows its line.
//!
//! In: a YAML or JSON file's text (JSON is read as the YAML it is), or one `key=value` argument.
//! Out: [`Entry`]s in the order written. Scalars stay text: the type of the key decides later what
//! they mean, so `1e-4`, `no` and `0123` are never guessed at.
//! Size, depth and number of nodes are limited, so hostile input (alias bombs, deep nesting) is
//! refused in bounded time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use crate::problem::{ConfigError, Place, Problem, shared_path};

/// A configuration larger than this is not one.
pub(crate) const MAX_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 20_000;

/// One `key: value`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub place: Place,
    pub node: Node,
}

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub content: Content,
    pub place: Place,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// `plain` is false for quoted and block scalars, which are never null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

impl Node {
    /// A scalar written without quotes.
    pub fn plain(text: &str, place: &Place) -> Self {
        Node { content: Content::Scalar { text: text.to_string(), plain: true }, place: place.clone() }
    }

    pub fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of a scalar that is not null.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// How a message shows this value.
    pub fn shown(&self) -> String {
        match &self.content {
            Content::Scalar { .. } if self.is_null() => "null".to_string(),
            Content::Scalar { text, .. } => {
                let mut shown: String = text.chars().take(60).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                format!("`{shown}`")
            }
            Content::List(items) => format!("a list of {}", items.len()),
            Content::Map(entries) => format!("a mapping of {}", entries.len()),
        }
    }

    fn count(&self) -> usize {
        1 + match &self.content {
            Content::Scalar { .. } => 0,
            Content::List(items) => items.iter().map(Node::count).sum(),
            Content::Map(entries) => entries.iter().map(|e| 1 + e.node.count()).sum(),
        }
    }
}

/// Reads a whole file's text. Duplicate keys are reported and their first value kept.
pub(crate) fn read_text(text: &str, file: &Path) -> (Vec<Entry>, Vec<Problem>) {
    let file = shared_path(file);
    let whole = Place::File(file.clone());
    let mut builder = Builder::new(text, PlaceOf::Lines(file));
    let root = match builder.document() {
        Ok(root) => root,
        Err(problem) => return (Vec::new(), vec![problem]),
    };
    let mut problems = builder.duplicates;
    let entries =
        match root.map(|root| (root.is_null(), root)) {
            None | Some((true, _)) => {
                problems.push(Problem::new(&whole, ConfigError::Empty).help(
                    "write one `key: value` a line, for example `model_name_or_path: models/qwen3-0.6b`",
                ));
                Vec::new()
            }
            Some((_, Node { content: Content::Map(entries), .. })) => entries,
            Some((_, Node { content, place })) => {
                let found = match content {
                    Content::List(_) => "a list",
                    _ => "a single value",
                };
                problems.push(
                    Problem::new(&place, ConfigError::NotAMapping { found })
                        .help("a key is followed by a colon and a space, as in `lora_rank: 8`"),
                );
                Vec::new()
            }
        };
    (entries, problems)
}

/// Reads one `key=value` (or `--key=value`) argument. A dotted key reaches into a mapping.
pub(crate) fn read_override(argument: &str) -> Result<Entry, Problem> {
    let place = Place::CommandLine(Arc::from(without_secret(argument)));
    let form = || {
        Problem::new(&place, ConfigError::NotAnOverride(argument.to_string()))
            .help("write key=value without spaces around `=`, for example learning_rate=1e-4")
    };
    let (key, value) = argument.split_once('=').ok_or_else(form)?;
    let key = key.trim().trim_start_matches("--");
    if key.is_empty() || key.matches('.').count() > MAX_DEPTH {
        return Err(form());
    }
    let value = value.trim();
    let mut node = if value.starts_with('[') || value.starts_with('{') {
        read_flow(value, &place)?
    } else {
        match unquoted(value) {
            Some(inner) => Node {
                content: Content::Scalar { text: inner.to_string(), plain: false },
                place: place.clone(),
            },
            None => Node::plain(value, &place),
        }
    };
    let mut parts = key.split('.');
    let first = parts.next().unwrap_or(key).to_string();
    for part in parts.rev() {
        let entry = Entry { key: part.to_string(), place: place.clone(), node };
        node = Node { content: Content::Map(vec![entry]), place: place.clone() };
    }
    Ok(Entry { key: first, place, node })
}

/// Reads a list or mapping in brackets, all of it standing at `place`.
pub(crate) fn read_flow(text: &str, place: &Place) -> Result<Node, Problem> {
    let mut builder = Builder::new(text, PlaceOf::Argument(place.clone()));
    let root = builder.document()?;
    match builder.duplicates.pop() {
        Some(duplicate) => Err(duplicate),
        None => Ok(root.unwrap_or_else(|| Node::plain("", place))),
    }
}

/// The argument as messages show it: what a key of this kind holds is nobody's business.
fn without_secret(argument: &str) -> String {
    let secret =
        |key: &&str| ["token", "secret", "api_key", "password"].iter().any(|word| key.contains(word));
    let key_of = |(key, _): (&str, &str)| key.to_ascii_lowercase();
    match argument.split_once('=').map(key_of).filter(|key| secret(&key.as_str())) {
        Some(key) => format!("{key}=…"),
        None => argument.to_string(),
    }
}

/// What is between quotes, if it is one text: not of `'a' or 'b'`.
fn unquoted(value: &str) -> Option<&str> {
    let of =
        |quote: &char| value.strip_prefix(*quote)?.strip_suffix(*quote).filter(|text| !text.contains(*quote));
    ['"', '\''].iter().find_map(of)
}

enum PlaceOf {
    Lines(Arc<Path>),
    Argument(Place),
}

impl PlaceOf {
    fn at(&self, line: usize) -> Place {
        match self {
            PlaceOf::Lines(file) => Place::Line { file: file.clone(), line },
            PlaceOf::Argument(place) => place.clone(),
        }
    }
}

struct Builder<'t> {
    events: Parser<'t, granit_parser::StrInput<'t>>,
    text: &'t str,
    places: PlaceOf,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    duplicates: Vec<Problem>,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str, places: PlaceOf) -> Self {
        Builder {
            events: Parser::new_from_str(text),
            text,
            places,
            anchors: HashMap::new(),
            nodes: 0,
            duplicates: Vec::new(),
        }
    }

    /// The only document of the stream, or `None` for an empty one.
    fn document(&mut self) -> Result<Option<Node>, Problem> {
        if self.text.len() > MAX_BYTES {
            return Err(self.limit(1, "the length in bytes", MAX_BYTES));
        }
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_none() => {}
                Event::DocumentStart(..) => {
                    return Err(self
                        .syntax(span.start.line(), "a second document begins here".into())
                        .help("one file holds one configuration: remove the `---` line"));
                }
                Event::StreamEnd => return Ok(root),
                event => root = Some(self.node(event, span, 0)?),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Problem> {
        match self.events.next() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(self.scan_error(&error)),
            None => Err(self.syntax(1, "the text ends too early".into())),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, Problem> {
        let line = span.start.line();
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.limit(line, "the number of values", MAX_NODES));
        }
        if depth > MAX_DEPTH {
            return Err(self.limit(line, "the depth of nesting", MAX_DEPTH));
        }
        let place = self.places.at(line);
        let (content, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                (Content::Scalar { text: text.into_owned(), plain }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(id) => {
                let node = self.anchors.get(&id).cloned();
                let node = node.ok_or_else(|| self.syntax(line, "an alias to itself".into()))?;
                self.nodes += node.count();
                return Ok(node);
            }
            _ => return Err(self.syntax(line, "a value was expected here".into())),
        };
        let node = Node { content, place };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Content, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Content::List(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Content, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut first_lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            let line = span.start.line();
            let place = self.places.at(line);
            let key = match event {
                Event::MappingEnd => return Ok(Content::Map(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.syntax(line, "a key must be a word".into())),
            };
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            match first_lines.get(&key) {
                Some(&first_line) => self.duplicates.push(
                    Problem::new(&place, ConfigError::Duplicate { key, first_line })
                        .help("keep one of the two lines"),
                ),
                None => {
                    first_lines.insert(key.clone(), line);
                    entries.push(Entry { key, place, node });
                }
            }
        }
    }

    fn limit(&self, line: usize, what: &'static str, limit: usize) -> Problem {
        Problem::new(&self.places.at(line), ConfigError::TooLarge { what, limit })
            .help("this is hardly a configuration: was another file meant?")
    }

    fn syntax(&self, line: usize, message: String) -> Problem {
        Problem::new(&self.places.at(line), ConfigError::Syntax(message))
    }

    fn scan_error(&self, error: &ScanError) -> Problem {
        let line = error.marker().line();
        let problem = self.syntax(line, error.info());
        let written = self.text.lines().nth(line.saturating_sub(1)).unwrap_or("");
        let indent = &written[..written.len() - written.trim_start().len()];
        if indent.contains('\t') || error.info().contains("tab") {
            problem.help("YAML is indented with spaces: replace the tabs")
        } else if written.matches(": ").count() > 1 {
            problem.help("a value that holds `: ` needs quotes around it")
        } else {
            problem.help("each line reads `key: value`; see docs/config.md for the keys")
        }
    }
}
