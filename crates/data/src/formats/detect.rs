//! The format of a data set given as a plain path, told from the columns of its first rows.

use serde_json::Value;

use super::{AlpacaColumns, Format, PlainColumns, TurnColumns, quoted};
use crate::rows::Row;

/// The format that the first rows of a file are written in; `Err` lists the columns that were found.
///
/// `messages`, `conversations` or `conversation` with `role` → openai, with `from` → sharegpt;
/// `instruction`, `prompt` or `question` with `output`, `response`, `completion` or `answer` → alpaca;
/// `text` → plain.
pub fn detect(rows: &[Row]) -> Result<Format, String> {
    let has = |name: &str| rows.iter().any(|row| row.columns.contains_key(name));
    let first_of = |names: &[&str]| names.iter().find(|name| has(name)).map(|name| (*name).to_owned());
    let present = |name: &str| has(name).then(|| name.to_owned());

    if let Some(messages) = first_of(&["messages", "conversations", "conversation"]) {
        let (system, tools) = (present("system"), present("tools"));
        let turns: Vec<Value> = rows.iter().flat_map(|row| turns_of(row, &messages)).collect();
        if turns.iter().any(|turn| turn.get("role").is_some()) {
            return Ok(Format::OpenAi(TurnColumns { messages, system, tools, ..TurnColumns::openai() }));
        }
        if turns.iter().any(|turn| turn.get("from").is_some()) {
            let mut names = TurnColumns { messages, system, tools, ..TurnColumns::sharegpt() };
            let speaks = |word: &str| turns.iter().any(|turn| turn["from"] == word);
            if speaks("user") && !speaks("human") {
                names.tags.user = "user".to_owned();
            }
            if speaks("assistant") && !speaks("gpt") {
                names.tags.assistant = "assistant".to_owned();
            }
            if speaks("tool") && !speaks("observation") {
                names.tags.observation = "tool".to_owned();
            }
            return Ok(Format::Sharegpt(names));
        }
    }
    let prompt = first_of(&["instruction", "prompt", "question"]);
    let response = first_of(&["output", "response", "completion", "answer"]);
    if let (Some(prompt), Some(response)) = (prompt, response) {
        return Ok(Format::Alpaca(AlpacaColumns {
            prompt,
            query: present("input"),
            response,
            history: present("history"),
            system: present("system"),
            tools: present("tools"),
            loss: None,
        }));
    }
    if has("text") {
        return Ok(Format::Plain(PlainColumns { text: Some("text".to_owned()) }));
    }
    let mut columns: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.columns.keys()) {
        if !columns.contains(&name.as_str()) && columns.len() < 16 {
            columns.push(name);
        }
    }
    Err(match columns.is_empty() {
        true => "its first rows have no columns".to_owned(),
        false => format!("its columns fit no format: {}", quoted(columns)),
    })
}

/// The turns of a row, also where a csv or parquet file holds them as JSON text.
fn turns_of(row: &Row, column: &str) -> Vec<Value> {
    match row.columns.get(column) {
        Some(Value::Array(turns)) => turns.clone(),
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::row;
    use super::*;

    fn format(json: &str) -> Format {
        detect(&[row(json)]).expect("a format")
    }

    #[test]
    fn turns_are_told_by_their_keys_and_words() {
        let openai = |messages: &str| TurnColumns {
            messages: messages.to_owned(),
            tools: None,
            ..TurnColumns::openai()
        };
        let role = r#"[{"role": "user", "content": "q"}]"#;
        assert_eq!(format(&format!(r#"{{"messages": {role}}}"#)), Format::OpenAi(openai("messages")));
        assert_eq!(
            format(&format!(r#"{{"conversations": {role}}}"#)),
            Format::OpenAi(openai("conversations"))
        );
        assert_eq!(
            format(&format!(r#"{{"messages": {}}}"#, Value::from(role))),
            Format::OpenAi(openai("messages")),
            "turns as JSON text"
        );
        assert_eq!(
            format(r#"{"conversations": [{"from": "human", "value": "q"}], "id": 1}"#),
            Format::Sharegpt(TurnColumns::sharegpt())
        );
        let mut words = TurnColumns::sharegpt();
        words.tags.user = "user".to_owned();
        words.tags.assistant = "assistant".to_owned();
        assert_eq!(
            format(
                r#"{"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}"#
            ),
            Format::Sharegpt(words)
        );
    }

    #[test]
    fn instructions_with_answers_are_alpaca() {
        let names = |prompt: &str, query: Option<&str>, response: &str| {
            Format::Alpaca(AlpacaColumns {
                prompt: prompt.to_owned(),
                query: query.map(str::to_owned),
                response: response.to_owned(),
                ..AlpacaColumns::default()
            })
        };
        assert_eq!(
            format(r#"{"instruction": "", "input": "", "output": "", "text": ""}"#),
            names("instruction", Some("input"), "output")
        );
        assert_eq!(format(r#"{"prompt": "", "completion": ""}"#), names("prompt", None, "completion"));
        assert_eq!(format(r#"{"question": "", "answer": ""}"#), names("question", None, "answer"));
    }

    #[test]
    fn text_alone_is_plain_and_the_rest_is_listed() {
        assert_eq!(format(r#"{"text": "a"}"#), Format::Plain(PlainColumns { text: Some("text".to_owned()) }));
        let unknown = detect(&[row(r#"{"a": 1, "b": 2}"#), row(r#"{"b": 1, "c": 2}"#)]);
        assert_eq!(unknown, Err("its columns fit no format: `a`, `b`, `c`".to_owned()));
    }
}
