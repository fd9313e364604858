//! OpenAI messages: `{"role": …, "content": …}` with tool calls.
//!
//! `{messages: [{role, content, tool_calls, reasoning_content, name, tool_call_id, weight}, …], tools}`.
//! Roles are system (or developer), user, assistant and tool; the content is a text, a list of text
//! parts, or absent where the assistant only calls tools. Every result of a tool stays a message of
//! its own. Parts `{"type": "reasoning" | "tool_call", "value": …}` of newer LLaMA-Factory data are
//! read as well.

use serde_json::{Map, Value};

use super::calls::{calls_of, put_calls, take_tools};
use super::turns::{self, Tags, TurnColumns, weight_of};
use super::{Talk, quoted};
use crate::conversation::{Message, Role, ToolCall};
use crate::rows::kind_of;

pub(super) fn convert(names: &TurnColumns, columns: &mut Map<String, Value>) -> Result<Talk, String> {
    turns::convert(names, columns, message_of)
}

/// The messages of a request that a model is to answer, in any order that its template takes; `messages` is taken out of it.
///
/// # Errors
/// What is wrong with them; there are none, or an answer comes last, so that nothing is asked.
pub fn asked(request: &mut Map<String, Value>) -> Result<Vec<Message>, String> {
    let messages = request.remove("messages").filter(|messages| !messages.is_null());
    let mut row = Map::from_iter([("messages".to_owned(), messages.ok_or("is missing")?)]);
    let names = TurnColumns { tools: None, ..TurnColumns::openai() };
    let Talk { messages, .. } = turns::read(&names, &mut row, message_of)?;
    match messages.last() {
        None => Err("is empty: there is nothing to answer".to_owned()),
        Some(last) if last.role == Role::Assistant => {
            Err("ends with the assistant's: there is nothing to answer".to_owned())
        }
        Some(_) => Ok(messages),
    }
}

/// The tools that a request offers; `tools` is taken out of it.
///
/// # Errors
/// They are no list of objects.
pub fn offered(request: &mut Map<String, Value>) -> Result<Option<Value>, String> {
    let tools = request.remove("tools").unwrap_or_default();
    take_tools(&mut Map::from_iter([("tools".to_owned(), tools)]), Some("tools"))
}

fn message_of(tags: &Tags, mut fields: Map<String, Value>) -> Result<Message, String> {
    let role_word = match fields.get(&tags.role) {
        Some(Value::String(role)) => role.clone(),
        Some(other) => return Err(format!("`{}` is {}, not a text", tags.role, kind_of(other))),
        None => {
            return Err(format!("no `{}` (it has {})", tags.role, quoted(fields.keys().map(String::as_str))));
        }
    };
    let role = role_of(tags, &role_word)?;
    let mut message = Message::text(role, "");
    message.weight = weight_of(&fields)?;
    let mut take = |key: &str| fields.get_mut(key).map(Value::take).filter(|value| !value.is_null());
    for key in ["reasoning_content", "reasoning", "thinking"] {
        if let Some(Value::String(text)) = take(key).filter(|_| message.reasoning.is_none()) {
            message.reasoning = Some(text).filter(|text| !text.is_empty());
        }
    }
    let content = take(&tags.content);
    let has_content = content.is_some();
    match content {
        None => {}
        Some(Value::String(text)) if role_word == tags.function => {
            put_calls(&text, &mut message)?;
        }
        Some(Value::String(text)) => message.content = text,
        Some(Value::Array(parts)) => {
            for (at, part) in parts.into_iter().enumerate() {
                add_part(&mut message, part).map_err(|reason| format!("part {}: {reason}", at + 1))?;
            }
        }
        Some(other) => {
            return Err(format!("`{}` is {}, not a text or a list of parts", tags.content, kind_of(&other)));
        }
    }
    message.tool_calls.extend(take_calls(&mut take)?);
    message.name = take("name").and_then(text_of);
    message.tool_call_id = take("tool_call_id").and_then(text_of);
    if role != Role::Assistant && !message.tool_calls.is_empty() {
        return Err(format!("a message of role `{role_word}` cannot call tools"));
    }
    if !has_content && message.tool_calls.is_empty() {
        return Err(format!("no `{}` and no tool calls", tags.content));
    }
    Ok(message)
}

fn role_of(tags: &Tags, word: &str) -> Result<Role, String> {
    Ok(match word {
        word if word == tags.user => Role::User,
        word if word == tags.assistant || word == tags.function => Role::Assistant,
        word if word == tags.observation => Role::Tool,
        word if word == tags.system => Role::System,
        "developer" => Role::System,
        // OpenAI's older name for the result of a call.
        "function" => Role::Tool,
        word => {
            let known = [&tags.system, &tags.user, &tags.assistant, &tags.observation];
            let known = quoted(known.into_iter().map(String::as_str));
            return Err(format!("`{}` is `{word}`, which is none of {known}", tags.role));
        }
    })
}

/// Calls in `tool_calls`, and in the older `function_call`.
fn take_calls(take: &mut impl FnMut(&str) -> Option<Value>) -> Result<Vec<ToolCall>, String> {
    let mut calls = take("tool_calls").map_or(Ok(Vec::new()), calls_of)?;
    if let Some(call) = take("function_call") {
        calls.extend(calls_of(call)?);
    }
    Ok(calls)
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// Adds a part of a content list: texts are joined without anything between them.
fn add_part(message: &mut Message, part: Value) -> Result<(), String> {
    let mut part = match part {
        Value::String(text) => {
            message.content += &text;
            return Ok(());
        }
        Value::Object(part) => part,
        other => {
            return Err(format!("it is {}, not a text or an object", kind_of(&other)));
        }
    };
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text").to_owned();
    let mut take = |keys: &[&str]| {
        let found = keys.iter().find(|key| part.get(**key).is_some_and(|value| !value.is_null()));
        found.and_then(|key| part.get_mut(*key)).map(Value::take)
    };
    let text = |value: Option<Value>| match value {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("the words of a `{kind}` part are {}, not a text", kind_of(&other))),
        None => Err(format!("a `{kind}` part without words")),
    };
    match kind.as_str() {
        "text" | "input_text" | "output_text" => message.content += &text(take(&["text", "value"]))?,
        "reasoning" | "thinking" => {
            let words = text(take(&["text", "value", "thinking", "reasoning"]))?;
            message.reasoning.get_or_insert_default().push_str(&words);
        }
        "tool_call" => match take(&["value", "tool_call", "function"]) {
            Some(call) => message.tool_calls.extend(calls_of(call)?),
            None => return Err("a `tool_call` part without a call".to_owned()),
        },
        _ => return Err(format!("its type is `{kind}`; only text is supported")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Format;
    use super::super::testing::{reason, row};
    use super::*;

    fn messages(list: &str) -> Vec<Message> {
        let format = Format::OpenAi(TurnColumns::openai());
        let row = row(&format!(r#"{{"messages": [{list}]}}"#));
        format.convert(row).expect("a good row").messages
    }

    const USER: &str = r#"{"role": "user", "content": "q"}"#;

    #[test]
    fn nothing_is_added_to_or_made_up_for_the_system_message() {
        let answer = r#"{"role": "assistant", "content": "a"}"#;
        assert_eq!(messages(&format!("{USER}, {answer}")).len(), 2);
        let system = r#"{"role": "developer", "content": "Be brief."}"#;
        let found = messages(&format!("{system}, {USER}, {answer}"));
        assert_eq!(found[0], Message::text(Role::System, "Be brief."));
    }

    #[test]
    fn calls_and_every_result_stay_messages_of_their_own() {
        let found = messages(
            r#"{"role": "user", "content": "q"},
               {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                 {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}},
                 {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {}}}]},
               {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "1"},
               {"role": "tool", "tool_call_id": "c2", "content": "2"},
               {"role": "assistant", "content": "a"}"#,
        );
        let call = |id: &str, name: &str, arguments| ToolCall {
            id: Some(id.to_owned()),
            name: name.to_owned(),
            arguments,
        };
        assert_eq!(found[1].content, "");
        assert_eq!(found[1].reasoning.as_deref(), Some("hm"));
        let expected = [call("c1", "f", json!({"b": 1, "a": 2})), call("c2", "g", json!({}))];
        assert_eq!(found[1].tool_calls, expected);
        assert_eq!(found[1].tool_calls[0].arguments.to_string(), r#"{"b":1,"a":2}"#);
        let mut first = Message::text(Role::Tool, "1");
        (first.name, first.tool_call_id) = (Some("f".to_owned()), Some("c1".to_owned()));
        let mut second = Message::text(Role::Tool, "2");
        second.tool_call_id = Some("c2".to_owned());
        assert_eq!(found[2..4], [first, second]);
    }

    #[test]
    fn parts_are_joined_and_reasoning_and_calls_kept_apart() {
        let found = messages(
            r#"{"role": "user", "content": ["a", {"type": "text", "text": "b"}, {"type": "text", "value": "c"}]},
               {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "x"},
                 {"type": "tool_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}]}"#,
        );
        assert_eq!(found[0].content, "abc");
        assert_eq!((found[1].content.as_str(), found[1].reasoning.as_deref()), ("x", Some("hm")));
        assert_eq!(found[1].tool_calls[0].name, "f");
    }

    #[test]
    fn a_weight_of_a_message_is_kept() {
        for (switch, expected) in [
            (r#""weight": 0"#, Some(0.0)),
            (r#""weight": 1"#, Some(1.0)),
            (r#""loss_weight": 0.0"#, Some(0.0)),
            (r#""train": true"#, Some(1.0)),
            (r#""loss": false"#, Some(0.0)),
            (r#""weight": 0.25"#, Some(0.25)),
            (r#""loss_weight": 3"#, Some(3.0)),
            (r#""masked": true"#, Some(0.0)),
            (r#""weight": null"#, None),
        ] {
            let found = messages(&format!(r#"{USER}, {{"role": "assistant", "content": "a", {switch}}}"#));
            assert_eq!(found[1].weight, expected, "{switch}");
        }
    }

    #[test]
    fn malformed_messages_say_what_is_wrong() {
        let format = Format::OpenAi(TurnColumns::openai());
        for (list, expected) in [
            (
                r#"{"role": "bot", "content": "a"}"#,
                "turn 1: `role` is `bot`, which is none of `system`, `user`, `assistant`, `tool`",
            ),
            (r#"{"content": "a"}"#, "turn 1: no `role` (it has `content`)"),
            (r#"{"role": "user"}"#, "turn 1: no `content` and no tool calls"),
            (
                r#"{"role": "user", "content": {"a": 1}}"#,
                "turn 1: `content` is an object, not a text or a list of parts",
            ),
            (
                r#"{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}"#,
                "turn 1: part 1: its type is `image_url`; only text is supported",
            ),
            (
                r#"{"role": "user", "content": "q", "tool_calls": [{"name": "f", "arguments": {}}]}"#,
                "turn 1: a message of role `user` cannot call tools",
            ),
            (
                r#"{"role": "user", "content": "q", "weight": -0.5}"#,
                "turn 1: `weight` is -0.5: a weight is 0, or from 0.000001 to 1000000, or true or false",
            ),
            (
                r#"{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "r"}"#,
                "the last message is a tool's, so there is no answer to train at the end",
            ),
        ] {
            assert_eq!(reason(&format, &format!(r#"{{"messages": [{list}]}}"#)), expected, "{list}");
        }
    }
}
