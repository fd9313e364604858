//! Formats that call functions in XML-like marks, an argument each: MiniMax, Qwen3.5, GLM-4.5, Seed-OSS.

use serde_json::Value;

use super::{bare, lines, wrapped};
use crate::conversation::ToolCall;
use crate::template::python;

/// `<function=…>` with `<parameter=…>`.
pub(super) fn offer_qwen3_5(tools: &[Value]) -> String {
    format!(
        "\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>{}\n</tools>\n\n\
         If you choose to call a function ONLY reply in the following format with NO suffix:\n\n\
         <tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n\
         <parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n\
         </parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n\
         - Function calls MUST follow the specified format: \
         an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags\n\
         - Required parameters MUST be specified\n\
         - You may provide optional reasoning for your function call in natural language \
         BEFORE the function call, but NOT after\n\
         - If there is no function call available, answer the question like normal with your current knowledge \
         and do not tell the user about function calls\n</IMPORTANT>",
        lines(tools, bare)
    )
}

pub(super) fn calls_qwen3_5(calls: &[ToolCall]) -> Result<String, String> {
    written(calls, "\n", |call, arguments| {
        let parameters = arguments.map(|(key, value)| format!("\n<parameter={key}>\n{value}\n</parameter>"));
        let parameters: String = parameters.collect();
        format!("<tool_call>\n<function={}>{parameters}\n</function>\n</tool_call>", call.name)
    })
}

/// `<arg_key>` and `<arg_value>`.
pub(super) fn offer_glm4_moe(tools: &[Value]) -> String {
    format!(
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n<tools>{}\n</tools>\n\n\
         For each function call, output the function name and arguments within the following XML format:\n\
         <tool_call>{{function-name}}\n<arg_key>{{arg-key-1}}</arg_key>\n<arg_value>{{arg-value-1}}</arg_value>\n\
         <arg_key>{{arg-key-2}}</arg_key>\n<arg_value>{{arg-value-2}}</arg_value>\n...\n</tool_call>\n",
        lines(tools, wrapped)
    )
}

pub(super) fn calls_glm4_moe(calls: &[ToolCall]) -> Result<String, String> {
    written(calls, "\n", |call, arguments| {
        let arguments = arguments
            .map(|(key, value)| format!("\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>"));
        format!("\n<tool_call>{}{}", call.name, arguments.collect::<String>())
    })
}

/// `<seed:tool_call>`.
pub(super) fn offer_seed_oss(tools: &[Value]) -> String {
    format!(
        "system\nYou are Doubao, a helpful AI assistant. You may call one or more functions to assist with the user query.\
         Tool List:\nYou are authorized to use the following tools (described in JSON Schema format). Before performing \
         any task, you must decide how to call them based on the descriptions and parameters of these tools.\n{}\n\
         工具调用请遵循如下格式:\n<seed:tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>value_1\
         </parameter>\n<parameter=example_parameter_2>This is the value for the second parameter\nthat can span\nmultiple \
         lines</parameter>\n</function>\n</seed:tool_call>\n",
        python::json(&Value::Array(tools.to_vec()))
    )
}

pub(super) fn calls_seed_oss(calls: &[ToolCall]) -> Result<String, String> {
    written(calls, "\n", |call, arguments| {
        let parameters = arguments.map(|(key, value)| format!("\n<parameter={key}>{value}</parameter>"));
        let parameters: String = parameters.collect();
        // LLaMA-Factory writes no `>` after the name.
        format!("\n<seed:tool_call>\n<function={}{parameters}\n</function>\n</seed:tool_call>", call.name)
    })
}

/// `<tool_calls>` around lines of JSON.
pub(super) fn offer_minimax1(tools: &[Value]) -> String {
    let tools = tools.iter().map(|tool| python::json(&bare(tool)) + "\n");
    format!(
        "You are provided with these tools:\n<tools>\n{}</tools>\n\n\
         If you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide tool-name and \
         json-object of arguments, following the format below:\n<tool_calls>\n\
         {{\"name\": <tool-name-1>, \"arguments\": <args-json-object-1>}}\n...\n</tool_calls>",
        tools.collect::<String>()
    )
}

/// `<invoke name="…">`.
pub(super) fn offer_minimax2(tools: &[Value]) -> String {
    let tools = tools.iter().map(|tool| format!("<tool>{}</tool>\n", python::json(&bare(tool))));
    format!(
        "\n\n# Tools\n\nYou may call one or more tools to assist with the user query.\n\
         Here are the tools available in JSONSchema format:\n\n<tools>\n{}</tools>\n\n\
         When making tool calls, use XML format to invoke tools and pass parameters:\n\
         \n<minimax:tool_call>\n<invoke name=\"tool-name-1\">\n<parameter name=\"param-key-1\">param-value-1</parameter>\n\
         <parameter name=\"param-key-2\">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>",
        tools.collect::<String>()
    )
}

pub(super) fn calls_minimax2(calls: &[ToolCall]) -> Result<String, String> {
    written(calls, "\n", |call, arguments| {
        let parameters =
            arguments.map(|(key, value)| format!("\n<parameter name=\"{key}\">{value}</parameter>"));
        format!("<invoke name=\"{}\">{}\n</invoke>", call.name, parameters.collect::<String>())
    })
}

/// Each call by `one`, which gets its arguments as keys and texts: strings as they are, others as JSON.
fn written(
    calls: &[ToolCall],
    separator: &str,
    one: impl Fn(&ToolCall, &mut dyn Iterator<Item = (&str, String)>) -> String,
) -> Result<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| python::json(value), str::to_owned);
    let call = |call: &ToolCall| match call.arguments.as_object() {
        Some(arguments) => {
            Ok(one(call, &mut arguments.iter().map(|(key, value)| (key.as_str(), text(value)))))
        }
        None => Err(super::no_object(call)),
    };
    Ok(calls.iter().map(call).collect::<Result<Vec<_>, _>>()?.join(separator))
}
