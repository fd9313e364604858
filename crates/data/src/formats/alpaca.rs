//! The alpaca format: an instruction with an optional input, and the answer.
//!
//! `{instruction, input, output, system, history: [[question, answer], …]}`. The question is the
//! instruction and the input, whichever are not empty, joined by a line break; the pairs of `history`
//! come before it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::calls::take_tools;
use super::turns::weight;
use super::{Talk, missing, take_array, take_optional, take_text};
use crate::conversation::{Message, Role};
use crate::rows::kind_of;

/// The columns of the alpaca format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlpacaColumns {
    /// The instruction.
    pub prompt: String,
    /// What the instruction is about.
    pub query: Option<String>,
    /// The answer.
    pub response: String,
    /// Pairs of earlier questions and answers.
    pub history: Option<String>,
    /// The system message.
    pub system: Option<String>,
    /// Descriptions of tools.
    pub tools: Option<String>,
    /// How much answers count: a weight or a switch for the last one, or a list with one for each, `history` first.
    pub loss: Option<String>,
}

impl Default for AlpacaColumns {
    /// LLaMA-Factory's: `instruction`, `input`, `output`; no history, system or tools.
    fn default() -> Self {
        Self {
            prompt: "instruction".to_owned(),
            query: Some("input".to_owned()),
            response: "output".to_owned(),
            history: None,
            system: None,
            tools: None,
            loss: None,
        }
    }
}

impl AlpacaColumns {
    pub(super) fn read(&self) -> Vec<&str> {
        let optional = [&self.query, &self.history, &self.system, &self.tools, &self.loss];
        let mut names = vec![self.prompt.as_str(), &self.response];
        names.extend(optional.into_iter().flatten().map(String::as_str));
        names
    }
}

pub(super) fn convert(names: &AlpacaColumns, columns: &mut Map<String, Value>) -> Result<Talk, String> {
    let has_query = names.query.as_ref().is_some_and(|name| columns.contains_key(name));
    if !columns.contains_key(&names.prompt) && !has_query {
        return Err(missing(columns, &names.prompt));
    }
    if !columns.contains_key(&names.response) {
        return Err(missing(columns, &names.response));
    }
    let mut messages = Vec::new();
    if let Some(system) = take_optional(columns, names.system.as_deref())? {
        messages.push(Message::text(Role::System, system));
    }
    if let Some(name) = &names.history {
        for (at, pair) in take_array(columns, name)?.unwrap_or_default().into_iter().enumerate() {
            let [question, answer] = pair_of(pair)
                .map_err(|found| format!("`{name}` item {} is {found}, not [question, answer]", at + 1))?;
            messages.push(Message::text(Role::User, question));
            messages.push(Message::text(Role::Assistant, answer));
        }
    }
    let prompt = take_optional(columns, Some(&names.prompt))?;
    let query = take_optional(columns, names.query.as_deref())?;
    let question: Vec<String> = prompt.into_iter().chain(query).collect();
    let Some(answer) = take_text(columns, &names.response)? else {
        return Err(format!("`{}` is null: there is no answer to train", names.response));
    };
    messages.push(Message::text(Role::User, question.join("\n")));
    messages.push(Message::text(Role::Assistant, answer));
    if let Some(name) = &names.loss {
        weigh_answers(&mut messages, name, columns.get(name).unwrap_or(&Value::Null))?;
    }
    let tools = take_tools(columns, names.tools.as_deref())?;
    Ok(Talk { messages, tools })
}

/// Weighs answers: the last by a value, or each by one of a list.
fn weigh_answers(messages: &mut [Message], name: &str, value: &Value) -> Result<(), String> {
    let mut answers: Vec<&mut Message> =
        messages.iter_mut().filter(|message| message.role == Role::Assistant).collect();
    let values = match value {
        Value::Array(values) if values.len() != answers.len() => {
            return Err(format!("`{name}` has {} values for {} answers", values.len(), answers.len()));
        }
        Value::Array(values) => values.as_slice(),
        value => std::slice::from_ref(value),
    };
    for (message, value) in answers.iter_mut().rev().zip(values.iter().rev()) {
        message.weight = weight(name, value)?;
    }
    Ok(())
}

/// The two texts of an item of `history`.
fn pair_of(item: Value) -> Result<[String; 2], &'static str> {
    let Value::Array(items) = item else {
        return Err(kind_of(&item));
    };
    match <[Value; 2]>::try_from(items) {
        Ok([Value::String(question), Value::String(answer)]) => Ok([question, answer]),
        Ok(_) => Err("an array of other things than texts"),
        Err(_) => Err("an array of another length than 2"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::testing::{reason, row};
    use super::*;

    fn all_columns() -> Format {
        Format::Alpaca(AlpacaColumns {
            history: Some("history".to_owned()),
            system: Some("system".to_owned()),
            ..AlpacaColumns::default()
        })
    }

    fn talk(format: &Format, json: &str) -> Vec<(Role, String)> {
        let talk = format.convert(row(json)).expect("a good row");
        talk.messages.into_iter().map(|message| (message.role, message.content)).collect()
    }

    #[test]
    fn question_is_instruction_and_input_where_not_empty() {
        let format = Format::Alpaca(AlpacaColumns::default());
        for (json, question) in [
            (r#"{"instruction": "Add", "input": "1 2", "output": "3"}"#, "Add\n1 2"),
            (r#"{"instruction": "Add", "input": "", "output": "3"}"#, "Add"),
            (r#"{"instruction": "Add", "output": "3"}"#, "Add"),
            (r#"{"instruction": "", "input": "1 2", "output": "3"}"#, "1 2"),
            (r#"{"instruction": null, "input": "1 2", "output": "3"}"#, "1 2"),
        ] {
            let expected = [(Role::User, question.to_owned()), (Role::Assistant, "3".to_owned())];
            assert_eq!(talk(&format, json), expected, "{json}");
        }
    }

    #[test]
    fn system_and_history_come_before_the_question() {
        let json = r#"{"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}"#;
        let texts: Vec<String> = talk(&all_columns(), json).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["s", "a", "b", "c", "d"]);
    }

    #[test]
    fn a_column_weighs_answers_or_switches_them_off() {
        let format = Format::Alpaca(AlpacaColumns {
            history: Some("history".to_owned()),
            loss: Some("loss".to_owned()),
            ..AlpacaColumns::default()
        });
        let row_of = |loss: &str| {
            format!(r#"{{"instruction": "c", "output": "d", "history": [["a", "b"]], "loss": {loss}}}"#)
        };
        for (loss, expected) in [
            ("null", [None, None]),
            ("false", [None, Some(0.0)]),
            ("1", [None, Some(1.0)]),
            ("[0, 1]", [Some(0.0), Some(1.0)]),
            ("[true, null]", [Some(1.0), None]),
            ("[0.5, 2]", [Some(0.5), Some(2.0)]),
        ] {
            let talk = format.convert(row(&row_of(loss))).expect("a good row");
            assert_eq!([talk.messages[1].weight, talk.messages[3].weight], expected, "{loss}");
        }
        assert_eq!(reason(&format, &row_of("[1]")), "`loss` has 1 values for 2 answers");
        assert!(reason(&format, &row_of("-1")).starts_with("`loss` is -1: a weight is"));
    }

    #[test]
    fn an_empty_system_is_none() {
        let json = r#"{"instruction": "c", "output": "d", "system": "", "history": []}"#;
        assert_eq!(talk(&all_columns(), json).len(), 2);
    }

    #[test]
    fn malformed_rows_say_what_is_wrong() {
        let format = all_columns();
        for (json, expected) in [
            (r#"{"instruction": "a"}"#, "no `output` (the row has `instruction`)"),
            (r#"{"output": "a"}"#, "no `instruction` (the row has `output`)"),
            (r#"{"instruction": "a", "output": null}"#, "`output` is null: there is no answer to train"),
            (r#"{"instruction": "a", "output": 42}"#, "`output` is a number, not a text"),
            (r#"{"instruction": ["a"], "output": "b"}"#, "`instruction` is an array, not a text"),
            (
                r#"{"instruction": "a", "output": "b", "history": [["x"]]}"#,
                "`history` item 1 is an array of another length than 2, not [question, answer]",
            ),
            (
                r#"{"instruction": "a", "output": "b", "history": {"x": 1}}"#,
                "`history` is an object, not an array",
            ),
        ] {
            assert_eq!(reason(&format, json), expected, "{json}");
        }
    }
}
