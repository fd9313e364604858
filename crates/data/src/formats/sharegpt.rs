//! The sharegpt format: turns `{"from": …, "value": …}` that alternate.
//!
//! `{conversations: [{from, value}, …], system, tools}`. A turn from `function_call` holds the calls
//! as JSON text, one from `observation` the tool's result. The names are configurable ([`Tags`]).

use serde_json::{Map, Value};

use super::calls::{calls_of, put_calls};
use super::turns::{self, Tags, TurnColumns, weight_of};
use super::{Talk, quoted};
use crate::conversation::{Message, Role};
use crate::rows::kind_of;

pub(super) fn convert(names: &TurnColumns, columns: &mut Map<String, Value>) -> Result<Talk, String> {
    turns::convert(names, columns, message_of)
}

fn message_of(tags: &Tags, mut turn: Map<String, Value>) -> Result<Message, String> {
    let from = match turn.get(&tags.role) {
        Some(Value::String(from)) => from.clone(),
        Some(other) => return Err(format!("`{}` is {}, not a text", tags.role, kind_of(other))),
        None => {
            return Err(format!("no `{}` (it has {})", tags.role, quoted(turn.keys().map(String::as_str))));
        }
    };
    let role = match from.as_str() {
        from if from == tags.user => Role::User,
        from if from == tags.assistant || from == tags.function => Role::Assistant,
        from if from == tags.observation => Role::Tool,
        from if from == tags.system => Role::System,
        from => {
            let known = [&tags.system, &tags.user, &tags.assistant, &tags.function, &tags.observation];
            let known = quoted(known.into_iter().map(String::as_str));
            return Err(format!("`{}` is `{from}`, which is none of {known}", tags.role));
        }
    };
    let weight = weight_of(&turn)?;
    let content = match turn.get_mut(&tags.content).map(Value::take) {
        Some(content) => content,
        None => return Err(format!("no `{}`", tags.content)),
    };
    let mut message = Message::text(role, "");
    message.weight = weight;
    match content {
        Value::String(text) if from == tags.function => {
            put_calls(&text, &mut message)?;
        }
        calls @ (Value::Object(_) | Value::Array(_)) if from == tags.function => {
            message.tool_calls = calls_of(calls)?;
        }
        Value::String(text) => message.content = text,
        other => {
            return Err(format!("`{}` is {}, not a text", tags.content, kind_of(&other)));
        }
    }
    if from == tags.function && message.tool_calls.is_empty() {
        return Err("it calls no tool".to_owned());
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Format;
    use super::super::testing::{reason, row};
    use super::*;
    use crate::conversation::{Conversation, ToolCall};

    fn convert(json: &str) -> Conversation {
        let names = TurnColumns { tools: Some("tools".to_owned()), ..TurnColumns::sharegpt() };
        Format::Sharegpt(names).convert(row(json)).expect("a good row")
    }

    #[test]
    fn turns_become_messages_with_calls_and_results() {
        let found = convert(
            r#"{"conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": 2}}"},
                {"from": "observation", "value": "{\"r\": 1}"},
                {"from": "gpt", "value": "a"}
            ], "tools": "[{\"name\": \"f\", \"description\": \"d\"}]"}"#,
        );
        let call = ToolCall { id: None, name: "f".to_owned(), arguments: json!({"b": 1, "a": 2}) };
        let mut calling = Message::text(Role::Assistant, "");
        calling.tool_calls = vec![call];
        let expected = [
            Message::text(Role::System, "s"),
            Message::text(Role::User, "q"),
            calling,
            Message::text(Role::Tool, r#"{"r": 1}"#),
            Message::text(Role::Assistant, "a"),
        ];
        assert_eq!(found.messages, expected);
        assert_eq!(found.messages[2].tool_calls[0].arguments.to_string(), r#"{"b":1,"a":2}"#);
        assert_eq!(found.tools, Some(json!([{"name": "f", "description": "d"}])));
    }

    #[test]
    fn an_empty_list_of_tools_is_none_and_one_in_text_is_kept() {
        let tools = |tools: &str| {
            let turns = r#"[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]"#;
            convert(&format!(r#"{{"conversations": {turns}, "tools": {tools}}}"#)).tools
        };
        assert_eq!((tools("[]"), tools(r#""[]""#)), (None, Some(json!([]))));
    }

    #[test]
    fn calls_may_be_several_and_follow_a_thought() {
        for (value, words, gap, names) in [
            (
                r#"[{"name": "f", "arguments": {}}, {"name": "g", "arguments": "{}"}]"#,
                "",
                None,
                vec!["f", "g"],
            ),
            (
                "<think>\nhm\n</think>\n\n{\"name\": \"f\", \"arguments\": {}}",
                "<think>\nhm\n</think>",
                None,
                vec!["f"],
            ),
            (
                "first\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>",
                "first",
                Some("\n"),
                vec!["f", "g"],
            ),
            (r#"{"name": "f", "arguments": {"mark": "<tool_call>"}}"#, "", None, vec!["f"]),
        ] {
            let mut message = Message::text(Role::Assistant, "");
            put_calls(value, &mut message).expect("good calls");
            assert_eq!((message.content.as_str(), message.gap.as_deref()), (words, gap), "{value}");
            assert_eq!(
                message.tool_calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(),
                names,
                "{value}"
            );
        }
    }

    #[test]
    fn malformed_dialogues_say_what_is_wrong() {
        let format = Format::Sharegpt(TurnColumns::sharegpt());
        let human = r#"{"from": "human", "value": "q"}"#;
        let gpt = r#"{"from": "gpt", "value": "a"}"#;
        let call =
            |text: &str| format!(r#"{human}, {{"from": "function_call", "value": {}}}"#, Value::from(text));
        for (turns, expected) in [
            (String::new(), "there are no turns"),
            (
                format!("{human}, {gpt}, {human}"),
                "the last message is the user's, so there is no answer to train at the end",
            ),
            (
                format!("{gpt}, {human}"),
                "message 1 is the assistant's, where the user's or a tool's must come (questions and answers take turns)",
            ),
            (
                format!("{human}, {human}"),
                "message 2 is the user's, where the assistant's must come (questions and answers take turns)",
            ),
            (
                format!(r#"{human}, {gpt}, {{"from": "system", "value": ""}}"#),
                "message 3: a system message is only allowed as the first",
            ),
            (
                r#"{"from": "user", "value": "q"}"#.to_owned(),
                "turn 1: `from` is `user`, which is none of `system`, `human`, `gpt`, `function_call`, `observation`",
            ),
            (r#"{"role": "human"}"#.to_owned(), "turn 1: no `from` (it has `role`)"),
            (r#"{"from": "human"}"#.to_owned(), "turn 1: no `value`"),
            (r#"{"from": "human", "value": 1}"#.to_owned(), "turn 1: `value` is a number, not a text"),
            ("7".to_owned(), "turn 1: it is a number, not an object"),
            (call("[]"), "turn 2: it calls no tool"),
            (call("{\"name\": \"f\"}"), "turn 2: tool call 1: it has no `arguments`"),
            (call("{\"arguments\": {}}"), "turn 2: tool call 1: it has no `name`"),
            (
                call("{\"name\": \"f\", \"arguments\": [1]}"),
                "turn 2: tool call 1: `arguments` is an array, not an object",
            ),
        ] {
            assert_eq!(reason(&format, &format!(r#"{{"conversations": [{turns}]}}"#)), expected, "{turns}");
        }
        assert_eq!(reason(&format, r#"{"messages": []}"#), "no `conversations` (the row has `messages`)");
        assert!(
            reason(&format, &format!(r#"{{"conversations": [{}]}}"#, call("f(x)"))).contains("is not JSON")
        );
    }

    #[test]
    fn the_system_column_counts_where_no_turn_is_the_systems() {
        let names = TurnColumns { system: Some("sys".to_owned()), ..TurnColumns::sharegpt() };
        let format = Format::Sharegpt(names);
        let turns = r#"{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}"#;
        let system =
            |json: String| format.convert(row(&json)).expect("a good row").messages.remove(0).content;
        assert_eq!(system(format!(r#"{{"sys": "column", "conversations": [{turns}]}}"#)), "column");
        let turn = r#"{"from": "system", "value": "turn"}"#;
        assert_eq!(system(format!(r#"{{"sys": "column", "conversations": [{turn}, {turns}]}}"#)), "turn");
        assert_eq!(system(format!(r#"{{"sys": "", "conversations": [{turns}]}}"#)), "q");
    }
}
