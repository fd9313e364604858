//! How LLaMA-Factory's named templates write tools: the offer in the system message and the calls in
//! an answer (`tool_format`). The wording is LLaMA-Factory's; models tuned with it expect every byte.

mod gemma;
mod read;
mod xml;

pub use read::calls_in;

use serde_json::{Map, Value, json};

use super::clock::Clock;
use super::python::{self, JsonStyle};
use crate::conversation::ToolCall;

/// A way of writing tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// ReAct's `Action:` and `Action Input:`.
    Default,
    /// Declarations and calls in Gemma 4's notation.
    Gemma4,
    /// A heading a function; a call is its name and a line of JSON.
    Glm4,
    /// `<arg_key>` and `<arg_value>`.
    Glm4Moe,
    /// Calls as Python writes them.
    Lfm2,
    /// Qwen's, with a word on thinking after it.
    Ling,
    /// Functions as JSON, calls with `parameters`.
    Llama3,
    /// `<tool_calls>` around lines of JSON.
    Minimax1,
    /// `<invoke>` and `<parameter>`.
    Minimax2,
    /// `[AVAILABLE_TOOLS]`, calls as a list.
    Mistral,
    /// `<tools>` and `<tool_call>`.
    Qwen,
    /// `<function=…>` and `<parameter=…>`.
    Qwen3_5,
    /// `<seed:tool_call>`.
    SeedOss,
    /// The list as it is between `<|tool|>` and `<|/tool|>`; calls as by default (Phi-4-mini).
    Tagged,
}

impl ToolFormat {
    /// Every format by its name in the configuration.
    pub const ALL: [(&str, Self); 14] = [
        ("default", Self::Default),
        ("gemma4", Self::Gemma4),
        ("glm4", Self::Glm4),
        ("glm4_moe", Self::Glm4Moe),
        ("lfm2", Self::Lfm2),
        ("ling", Self::Ling),
        ("llama3", Self::Llama3),
        ("minimax1", Self::Minimax1),
        ("minimax2", Self::Minimax2),
        ("mistral", Self::Mistral),
        ("qwen", Self::Qwen),
        ("qwen3_5", Self::Qwen3_5),
        ("seed_oss", Self::SeedOss),
        ("tagged", Self::Tagged),
    ];

    /// The format of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, format)| *format)
    }

    /// The text that offers `tools`, to stand after the system message; empty for an empty list.
    ///
    /// # Errors
    /// The tools are no list of objects with names.
    pub fn offer(self, tools: &Value, clock: Clock) -> Result<String, String> {
        let Some(list) = tools.as_array() else {
            return Err("`tools` is not a list".into());
        };
        if list.is_empty() {
            return Ok(String::new());
        }
        if let Some(other) = list.iter().find(|tool| !tool.is_object()) {
            return Err(format!("a tool is not an object: {}", python::json(other)));
        }
        Ok(match self {
            Self::Default => offer_default(list)?,
            Self::Gemma4 => gemma::offer(list)?,
            Self::Glm4 => offer_glm4(list)?,
            Self::Glm4Moe => xml::offer_glm4_moe(list),
            Self::Lfm2 => {
                let list = Value::Array(list.iter().map(bare).collect());
                format!("List of tools: <|tool_list_start|>{}<|tool_list_end|>", python::json(&list))
            }
            Self::Ling => format!("{}\ndetailed thinking off", offer_qwen(list).trim_start_matches('\n')),
            Self::Llama3 => offer_llama3(list, clock),
            Self::Minimax1 => xml::offer_minimax1(list),
            Self::Minimax2 => xml::offer_minimax2(list),
            Self::Mistral => {
                let wrapped = Value::Array(list.iter().map(wrapped).collect());
                format!("[AVAILABLE_TOOLS] {}[/AVAILABLE_TOOLS]", python::json(&wrapped))
            }
            Self::Qwen => offer_qwen(list),
            Self::Qwen3_5 => xml::offer_qwen3_5(list),
            Self::SeedOss => xml::offer_seed_oss(list),
            Self::Tagged => format!("<|tool|>{}<|/tool|>", python::json(tools)),
        })
    }

    /// The text of an answer's calls.
    ///
    /// # Errors
    /// More calls than the format can write; arguments that are no object where each has its mark.
    pub fn calls(self, calls: &[ToolCall]) -> Result<String, String> {
        let objects = |key: &str| -> Vec<Value> {
            let object = |call: &ToolCall| json!({"name": call.name, key: call.arguments});
            calls.iter().map(object).collect()
        };
        let joined = |texts: Vec<String>| texts.join("\n");
        Ok(match self {
            Self::Default | Self::Tagged => {
                let lines = calls.iter().map(|call| {
                    let arguments = python::json(&call.arguments);
                    format!("Action: {}\nAction Input: {arguments}", call.name)
                });
                joined(lines.collect())
            }
            Self::Gemma4 => gemma::calls(calls),
            Self::Glm4 => match calls {
                [call] => format!("{}\n{}", call.name, python::json(&call.arguments)),
                _ => {
                    return Err(format!(
                        "the tool format glm4 has no way of writing {} calls at once",
                        calls.len()
                    ));
                }
            },
            Self::Glm4Moe => xml::calls_glm4_moe(calls)?,
            Self::Lfm2 => calls_lfm2(calls)?,
            Self::Llama3 => match objects("parameters").as_slice() {
                [one] => python::json(one),
                many => python::json(&Value::Array(many.to_vec())),
            },
            Self::Minimax1 => {
                let lines = objects("arguments").iter().map(python::json).collect();
                format!("<tool_calls>\n{}\n</tool_calls>", joined(lines))
            }
            Self::Minimax2 => xml::calls_minimax2(calls)?,
            Self::Mistral => python::json(&Value::Array(objects("arguments"))),
            Self::Qwen | Self::Ling => {
                let blocks = objects("arguments")
                    .into_iter()
                    .map(|call| format!("<tool_call>\n{}\n</tool_call>", python::json(&call)));
                joined(blocks.collect())
            }
            Self::Qwen3_5 => xml::calls_qwen3_5(calls)?,
            Self::SeedOss => xml::calls_seed_oss(calls)?,
        })
    }
}

/// A line break and JSON for each tool, in the given form.
fn lines(tools: &[Value], form: fn(&Value) -> Value) -> String {
    tools.iter().map(|tool| format!("\n{}", python::json(&form(tool)))).collect()
}

/// A tool without `{"type": "function", "function": …}` around it.
fn bare(tool: &Value) -> Value {
    match tool["type"] == "function" {
        true => tool["function"].clone(),
        false => tool.clone(),
    }
}

fn no_object(call: &ToolCall) -> String {
    format!("the arguments of the call of `{}` are no object: {}", call.name, python::json(&call.arguments))
}

/// `f(key="text", number=1)`.
fn calls_lfm2(calls: &[ToolCall]) -> Result<String, String> {
    let argument = |(key, value): (&String, &Value)| match value {
        Value::String(text) => format!("{key}=\"{text}\""),
        other => format!("{key}={}", python::json(other)),
    };
    let call = |call: &ToolCall| {
        let arguments = call.arguments.as_object().ok_or_else(|| no_object(call))?;
        let arguments: Vec<String> = arguments.iter().map(argument).collect();
        Ok(format!("{}({})", call.name, arguments.join(", ")))
    };
    let calls: Result<Vec<String>, String> = calls.iter().map(call).collect();
    Ok(format!("<|tool_call_start|>[{}]<|tool_call_end|>", calls?.join(", ")))
}

fn offer_glm4(tools: &[Value]) -> Result<String, String> {
    let mut text = String::from(
        "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，\
         你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具",
    );
    for tool in tools {
        let tool = bare(tool);
        let Some(name) = tool["name"].as_str() else {
            return Err(format!("a tool has no name: {}", python::json(&tool)));
        };
        let body = python::json_styled(&tool, &JsonStyle::indented(4));
        text += &format!("\n\n## {name}\n\n{body}\n在调用上述函数时，请使用 Json 格式表示调用的参数。");
    }
    Ok(text)
}

/// A tool as `{"type": "function", "function": {…}}`.
pub(crate) fn wrapped(tool: &Value) -> Value {
    match tool["type"] == "function" {
        true => tool.clone(),
        false => json!({"type": "function", "function": tool}),
    }
}

fn offer_qwen(tools: &[Value]) -> String {
    format!(
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n<tools>{}\
         \n</tools>\n\nFor each function call, return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": <function-name>, \
         \"arguments\": <args-json-object>}}\n</tool_call>",
        lines(tools, wrapped)
    )
}

fn offer_llama3(tools: &[Value], clock: Clock) -> String {
    let style = JsonStyle::indented(4);
    let blocks = tools.iter().map(|tool| format!("{}\n\n", python::json_styled(&wrapped(tool), &style)));
    format!(
        "Cutting Knowledge Date: December 2023\nToday Date: {}\n\n\
         You have access to the following functions. To call a function, please respond with JSON for a function call. \
         Respond in the format {{\"name\": function name, \"parameters\": dictionary of argument name and its value}}. \
         Do not use variables.\n\n{}",
        clock.strftime("%d %b %Y"),
        blocks.collect::<String>()
    )
}

fn offer_default(tools: &[Value]) -> Result<String, String> {
    let mut text = String::new();
    let mut names = Vec::new();
    for tool in tools {
        let tool = match tool["type"] == "function" {
            true => &tool["function"],
            false => tool,
        };
        let Some(name) = tool["name"].as_str() else {
            return Err(format!("a tool has no name: {}", python::json(tool)));
        };
        let required = tool["parameters"]["required"].as_array();
        let none = Map::new();
        let parameters = tool["parameters"]["properties"].as_object().unwrap_or(&none);
        let lines = parameters.iter().map(|(name, parameter)| {
            let is_required = required.is_some_and(|names| names.iter().any(|n| n == name));
            parameter_line(name, parameter, is_required)
        });
        text.push_str(&format!(
            "> Tool Name: {name}\nTool Description: {}\nTool Args:\n{}\n",
            or_empty(&tool["description"]),
            lines.collect::<String>()
        ));
        names.push(name);
    }
    Ok(format!(
        "You have access to the following tools:\n{text}Use the following format if using a tool:\n\
         ```\nAction: tool name (one of [{}])\n\
         Action Input: the input to the tool, in a JSON format representing the kwargs \
         (e.g. ```{{\"input\": \"hello world\", \"num_beams\": 5}}```)\n```\n",
        names.join(", ")
    ))
}

fn parameter_line(name: &str, parameter: &Value, required: bool) -> String {
    let choices = match parameter["enum"].as_array() {
        Some(choices) if !choices.is_empty() => {
            let choices: Vec<String> = choices.iter().map(python::text).collect();
            format!(", should be one of [{}]", choices.join(", "))
        }
        _ => String::new(),
    };
    let items = match &parameter["items"] {
        Value::Object(items) if !items.is_empty() => {
            let kind = items.get("type").map(python::text).unwrap_or_default();
            format!(", where each item should be {kind}")
        }
        _ => String::new(),
    };
    format!(
        "  - {name} ({}{}): {}{choices}{items}\n",
        or_empty(&parameter["type"]),
        if required { ", required" } else { "" },
        or_empty(&parameter["description"]),
    )
}

/// `str` of a value that is there, else nothing.
fn or_empty(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        value => python::text(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weather() -> Value {
        json!([{"name": "weather", "description": "Weather of a city", "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City"},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "Days"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        }}])
    }

    fn call(arguments: Value) -> ToolCall {
        ToolCall { id: None, name: "weather".into(), arguments }
    }

    // Expected texts printed by LLaMA-Factory 0.9.5 (`get_tool_utils(name).tool_formatter`).
    #[test]
    fn default_offer_lists_arguments() {
        assert_eq!(
            ToolFormat::Default.offer(&weather(), Clock::Fixed(0)).unwrap(),
            "You have access to the following tools:\n> Tool Name: weather\nTool Description: Weather of a city\n\
             Tool Args:\n  - city (string, required): City\n\
             \x20 - days (array): Days, where each item should be integer\n\
             \x20 - unit (string): , should be one of [C, F]\n\n\
             Use the following format if using a tool:\n```\nAction: tool name (one of [weather])\n\
             Action Input: the input to the tool, in a JSON format representing the kwargs \
             (e.g. ```{\"input\": \"hello world\", \"num_beams\": 5}```)\n```\n"
        );
    }

    #[test]
    fn calls_are_written_in_each_format() {
        let calls = [call(json!({"city": "Zürich", "n": 1.0})), call(json!({}))];
        let one = &calls[..1];
        assert_eq!(
            ToolFormat::Default.calls(&calls).unwrap(),
            "Action: weather\nAction Input: {\"city\": \"Zürich\", \"n\": 1.0}\nAction: weather\nAction Input: {}"
        );
        assert_eq!(
            ToolFormat::Llama3.calls(one).unwrap(),
            r#"{"name": "weather", "parameters": {"city": "Zürich", "n": 1.0}}"#
        );
        assert_eq!(
            ToolFormat::Mistral.calls(one).unwrap(),
            r#"[{"name": "weather", "arguments": {"city": "Zürich", "n": 1.0}}]"#
        );
        assert_eq!(
            ToolFormat::Qwen.calls(&calls).unwrap(),
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\", \"n\": 1.0}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>"
        );
    }

    #[test]
    fn llama3_offer_states_the_date() {
        let offer = ToolFormat::Llama3.offer(&weather(), Clock::Fixed(1_721_952_000)).unwrap();
        assert!(offer.starts_with("Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"));
        assert!(
            offer.contains(
                "\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"weather\""
            )
        );
    }

    #[test]
    fn an_empty_list_offers_nothing() {
        for (_, format) in ToolFormat::ALL {
            assert_eq!(format.offer(&json!([]), Clock::Fixed(0)).unwrap(), "");
            assert!(format.offer(&json!({}), Clock::Fixed(0)).is_err());
        }
    }
}
