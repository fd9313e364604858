//! What a template of a stranger may not do to the engine that renders it: the source with `{% generation %}` resolved, and
//! with guards against what would overflow the stack, which no error could report.
//!
//! In: a template's source → out: a source that renders the same, or why it is refused.
//!
//! The engine limits how deep statements and brackets are nested, and how deep macros call. It does not limit chains
//! (`x | a | b | …`, `elif` after `elif`), which are as deep once they are parsed, nor values: a list in a list in a list
//! by a loop, a namespace inside itself. So the code of a tag has a length, and everything that `set` keeps goes through a
//! filter of ours, which looks how deep it is.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// The filter that values pass on their way into variables.
pub(super) const KEPT: &str = "__kept";

/// Characters of one tag, texts in quotes apart: many times what the longest templates have.
const MOST_CODE: usize = 4096;
/// `elif`s of a template.
const MOST_ELIFS: usize = 500;
/// Lists in lists of a value.
const DEEPEST: usize = 100;
/// Values that one rendering may look at on their way into variables.
const MOST_STEPS: u64 = 5_000_000;

/// The source that is rendered.
///
/// # Errors
/// Code that is too long.
pub(super) fn source(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let (mut rest, mut elifs) = (source, 0);
    while let Some(at) = rest.match_indices('{').map(|(at, _)| at).find(|at| is_tag(&rest[*at..])) {
        let (before, from_tag) = rest.split_at(at);
        out.push_str(before);
        let end = match from_tag.starts_with("{#") {
            true => from_tag.find("#}").map(|end| end + 2),
            false => end_of_code(from_tag)?,
        };
        // What does not end, the engine complains of.
        let (tag, after) = from_tag.split_at(end.unwrap_or(from_tag.len()));
        let Some(block) = Block::of(tag) else {
            out.push_str(tag);
            rest = after;
            continue;
        };
        if block.word == "raw" {
            let end = after
                .match_indices("{%")
                .find(|(at, _)| Block::of(&after[*at..]).is_some_and(|b| b.word == "endraw"));
            let (raw, after_raw) = after.split_at(end.map_or(after.len(), |(at, _)| at));
            out.push_str(tag);
            out.push_str(raw);
            rest = after_raw;
            continue;
        }
        elifs += usize::from(block.word == "elif");
        if elifs > MOST_ELIFS {
            return Err(format!("the template has more than {MOST_ELIFS} `elif`s"));
        }
        block.write(&mut out);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn is_tag(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|tag| text.starts_with(tag))
}

/// Where a tag ends: at its mark outside of texts and brackets, as the engine sees it.
fn end_of_code(tag: &str) -> Result<Option<usize>, String> {
    let end = if tag.starts_with("{{") { "}}" } else { "%}" };
    let (mut quote, mut escaped, mut open, mut code) = (None, false, 0_usize, 0);
    for (at, c) in tag.char_indices().skip(2) {
        if let Some(mark) = quote {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == mark => quote = None,
                _ => {}
            }
            continue;
        }
        code += 1;
        if code > MOST_CODE {
            return Err(format!("a tag of the template has more than {MOST_CODE} characters of code"));
        }
        match c {
            _ if open == 0 && tag[at..].starts_with(end) => return Ok(Some(at + 2)),
            '\'' | '"' => quote = Some(c),
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    Ok(None)
}

/// A whole `{% … %}`.
struct Block<'a> {
    /// `{%`, its mark of white space, and what is before the word.
    lead: &'a str,
    word: &'a str,
    /// Behind the word.
    inside: &'a str,
    /// `%}` with its mark of white space.
    close: &'a str,
}

impl<'a> Block<'a> {
    fn of(tag: &'a str) -> Option<Self> {
        let inner = tag.strip_prefix("{%")?;
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start();
        let word =
            &inner[..inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len())];
        let lead = &tag[..tag.len() - inner.len()];
        let behind = &inner[word.len()..];
        let inside = behind.strip_suffix("%}").unwrap_or(behind);
        let inside = inside.strip_suffix(['-', '+']).unwrap_or(inside);
        Some(Self { lead, word, inside, close: &behind[inside.len()..] })
    }

    fn write(&self, out: &mut String) {
        let Self { lead, word, inside, close } = *self;
        // Spans of answers are found without it: a condition that always holds.
        let word = match word {
            "generation" if inside.trim().is_empty() => "if true",
            "endgeneration" if inside.trim().is_empty() => "endif",
            other => other,
        };
        let guarded = match inside.split_once('=') {
            Some((target, value)) if word == "set" && is_target(target) && !value.trim().is_empty() => {
                // A value that goes into a namespace may not have it inside.
                let into =
                    target.split_once('.').map_or(String::new(), |(name, _)| format!("({})", name.trim()));
                format!("{target}=({value})|{KEPT}{into}")
            }
            _ => inside.to_owned(),
        };
        [lead, word, &guarded, close].into_iter().for_each(|part| out.push_str(part));
    }
}

/// Whether this is what `set` assigns to, and no filter of a block.
fn is_target(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c.is_whitespace() || "_.,()".contains(c))
}

/// What one rendering has looked at.
#[derive(Default)]
struct Steps(u64);

/// A value on its way into a variable, or into an attribute of `namespace`.
///
/// # Errors
/// A value that is too deep, or has its namespace inside; too many values in one rendering.
pub(super) fn kept(
    state: &mut State<'_, '_>,
    value: Value,
    namespace: Option<Value>,
) -> Result<Value, Error> {
    let refused = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    // What is left to look at: the items of each container on the way down.
    let mut open = vec![std::iter::once(value.clone()).collect::<Vec<_>>().into_iter()];
    while let Some(items) = open.last_mut() {
        let Some(item) = items.next() else {
            open.pop();
            continue;
        };
        let steps = state.get_or_insert_extension(Steps::default());
        steps.0 += 1;
        if steps.0 > MOST_STEPS {
            return Err(refused(format!("more than {MOST_STEPS} values are put into variables")));
        }
        if !matches!(item.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            continue;
        }
        if let Some(namespace) = &namespace
            && state.perform_test("sameas", &[item.clone(), namespace.clone()])?
        {
            return Err(refused("a namespace is put into itself".into()));
        }
        if open.len() > DEEPEST {
            return Err(refused(format!("a value is more than {DEEPEST} lists deep")));
        }
        let room = MOST_STEPS as usize;
        let inside = item.try_iter()?.take(room);
        open.push(match item.kind() {
            ValueKind::Map => {
                inside.filter_map(|key| item.get_item(&key).ok()).collect::<Vec<_>>().into_iter()
            }
            _ => inside.collect::<Vec<_>>().into_iter(),
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_assignment_stays_as_it_is() {
        let same = [
            "{# {% set x = 1 %} #}a",
            "{% raw %}{% set x = 1 %}{{ '{% endraw %}",
            "{{ '{% set x = 1 %}' }}",
            "{% set x %}text{% endset %}",
            "{% set x | replace('a', b='c') %}text{% endset %}",
            "{% if x == '%}' %}{{ {'a': {'b': 1}} }}{% endif %}",
            "{{ 'it\\'s {%' }} { % } {",
            "{% generation x %}",
            "{% unended",
        ];
        for text in same {
            assert_eq!(source(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn values_pass_the_guard_and_marks_of_white_space_stay() {
        let cases = [
            ("{%- set x = '%}' -%}", "{%- set x =( '%}' )|__kept-%}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b =( 1, 2 )|__kept%}"),
            ("{%+ set ns.x=ns.x+1 %}", "{%+ set ns.x=(ns.x+1 )|__kept(ns)%}"),
            ("{%-generation-%}a{% endgeneration %}", "{%-if true-%}a{% endif %}"),
        ];
        for (text, expected) in cases {
            assert_eq!(source(text).as_deref(), Ok(expected));
        }
    }
}
