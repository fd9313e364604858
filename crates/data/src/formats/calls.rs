//! Tools offered and tools called: JSON inside rows, as text or as it is.

use serde_json::{Map, Value};

use super::take_array;
use crate::conversation::{Message, ToolCall};
use crate::rows::kind_of;

/// Takes the column of tools: an array of descriptions or the JSON text of one (a lone description
/// counts as an array of one); `None` without the column or its value, and for an empty array. An empty array in text stays
/// one: LLaMA-Factory writes a system block for it.
///
/// Descriptions are kept as they are, wrapped (`{"type": "function", "function": {…}}`) or not.
pub(super) fn take_tools(
    columns: &mut Map<String, Value>,
    name: Option<&str>,
) -> Result<Option<Value>, String> {
    let Some(name) = name else {
        return Ok(None);
    };
    if columns.get(name).and_then(Value::as_array).is_some_and(Vec::is_empty) {
        columns.insert(name.to_owned(), Value::Null);
        return Ok(None);
    }
    let lone = match columns.get(name) {
        Some(Value::Object(_)) => columns.get_mut(name).map(Value::take),
        Some(Value::String(text)) if text.trim_start().starts_with('{') => serde_json::from_str(text).ok(),
        _ => None,
    };
    let tools = match lone {
        // An object without a word describes nothing.
        Some(Value::Object(tool)) if tool.is_empty() => Vec::new(),
        Some(tool) => vec![tool],
        None => match take_array(columns, name)? {
            Some(tools) => tools,
            None => return Ok(None),
        },
    };
    if let Some((at, other)) = tools.iter().enumerate().find(|(_, tool)| !tool.is_object()) {
        return Err(format!("`{name}` item {} is {}, not an object", at + 1, kind_of(other)));
    }
    Ok(Some(Value::Array(tools)))
}

/// What begins a call within other text.
const OPEN: &str = "<tool_call>";

/// The words and the calls of a turn that calls tools (LLaMA-Factory's `function_call`).
///
/// The text is the JSON of one call or of an array of calls, `{name, arguments}`; a block of thought
/// (`<think>…</think>`) may come before it. Calls may also stand in `<tool_call>` blocks within other
/// text, all of which is then before the calls.
pub(super) fn put_calls(text: &str, message: &mut Message) -> Result<(), String> {
    let (words, calls) = calls_in_text(text)?;
    let end = words.trim_end().len();
    // Before JSON alone stands what a template puts behind a thought.
    let keeps_gap = end > 0 && text.contains(OPEN);
    message.gap = keeps_gap.then(|| words[end..].to_owned());
    (message.content, message.tool_calls) = (words[..end].to_owned(), calls);
    Ok(())
}

fn calls_in_text(text: &str) -> Result<(String, Vec<ToolCall>), String> {
    // Not where it stands in an argument.
    let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(text.trim()).is_ok();
    if text.contains(OPEN) && !is_json() {
        return tagged_calls(text);
    }
    let thought = match text.trim_start().starts_with("<think>") {
        true => text.find("</think>").map_or(0, |at| at + "</think>".len()),
        false => 0,
    };
    let (words, json) = text.split_at(thought);
    Ok((words.to_owned(), calls_of(parse(json)?)?))
}

/// The calls in `<tool_call>…</tool_call>` blocks and the text around them.
fn tagged_calls(mut text: &str) -> Result<(String, Vec<ToolCall>), String> {
    const CLOSE: &str = "</tool_call>";
    let mut words = String::new();
    let mut calls = Vec::new();
    while let Some((before, behind)) = text.split_once(OPEN) {
        let Some((json, rest)) = behind.split_once(CLOSE) else {
            return Err(format!("`{OPEN}` is not closed by `{CLOSE}`"));
        };
        add_words(&mut words, before);
        calls.extend(calls_of(parse(json)?)?);
        text = rest;
    }
    add_words(&mut words, text);
    Ok((words, calls))
}

/// White space alone between calls is none of the words.
fn add_words(words: &mut String, more: &str) {
    if !more.trim().is_empty() {
        words.push_str(more);
    }
}

fn parse(json: &str) -> Result<Value, String> {
    exact(json.trim(), "the tool call is not JSON")
}

/// The value of a JSON text, no number of it another one than is written; `else_what` it is, if it is none.
fn exact(json: &str, else_what: &str) -> Result<Value, String> {
    let value = serde_json::from_str(json).map_err(|error| format!("{else_what}: {error}"))?;
    match wide_integer(json) {
        Some(digits) => Err(format!("the whole number {digits} has more than 64 bits; write it as a text")),
        None => Ok(value),
    }
}

/// The first whole number of a JSON text that no 64 bits hold.
pub(crate) fn wide_integer(json: &str) -> Option<&str> {
    // Texts in quotes are the odd pieces, where an escaped quote ends none.
    let mut rest = json;
    loop {
        let end = rest.find('"').unwrap_or(rest.len());
        let mut numbers =
            rest[..end].split(|c: char| !(c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E')));
        let is_whole =
            |number: &&str| number.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        let is_wide = |number: &&str| {
            number.len() > 18 && number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
        };
        if let Some(wide) = numbers.find(|number| is_wide(number) && is_whole(number)) {
            return Some(wide);
        }
        let mut escaped = false;
        let inside = rest.get(end + 1..)?;
        let close = inside.find(|c| match (escaped, c) {
            (true, _) => {
                escaped = false;
                false
            }
            (false, '\\') => {
                escaped = true;
                false
            }
            (false, c) => c == '"',
        })?;
        rest = &inside[close + 1..];
    }
}

/// The calls that a value describes: one object, or an array of them.
pub(crate) fn calls_of(value: Value) -> Result<Vec<ToolCall>, String> {
    let items = match value {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        Value::String(text) if text.trim().is_empty() => Vec::new(),
        Value::String(text) => {
            return calls_of(parse(&text)?).map_err(|reason| format!("{reason} (in text)"));
        }
        other => vec![other],
    };
    let numbered = items.into_iter().enumerate();
    numbered
        .map(|(at, item)| call_of(item).map_err(|reason| format!("tool call {}: {reason}", at + 1)))
        .collect()
}

/// One call: `{id, type, function: {name, arguments}}` or `{name, arguments}`.
fn call_of(item: Value) -> Result<ToolCall, String> {
    let Value::Object(mut outer) = item else {
        return Err(format!("it is {}, not an object", kind_of(&item)));
    };
    let id = match outer.get_mut("id").map(Value::take) {
        Some(Value::String(id)) => Some(id),
        Some(Value::Number(id)) => Some(id.to_string()),
        _ => None,
    };
    let mut function = match outer.get_mut("function").map(Value::take) {
        Some(Value::Object(function)) => function,
        _ => outer,
    };
    let name = match function.get_mut("name").map(Value::take) {
        Some(Value::String(name)) if !name.is_empty() => name,
        _ => return Err("it has no `name`".to_owned()),
    };
    let arguments = match function.get_mut("arguments").map(Value::take) {
        None => return Err("it has no `arguments`".to_owned()),
        Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
        Some(Value::String(text)) => exact(&text, "`arguments` is a text that is no JSON")?,
        Some(Value::Null) => Value::Object(Map::new()),
        Some(arguments) => arguments,
    };
    if !arguments.is_object() {
        return Err(format!("`arguments` is {}, not an object", kind_of(&arguments)));
    }
    Ok(ToolCall { id, name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_that_64_bits_do_not_hold_is_refused_and_not_rounded() {
        for (json, wide) in [
            ("{\"x\": 10000000000000000000000}", Some("10000000000000000000000")),
            ("[-9223372036854775809]", Some("-9223372036854775809")),
            ("{\"x\": 18446744073709551615, \"y\": -9223372036854775808}", None),
            ("{\"x\": 1e30, \"y\": 12345678901234567890123.5}", None),
            ("{\"id\": \"10000000000000000000000\", \"a\\\\\": \"\\\"99999999999999999999999\"}", None),
        ] {
            assert_eq!(wide_integer(json), wide, "{json}");
        }
        let mut message = Message::text(crate::conversation::Role::Assistant, "");
        let call = "{\"name\": \"f\", \"arguments\": {\"x\": 10000000000000000000000}}";
        let reason = put_calls(call, &mut message).unwrap_err();
        assert!(reason.contains("more than 64 bits; write it as a text"), "{reason}");
    }
}
