//! Gemma 4's format: declarations and calls in a notation of their own, strings between `<|"|>`.

use serde_json::{Map, Value};

use crate::conversation::ToolCall;
use crate::template::python;

const QUOTE: &str = "<|\"|>";

pub(super) fn offer(tools: &[Value]) -> Result<String, String> {
    let declarations: Result<Vec<String>, String> = tools.iter().map(declaration).collect();
    Ok(declarations?.join("\n"))
}

fn declaration(tool: &Value) -> Result<String, String> {
    let function = super::bare(tool);
    let Some(name) = function["name"].as_str() else {
        return Err(format!("a tool has no name: {}", python::json(tool)));
    };
    let mut text =
        format!("declaration:{name}{{description:{}", quoted(&super::or_empty(&function["description"])));
    if let Some(parameters) = function["parameters"].as_object().filter(|map| !map.is_empty()) {
        text += &format!(",parameters:{{{}}}", schema(parameters));
    }
    if let Some(response) = function["response"].as_object().filter(|map| !map.is_empty()) {
        let mut parts = Vec::new();
        if is_given(response.get("description")) {
            parts.push(format!("description:{}", quoted(&python::text(&response["description"]))));
        }
        let kind = super::or_empty(response.get("type").unwrap_or(&Value::Null)).to_uppercase();
        if kind == "OBJECT" {
            parts.push(format!("type:{}", quoted(&kind)));
        }
        text += &format!(",response:{{{}}}", parts.join(","));
    }
    Ok(text + "}")
}

fn schema(parameters: &Map<String, Value>) -> String {
    let mut parts = Vec::new();
    if let Some(properties) =
        parameters.get("properties").and_then(Value::as_object).filter(|map| !map.is_empty())
    {
        let properties =
            properties.iter().map(|(name, property)| format!("{name}:{{{}}}", described(property)));
        parts.push(format!("properties:{{{}}}", properties.collect::<Vec<_>>().join(",")));
    }
    if let Some(required) =
        parameters.get("required").and_then(Value::as_array).filter(|list| !list.is_empty())
    {
        let names = required.iter().map(|name| quoted(&python::text(name)));
        parts.push(format!("required:[{}]", names.collect::<Vec<_>>().join(",")));
    }
    parts.extend(kind(parameters.get("type")));
    parts.join(",")
}

fn described(property: &Value) -> String {
    let description = property.get("description").filter(|text| is_given(Some(text)));
    let description = description.map(|text| format!("description:{}", quoted(&python::text(text))));
    description.into_iter().chain(kind(property.get("type"))).collect::<Vec<_>>().join(",")
}

fn kind(value: Option<&Value>) -> Option<String> {
    let value = value.filter(|value| is_given(Some(value)))?;
    Some(format!("type:{}", quoted(&python::text(value).to_uppercase())))
}

/// What Python takes for true.
fn is_given(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    }
}

pub(super) fn calls(calls: &[ToolCall]) -> String {
    let call = |call: &ToolCall| {
        let arguments = match &call.arguments {
            Value::Object(map) => entries(map),
            Value::String(text) => text.clone(),
            other => argument(other),
        };
        format!("<|tool_call>call:{}{{{arguments}}}<tool_call|>", call.name)
    };
    calls.iter().map(call).collect()
}

/// `key:value` in the order of the keys.
fn entries(map: &Map<String, Value>) -> String {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    let entries = entries.into_iter().map(|(key, value)| format!("{key}:{}", argument(value)));
    entries.collect::<Vec<_>>().join(",")
}

fn argument(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Object(map) => format!("{{{}}}", entries(map)),
        Value::Array(list) => format!("[{}]", list.iter().map(argument).collect::<Vec<_>>().join(",")),
        other => python::json(other),
    }
}

fn quoted(text: &str) -> String {
    format!("{QUOTE}{text}{QUOTE}")
}
