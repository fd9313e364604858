//! What a model wrote → the calls of tools in it, whichever of the notations of [`ToolFormat`](super::ToolFormat) they are in.
//!
//! A call is one of a tool that was offered: text that only looks like a call stays text. Between marks every notation is
//! looked for, since what a model learnt is not always what its template writes.

mod literal;

use serde_json::{Map, Value};

use super::bare;
use crate::conversation::ToolCall;
use crate::formats;

/// What stands around calls, or before them where nothing closes them.
const MARKS: [(&str, &str); 8] = [
    ("<tool_call>", "</tool_call>"),
    ("<seed:tool_call>", "</seed:tool_call>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<tool_calls>", "</tool_calls>"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<|tool_call>", "<tool_call|>"),
    ("[TOOL_CALLS]", ""),
    ("<|python_tag|>", ""),
];

/// The words and the calls of an answer to which `tools` were offered; `None` if it calls none of them. The answer is decoded
/// with its special tokens.
pub fn calls_in(answer: &str, tools: &Value) -> Option<(String, Vec<ToolCall>)> {
    let offered = Offered::of(tools);
    let read = |from: usize| {
        let said = &answer[from..];
        let Found { begin, end, calls } =
            between_marks(said, &offered).or_else(|| without_marks(said, &offered))?;
        let (before, behind) = (answer[..from + begin].trim(), said[end..].trim());
        let words = [before, behind].into_iter().filter(|words| !words.is_empty());
        Some((words.collect::<Vec<_>>().join("\n"), calls))
    };
    // What is thought of a call is none; but an argument may hold the mark that ends a thought, whose beginning a prompt
    // may have given.
    let thought = answer.find("</think>").map(|at| at + "</think>".len());
    match answer.trim_start().starts_with("<think>") {
        true => read(thought?),
        false => read(0).or_else(|| read(thought?)),
    }
}

/// Calls, and where in the text they begin and end.
struct Found {
    begin: usize,
    end: usize,
    calls: Vec<ToolCall>,
}

/// The tools that were offered.
struct Offered(Vec<Value>);

impl Offered {
    fn of(tools: &Value) -> Self {
        Self(tools.as_array().into_iter().flatten().map(bare).collect())
    }

    fn tool(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|tool| tool["name"] == name)
    }

    /// A call with arguments that are texts: what is no text by the tool's description is JSON.
    fn call<'t>(&self, name: &str, arguments: impl Iterator<Item = (&'t str, &'t str)>) -> Option<ToolCall> {
        let tool = self.tool(name)?;
        let value = |key: &str, text: &str| match may_be_text(&tool["parameters"]["properties"][key]) {
            true => Value::from(text),
            false => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        let arguments = arguments.map(|(key, text)| (key.to_owned(), value(key, text)));
        Some(ToolCall { id: None, name: name.to_owned(), arguments: Value::Object(arguments.collect()) })
    }

    /// Calls, if there are any and all are of tools that were offered.
    fn all(&self, calls: Vec<ToolCall>) -> Option<Vec<ToolCall>> {
        let is_offered = |call: &ToolCall| self.tool(&call.name).is_some();
        (!calls.is_empty() && calls.iter().all(is_offered)).then_some(calls)
    }
}

/// Whether a parameter's description lets it be a text, alone or among others.
fn may_be_text(description: &Value) -> bool {
    let is_text = |kind: &Value| kind == "string";
    let kind = &description["type"];
    let any = ["anyOf", "oneOf"].iter().filter_map(|key| description[*key].as_array()).flatten();
    is_text(kind)
        || kind.as_array().is_some_and(|kinds| kinds.iter().any(is_text))
        || any.into_iter().any(may_be_text)
}

/// The calls of all blocks from the first mark on.
fn between_marks(text: &str, offered: &Offered) -> Option<Found> {
    let found = MARKS.iter().filter_map(|marks| text.find(marks.0).map(|at| (at, marks)));
    let (begin, &(open, close)) = found.min_by_key(|(at, _)| *at)?;
    let (mut calls, mut end) = (Vec::new(), begin);
    while let Some(block) = text[end..].trim_start().strip_prefix(open) {
        let size = block_size(block, (open, close));
        let inside = &block[..size];
        calls.extend(in_block(inside, offered).or_else(|| keys_and_values(inside, offered))?);
        let rest = &block[size..];
        end = text.len() - rest.strip_prefix(close).unwrap_or(rest).len();
    }
    Some(Found { begin, end, calls: offered.all(calls)? })
}

/// Bytes of a block up to the mark that closes it: one that an argument holds does not.
fn block_size(block: &str, (open, close): (&str, &str)) -> usize {
    if close.is_empty() {
        return block.len();
    }
    if block.trim_start().starts_with(['{', '[']) {
        let mut values = serde_json::Deserializer::from_str(block).into_iter::<serde::de::IgnoredAny>();
        while let Some(Ok(_)) = values.next() {
            let end = values.byte_offset();
            if block[end..].trim_start().starts_with(close) {
                return block.len() - block[end..].trim_start().len();
            }
        }
    }
    let ends_block = |at: &usize| {
        let behind = block[at + close.len()..].trim_start();
        behind.is_empty() || behind.starts_with(open)
    };
    let closing = || block.match_indices(close).map(|(at, _)| at);
    // A block that nothing closes ends where the next one opens.
    let unclosed = || block.find(open).unwrap_or(block.len());
    closing().find(ends_block).or_else(|| closing().next()).unwrap_or_else(unclosed)
}

/// Calls that stand alone.
fn without_marks(text: &str, offered: &Offered) -> Option<Found> {
    let found = |begin, calls| Some(Found { begin, end: text.len(), calls: offered.all(calls)? });
    if let Some(found) = actions(text).and_then(|(begin, calls)| found(begin, calls)) {
        return Some(found);
    }
    let invoked = text.find("<invoke ").filter(|_| text.trim_end().ends_with("</invoke>"));
    let begin = invoked.unwrap_or(text.len() - text.trim_start().len());
    found(begin, in_block(unfenced(&text[begin..]), offered)?)
}

/// What stands in a fence of code, if all of it does.
fn unfenced(text: &str) -> &str {
    let inside = text.trim().strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    inside.map_or(text, |inside| inside.strip_prefix("json").unwrap_or(inside))
}

/// The calls of a text that is nothing but calls.
fn in_block(block: &str, offered: &Offered) -> Option<Vec<ToolCall>> {
    let block = block.trim();
    json_calls(block)
        .or_else(|| functions(block, offered))
        .or_else(|| invocations(block, offered))
        .or_else(|| name_and_json(block, offered))
        .or_else(|| literal::calls(block))
}

/// `{"name": …, "arguments": …}` or with `parameters`; a list of such, or one in a line.
fn json_calls(text: &str) -> Option<Vec<ToolCall>> {
    if formats::wide_integer(text).is_some() {
        return None;
    }
    let values = match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(list)) => list,
        Ok(value) => vec![value],
        Err(_) => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.map(|line| serde_json::from_str(line).ok()).collect::<Option<_>>()?
        }
    };
    let argued = |value: Value| match value {
        Value::Object(mut call) if !call.contains_key("arguments") => {
            let arguments = call.remove("parameters")?;
            call.insert("arguments".to_owned(), arguments);
            Some(Value::Object(call))
        }
        value => Some(value),
    };
    let values = values.into_iter().map(argued).collect::<Option<Vec<_>>>()?;
    formats::calls_of(Value::Array(values)).ok()
}

/// `<function=f>` with `<parameter=key>value</parameter>`, with or without line breaks around the value.
fn functions(text: &str, offered: &Offered) -> Option<Vec<ToolCall>> {
    let call = |function: &str| {
        let end = function.find(|c: char| c.is_whitespace() || c == '>')?;
        let parameters = function.split("<parameter=").skip(1);
        let pairs = parameters.map(|parameter| parameter.split_once('>').and_then(closed("</parameter>")));
        offered.call(&function[..end], pairs.collect::<Option<Vec<_>>>()?.into_iter())
    };
    text.starts_with("<function=").then(|| text.split("<function=").skip(1).map(call).collect())?
}

/// `<invoke name="f">` with `<parameter name="key">value</parameter>`.
fn invocations(text: &str, offered: &Offered) -> Option<Vec<ToolCall>> {
    let call = |invoked: &str| {
        let (name, body) = invoked.split_once("\">")?;
        let parameters = body.split("<parameter name=\"").skip(1);
        let pairs = parameters.map(|parameter| parameter.split_once("\">").and_then(closed("</parameter>")));
        offered.call(name, pairs.collect::<Option<Vec<_>>>()?.into_iter())
    };
    let open = "<invoke name=\"";
    text.starts_with(open).then(|| text.split(open).skip(1).map(call).collect())?
}

/// A name with `<arg_key>key</arg_key>` and `<arg_value>value</arg_value>`.
fn keys_and_values(text: &str, offered: &Offered) -> Option<Vec<ToolCall>> {
    let (name, rest) = match text.find("<arg_key>") {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let pairs = rest.split("<arg_key>").skip(1).map(|pair| {
        let (key, value) = pair.split_once("</arg_key>")?;
        Some((key, value.split_once("<arg_value>")?.1.split("</arg_value>").next()?))
    });
    Some(vec![offered.call(name.trim(), pairs.collect::<Option<Vec<_>>>()?.into_iter())?])
}

/// A key and what stands before its closing mark, without the line breaks that some write around it.
fn closed<'t>(close: &'static str) -> impl FnOnce((&'t str, &'t str)) -> Option<(&'t str, &'t str)> {
    move |(key, value)| {
        let value = value.split(close).next()?;
        let value = match value.strip_prefix('\n') {
            Some(inner) => inner.strip_suffix('\n').unwrap_or(inner),
            None => value,
        };
        Some((key, value))
    }
}

/// A name, and its arguments as JSON in the lines below or right behind it.
fn name_and_json(text: &str, offered: &Offered) -> Option<Vec<ToolCall>> {
    let (name, json) = text.split_at(text.find('{')?);
    let name = name.trim().trim_end_matches("[ARGS]");
    let arguments: Map<String, Value> = serde_json::from_str(json).ok()?;
    offered.tool(name)?;
    Some(vec![ToolCall { id: None, name: name.to_owned(), arguments: Value::Object(arguments) }])
}

/// `Action: f` with `Action Input: {…}`: where the first stands, and all.
fn actions(text: &str) -> Option<(usize, Vec<ToolCall>)> {
    let at = text.find("Action:")?;
    let call = |action: &str| {
        let (name, input) = action.split_once("Action Input:")?;
        let arguments = serde_json::from_str(unfenced(input).trim()).ok()?;
        Some(ToolCall { id: None, name: name.trim().to_owned(), arguments: Value::Object(arguments) })
    };
    Some((at, text[at..].split("Action:").skip(1).map(call).collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::ToolFormat;
    use super::*;

    fn tools() -> Value {
        let properties = json!({
            "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"}, "at": {"type": "array"},
            "zip": {"type": "string"}, "where": {"type": "object"},
        });
        let weather =
            json!({"name": "get_weather", "parameters": {"type": "object", "properties": properties}});
        json!([{"type": "function", "function": weather}, {"name": "now", "parameters": {}}])
    }

    fn call(name: &str, arguments: Value) -> ToolCall {
        ToolCall { id: None, name: name.to_owned(), arguments }
    }

    // How each format writes calls is held to LLaMA-Factory's own.
    #[test]
    fn what_a_format_writes_is_read_as_the_calls_it_is() {
        let weather = call(
            "get_weather",
            json!({"city": "São \"Paulo\", {now}", "days": 3, "exact": true, "at": [1, "b"], "zip": "04", "where": {"x": 1.5}}),
        );
        // LFM2's texts have no escapes, as LLaMA-Factory writes them.
        let plain =
            call("get_weather", json!({"city": "São Paulo, (now)", "days": -3, "exact": false, "at": []}));
        for (name, format) in ToolFormat::ALL {
            let first = if format == ToolFormat::Lfm2 { &plain } else { &weather };
            let mut lists = vec![vec![first.clone()]];
            if format != ToolFormat::Glm4 {
                lists.push(vec![first.clone(), call("now", json!({}))]);
            }
            for calls in lists {
                let text = format.calls(&calls).unwrap();
                let read = calls_in(&text, &tools());
                assert_eq!(read, Some((String::new(), calls)), "{name}: {text}");
            }
        }
    }

    #[test]
    fn words_and_thoughts_before_calls_are_the_words_of_the_answer() {
        let text = "<think>\nI could say <tool_call>.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let (words, calls) = calls_in(text, &tools()).unwrap();
        assert_eq!(words, "<think>\nI could say <tool_call>.\n</think>\n\nLet me look.");
        assert_eq!(calls, [call("now", json!({}))]);
    }

    #[test]
    fn marks_and_forms_of_other_trainers_are_known() {
        for text in [
            "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}]",
            "[TOOL_CALLS]now[ARGS]{}",
            "<|python_tag|>{\"name\": \"now\", \"parameters\": {}}",
            "<tool_call>{\"name\": \"now\", \"arguments\": \"{}\"}</tool_call>",
            "<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
            "<|tool_call_start|>[now()]<|tool_call_end|>",
            "Thought: what time is it?\nAction: now\nAction Input: ```{}```",
            "Action: now\nAction Input: ```json\n{}\n```",
            "```json\n{\"name\": \"now\", \"arguments\": {}}\n```",
            // The end of an answer that was cut right behind its arguments.
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}",
        ] {
            let calls = calls_in(text, &tools()).map(|(_, calls)| calls);
            assert_eq!(calls, Some(vec![call("now", json!({}))]), "{text}");
        }
    }

    #[test]
    fn marks_in_arguments_end_nothing() {
        for argument in ["say <tool_call> or </tool_call> ok", "</think>", "a\n</tool_call>\n<tool_call>"] {
            let calls = vec![call("get_weather", json!({"city": argument})), call("now", json!({}))];
            for format in [ToolFormat::Qwen, ToolFormat::Mistral, ToolFormat::Llama3] {
                let text = format.calls(&calls).unwrap();
                assert_eq!(calls_in(&text, &tools()), Some((String::new(), calls.clone())), "{text}");
            }
        }
    }

    #[test]
    fn words_behind_calls_are_words_too() {
        let text = "One.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\nTwo.";
        assert_eq!(calls_in(text, &tools()), Some(("One.\nTwo.".to_owned(), vec![call("now", json!({}))])));
    }

    #[test]
    fn what_may_be_a_text_stays_one() {
        let optional = json!({"anyOf": [{"type": "string"}, {"type": "null"}]});
        let properties = json!({"a": optional, "b": {"type": ["string", "null"]}, "c": {"type": "integer"}});
        let tools = json!([{"name": "f", "parameters": {"properties": properties}}]);
        let calls = vec![call("f", json!({"a": "12", "b": "13", "c": 14}))];
        let text = ToolFormat::Qwen3_5.calls(&calls).unwrap();
        assert_eq!(calls_in(&text, &tools), Some((String::new(), calls)));
    }

    #[test]
    fn text_that_calls_no_offered_tool_stays_text() {
        for text in [
            "It is 5 o'clock.",
            "now",
            "{\"name\": \"Ada\", \"age\": 36}",
            "{\"name\": \"other\", \"arguments\": {}}",
            "<tool_call>\n{\"name\": \"now\", \"argu",
            "Write <tool_call> to call a tool.",
            "[1, 2, 3]",
            "Action: wait",
            "<tool_call>{\"name\": \"now\", \"arguments\": {\"n\": 10000000000000000000000}}</tool_call>",
            "",
        ] {
            assert_eq!(calls_in(text, &tools()), None, "{text}");
        }
    }
}
