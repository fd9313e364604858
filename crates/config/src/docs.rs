//! `docs/config.md`, its Chinese form and the JSON schema, printed from the table of keys.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use crate::keys::{KEYS, Key, NO_EFFECT, NOT_YET, RunConfig};

const OPENING: &str = "\
# Configuration

<!-- Printed from crates/config/src/keys. To renew: UPDATE_DOCS=1 cargo test -p sft-config -->

`sft train config.yaml key=value …` reads one YAML (or JSON) file of `key: value` lines. Keys and defaults are
LLaMA-Factory's, so its recipes run as they are. A `key=value` after the file replaces the file's value;
`--key value` is the same, and `key.inner=value` reaches into a mapping. Paths are relative to the working folder. ([中文](zh/config.md))

Each key of LLaMA-Factory is in one of three states: supported; accepted without effect, and then the program says
so once with the reason; or not supported yet, and then it is refused by name unless it has its default, which asks
for nothing. All that is wrong with a configuration is reported at once, with file and line.
";

const CHINESE_OPENING: &str = "\
# 配置

<!-- Printed from crates/config/src/keys and src/docs/chinese.tsv. To renew: UPDATE_DOCS=1 cargo test -p sft-config -->

`sft train config.yaml key=value …` 读取一个由 `key: value` 行组成的 YAML（或 JSON）文件。键和默认值与 LLaMA-Factory 相同，
它的配置可以直接运行。文件之后的 `key=value` 取代文件里的值，`--key value` 相同；`key.inner=value` 设定映射里面的值。路径相对于当前文件夹。
([English](../config.md))

LLaMA-Factory 的每个键有三种状态之一：支持；接受但不起作用，此时程序会说明一次原因；尚不支持，此时会被点名拒绝，除非写的就是它的
默认值，那等于什么也没要求。配置中的所有错误会一次报告完，并带文件和行号。
";

const CHINESE: &str = include_str!("docs/chinese.tsv");

/// A language of the configuration reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// As the keys are documented.
    English,
    /// Translated text by text; a text without a translation stays English.
    Chinese,
}

/// The configuration reference, as Markdown.
pub fn reference(language: Language) -> String {
    match language {
        Language::English => page(OPENING, str::to_string),
        Language::Chinese => {
            let translations: HashMap<&str, &str> = translations().collect();
            page(CHINESE_OPENING, |text| translated(&translations, text).unwrap_or_else(|| text.to_string()))
        }
    }
}

/// English and Chinese of every text of the reference.
fn translations() -> impl Iterator<Item = (&'static str, &'static str)> {
    CHINESE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('\t'))
}

/// The translation of a text; code and numbers need none.
fn translated(translations: &HashMap<&str, &str>, text: &str) -> Option<String> {
    let is_code = !text.split('`').step_by(2).any(|words| words.contains(char::is_alphabetic));
    if is_code {
        Some(text.replace("`, `", "`、`"))
    } else {
        translations.get(text).map(|text| text.to_string())
    }
}

/// The page, every text of it in the words of `say`.
fn page(opening: &str, mut say: impl FnMut(&str) -> String) -> String {
    let defaults = RunConfig::default();
    let mut page = String::from(opening);
    let mut group = "";
    for key in KEYS {
        if group != key.group {
            group = key.group;
            let columns = ["key", "takes", "default", "what it does", "read by"].map(&mut say).join(" | ");
            page.push_str(&format!("\n## {}\n\n| {columns} |\n|---|---|---|---|---|\n", say(group)));
        }
        let mut takes = (key.takes)();
        if !key.range.is_any() {
            takes = takes.replace(" of at least 0", "");
            takes.push_str(&format!("; {}", key.range));
        }
        let mut doc = say(&key.text());
        if !key.required.is_empty() {
            let purposes: Vec<_> = key.required.iter().map(|p| p.as_str()).collect();
            doc.push_str(&say(&format!(" Needed for {}.", purposes.join(", "))));
        }
        let default = default_text(key, &defaults);
        page.push_str(&format!(
            "| `{}` | {} | {} | {} | {} |\n",
            key.name,
            cell(&say(&takes)),
            say(&default),
            cell(&doc),
            key.read_by
        ));
    }
    let columns = ["keys", "why"].map(&mut say).join(" | ");
    page.push_str(&format!("\n## {}\n\n| {columns} |\n|---|---|\n", say("Accepted without effect")));
    for (names, reason) in NO_EFFECT.iter().flat_map(|(_, rows)| rows.iter()) {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        page.push_str(&format!("| {} | {} |\n", say(&names.join(", ")), cell(&say(reason))));
    }
    let columns = ["key", "default that is accepted", "instead"].map(&mut say).join(" | ");
    page.push_str(&format!("\n## {}\n\n| {columns} |\n|---|---|---|\n", say("Not supported yet")));
    for (name, default, help) in NOT_YET.iter().flat_map(|(_, rows)| rows.iter()) {
        let default = if default.is_empty() { "\"\"" } else { default };
        page.push_str(&format!("| `{name}` | `{default}` | {} |\n", cell(&say(help))));
    }
    page
}

/// Every key as a form shows it: `[{"name", "group", "doc", "default", "kind", "choices"}]`; `kind` is `switch`,
/// `choice`, `number` or `text`. What a default follows from is told in words.
pub fn form(language: Language) -> Json {
    let translations: HashMap<&str, &str> = translations().collect();
    let say = |text: &str| match language {
        Language::English => text.to_owned(),
        Language::Chinese => translated(&translations, text).unwrap_or_else(|| text.to_owned()),
    };
    let defaults = RunConfig::default();
    let of = |key: &Key| {
        let mut schema = (key.schema)();
        json!({
            "name": key.name,
            "group": say(key.group),
            "doc": say(&key.text()),
            "default": say(match default_text(key, &defaults).as_str() {
                "`null`" => "none",
                text => text,
            })
            .replace('`', ""),
            "kind": kind(key),
            "choices": number_schema(&mut schema).get("enum"),
        })
    };
    KEYS.iter().map(of).collect()
}

/// What a form lets a key be given by: `switch`, `choice`, `number` or `text`.
pub(crate) fn kind(key: &Key) -> &'static str {
    let mut schema = (key.schema)();
    let schema = number_schema(&mut schema);
    match schema.get("type").and_then(Json::as_str) {
        _ if schema.contains_key("enum") => "choice",
        Some("boolean") => "switch",
        Some("integer" | "number") => "number",
        _ => "text",
    }
}

/// The JSON schema of a configuration file, for editors.
pub fn json_schema() -> Json {
    let defaults = RunConfig::default();
    let mut properties = Map::new();
    for key in KEYS {
        let doc = key.text();
        let mut schema = (key.schema)();
        for (keyword, bound) in key.range.keywords() {
            let number = number_schema(&mut schema);
            number.insert(keyword.to_string(), plain_number(bound));
        }
        let described = match key.auto {
            // Null asks for the automatic value.
            Some(auto) => {
                json!({"description": format!("{doc} Default: {auto}."), "anyOf": [schema, {"type": "null"}]})
            }
            None => {
                let mut described = json!({"description": doc, "default": defaults.get(key.name)});
                if let (Json::Object(described), Json::Object(schema)) = (&mut described, schema) {
                    described.extend(schema);
                }
                described
            }
        };
        properties.insert(key.name.to_string(), described);
    }
    for (names, reason) in NO_EFFECT.iter().flat_map(|(_, rows)| rows.iter()) {
        for name in *names {
            properties.insert(
                name.to_string(),
                json!({"description": format!("No effect: {reason}."), "deprecated": true}),
            );
        }
    }
    for (name, default, help) in NOT_YET.iter().flat_map(|(_, rows)| rows.iter()) {
        let default: Json = serde_json::from_str(default).unwrap_or_else(|_| json!(default));
        let allowed = if default.is_null() { json!([null]) } else { json!([default, null]) };
        let schema = json!({"description": format!("Not supported yet: {help}."), "enum": allowed});
        properties.insert(name.to_string(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sft configuration",
        "description": "Printed from crates/config/src/keys; docs/config.md is the readable form.",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// The part of a key's schema that describes the number.
fn number_schema(schema: &mut Json) -> &mut Map<String, Json> {
    let inner = match schema.get("anyOf").is_some() {
        true => &mut schema["anyOf"][0],
        false => schema,
    };
    inner.as_object_mut().expect("the schema of a type is an object")
}

fn plain_number(n: f64) -> Json {
    if n.fract() == 0.0 { json!(n as i64) } else { json!(n) }
}

/// The default as the documentation shows it.
pub(crate) fn default_text(key: &Key, defaults: &RunConfig) -> String {
    if let Some(auto) = key.auto {
        return auto.to_string();
    }
    match defaults.get(key.name) {
        Some(Json::String(text)) if text.is_empty() => "none".to_string(),
        Some(Json::String(text)) => format!("`{text}`"),
        Some(Json::Array(items)) if items.is_empty() => "none".to_string(),
        Some(value) => format!("`{value}`"),
        None => "none".to_string(),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_every_key_in_the_language_asked_for() {
        let (english, chinese) = (form(Language::English), form(Language::Chinese));
        let key = |form: &Json, name: &str| {
            form.as_array().unwrap().iter().find(|key| key["name"] == name).unwrap().clone()
        };
        assert_eq!(english.as_array().map(Vec::len), Some(KEYS.len()));
        for (name, kind) in [
            ("bf16", "switch"),
            ("finetuning_type", "choice"),
            ("quantization_bit", "number"),
            ("dataset", "text"),
        ] {
            assert_eq!(key(&english, name)["kind"], kind, "{name}");
        }
        let choices = key(&english, "finetuning_type")["choices"].clone();
        assert!(choices.as_array().unwrap().contains(&json!("lora")), "{choices}");
        assert_eq!(key(&english, "lora_rank")["default"], "8");
        assert!(key(&english, "dataset")["doc"].as_str().unwrap().starts_with("Data sets to train on"));
        assert!(key(&chinese, "dataset")["doc"].as_str().unwrap().starts_with("用来训练的数据集"));
    }

    #[test]
    fn every_text_of_the_reference_has_a_translation_and_no_translation_is_left_over() {
        let translations: HashMap<&str, &str> = translations().collect();
        let mut missing = Vec::new();
        let mut left: HashMap<&str, &str> = translations.clone();
        page("", |text| {
            left.remove(text);
            if translated(&translations, text).is_none() {
                missing.push(text.to_string());
            }
            String::new()
        });
        assert!(missing.is_empty(), "without a translation in docs/chinese.tsv: {missing:#?}");
        assert!(left.is_empty(), "translations of what is not in the reference: {:#?}", left.keys());
    }
}
