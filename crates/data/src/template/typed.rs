//! Keeps what people typed apart from what the template wrote: see [`crate::tokenize`]'s `typed`.

use std::ops::Range;

use serde_json::{Map, Value};

use super::{Rendered, Segment};
use crate::conversation::{Message, Role};
use crate::tokenize::{TypedTokens, Which};

/// Renders messages in which special tokens are hidden, and shows them again as plain text.
pub(super) fn rendered(
    special: &TypedTokens,
    messages: &[Message],
    tools: Option<&Value>,
    stops: &[String],
    render: impl Fn(&[Message], Option<&Value>) -> Result<Rendered, String>,
) -> Result<Rendered, String> {
    let is_typed = messages.iter().any(|message| spells(special, message, stops))
        || tools.is_some_and(|tools| any_string(tools, &|text| special.is_in(text, Which::All)));
    if !is_typed {
        return render(messages, tools);
    }
    let private = |text: &str| text.chars().any(|character| special.shown(character).is_some());
    if messages.iter().any(|message| any_text(message, &private))
        || tools.is_some_and(|tools| any_string(tools, &private))
    {
        return Err("it spells a special token and also has private characters of Unicode's last plane, \
                    which stand for such tokens while templates are rendered"
            .into());
    }
    let hidden: Vec<Message> = messages.iter().map(|message| hide(special, message, stops)).collect();
    let tools = tools.map(|tools| hide_value(special, tools, Which::All));
    let mut rendered = render(&hidden, tools.as_ref())?;
    rendered.segments.iter_mut().for_each(|segment| show(special, segment));
    Ok(rendered)
}

/// What may not be taken for a token: in an answer only what would end it.
fn forbidden<'a>(message: &Message, stops: &'a [String]) -> Which<'a> {
    match message.role {
        Role::Assistant => Which::These(stops),
        Role::System | Role::User | Role::Tool => Which::All,
    }
}

fn spells(special: &TypedTokens, message: &Message, stops: &[String]) -> bool {
    let which = forbidden(message, stops);
    any_text(message, &|text| special.is_in(text, which))
}

/// Whether something holds for a text that a template can write of a message.
fn any_text(message: &Message, holds: &dyn Fn(&str) -> bool) -> bool {
    let texts = [Some(&message.content), message.reasoning.as_ref(), message.name.as_ref()];
    texts.into_iter().flatten().any(|text| holds(text))
        || message.tool_calls.iter().any(|call| any_string(&call.arguments, holds))
}

/// The same for the strings and keys in a value.
fn any_string(value: &Value, holds: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => holds(text),
        Value::Array(list) => list.iter().any(|value| any_string(value, holds)),
        Value::Object(map) => map.iter().any(|(key, value)| holds(key) || any_string(value, holds)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn hide(special: &TypedTokens, message: &Message, stops: &[String]) -> Message {
    let which = forbidden(message, stops);
    let mut hidden = message.clone();
    hidden.content = special.hidden(&message.content, which);
    for text in [&mut hidden.reasoning, &mut hidden.name].into_iter().flatten() {
        *text = special.hidden(text, which);
    }
    for call in &mut hidden.tool_calls {
        call.arguments = hide_value(special, &call.arguments, which);
    }
    hidden
}

fn hide_value(special: &TypedTokens, value: &Value, which: Which<'_>) -> Value {
    match value {
        Value::String(text) => Value::String(special.hidden(text, which)),
        Value::Array(list) => list.iter().map(|value| hide_value(special, value, which)).collect(),
        Value::Object(map) => {
            let entries = map.iter();
            let hidden =
                entries.map(|(key, value)| (special.hidden(key, which), hide_value(special, value, which)));
            Value::Object(hidden.collect::<Map<_, _>>())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Puts the words back where private characters stand.
fn show(special: &TypedTokens, segment: &mut Segment) {
    let Segment::Text { text, spans, borders, typed } = segment else { return };
    let mut shown = String::with_capacity(text.len());
    // (byte in the hidden text after a private character, bytes that the shown text is ahead there)
    let mut ahead: Vec<(usize, usize)> = Vec::new();
    for (at, character) in text.char_indices() {
        match special.shown(character) {
            None => shown.push(character),
            Some(words) => {
                let start = shown.len();
                shown.push_str(words);
                typed.push(start..shown.len());
                let end = at + character.len_utf8();
                // Words may be shorter than the character: count from the end, where both are known.
                ahead.push((end, shown.len().wrapping_sub(end)));
            }
        }
    }
    let moved = |byte: usize| {
        let passed = ahead.partition_point(|(end, _)| *end <= byte);
        let ahead = passed.checked_sub(1).map_or(0, |last| ahead[last].1);
        byte.wrapping_add(ahead)
    };
    let moved_range = |range: &Range<usize>| moved(range.start)..moved(range.end);
    spans.iter_mut().for_each(|(range, _)| *range = moved_range(range));
    borders.iter_mut().for_each(|border| *border = moved(*border));
    *text = shown;
}
