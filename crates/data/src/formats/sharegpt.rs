//! The sharegpt format: turns `{"from": …, "value": …}` that alternate.
//!
//! `{conversations: [{from, value}, …], system, tools}`. A turn from `function_call` holds the calls
//! as JSON text, one from `observation` the tool's result. The names are configurable ([`Tags`]).

use serde_json::{Map, Value};

use super::calls::{calls_in_text, calls_of};
use super::turns::{self, Tags, TurnColumns, supervised};
use super::{Talk, quoted};
use crate::conversation::{Message, Role};
use crate::rows::kind_of;

pub(super) fn convert(
    names: &TurnColumns,
    columns: &mut Map<String, Value>,
) -> Result<Talk, String> {
    turns::convert(names, columns, message_of)
}

fn message_of(tags: &Tags, mut turn: Map<String, Value>) -> Result<Message, String> {
    let from = match turn.get(&tags.role) {
        Some(Value::String(from)) => from.clone(),
        Some(other) => return Err(format!("`{}` is {}, not a text", tags.role, kind_of(other))),
        None => {
            return Err(format!(
                "no `{}` (it has {})",
                tags.role,
                quoted(turn.keys().map(String::as_str))
            ));
        }
    };
    let role = match from.as_str() {
        from if from == tags.user => Role::User,
        from if from == tags.assistant || from == tags.function => Role::Assistant,
        from if from == tags.observation => Role::Tool,
        from if from == tags.system => Role::System,
        from => {
            let known = [
                &tags.system,
                &tags.user,
                &tags.assistant,
                &tags.function,
                &tags.observation,
            ];
            let known = quoted(known.into_iter().map(String::as_str));
            return Err(format!(
                "`{}` is `{from}`, which is none of {known}",
                tags.role
            ));
        }
    };
    let supervised = supervised(&turn)?;
    let content = match turn.get_mut(&tags.content).map(Value::take) {
        Some(content) => content,
        None => return Err(format!("no `{}`", tags.content)),
    };
    let mut message = Message::text(role, "");
    message.supervised = supervised;
    match content {
        Value::String(text) if from == tags.function => {
            (message.content, message.tool_calls) = calls_in_text(&text)?;
        }
        calls @ (Value::Object(_) | Value::Array(_)) if from == tags.function => {
            message.tool_calls = calls_of(calls)?;
        }
        Value::String(text) => message.content = text,
        other => {
            return Err(format!(
                "`{}` is {}, not a text",
                tags.content,
                kind_of(&other)
            ));
        }
    }
    if from == tags.function && message.tool_calls.is_empty() {
        return Err("it calls no tool".to_owned());
    }
    Ok(message)
}
