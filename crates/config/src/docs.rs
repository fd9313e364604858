//! `docs/config.md` and the JSON schema, printed from the table of keys.

use serde_json::{Map, Value as Json, json};

use crate::keys::{KEYS, Key, NO_EFFECT, NOT_YET, RunConfig};

const OPENING: &str = "\
# Configuration

<!-- Printed from crates/config/src/keys. To renew: UPDATE_DOCS=1 cargo test -p sft-config -->

`sft train config.yaml key=value …` reads one YAML (or JSON) file of `key: value` lines. Keys and defaults are
LLaMA-Factory's, so its recipes run as they are. A `key=value` after the file replaces the file's value;
`key.inner=value` reaches into a mapping. Paths are relative to the working folder.

Each key of LLaMA-Factory is in one of three states: supported; accepted without effect, and then the program says
so once with the reason; or not supported yet, and then it is refused by name unless it has its default, which asks
for nothing. All that is wrong with a configuration is reported at once, with file and line.
";

/// The configuration reference, as Markdown.
pub fn reference() -> String {
    let defaults = RunConfig::default();
    let mut page = String::from(OPENING);
    let mut group = "";
    for key in KEYS {
        if group != key.group {
            group = key.group;
            page.push_str(&format!(
                "\n## {group}\n\n| key | takes | default | what it does | read by |\n|---|---|---|---|---|\n"
            ));
        }
        let mut takes = (key.takes)();
        if !key.range.is_any() {
            takes = takes.replace(" of at least 0", "");
            takes.push_str(&format!("; {}", key.range));
        }
        let mut doc = key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        if !key.required.is_empty() {
            let purposes: Vec<_> = key.required.iter().map(|p| p.as_str()).collect();
            doc.push_str(&format!(" Needed for {}.", purposes.join(", ")));
        }
        let default = default_text(key, &defaults);
        page.push_str(&format!(
            "| `{}` | {} | {default} | {} | {} |\n",
            key.name,
            cell(&takes),
            cell(&doc),
            key.read_by
        ));
    }
    page.push_str("\n## Accepted without effect\n\n| keys | why |\n|---|---|\n");
    for (names, reason) in NO_EFFECT.iter().flat_map(|(_, rows)| rows.iter()) {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        page.push_str(&format!("| {} | {} |\n", names.join(", "), cell(reason)));
    }
    page.push_str("\n## Not supported yet\n\n| key | default that is accepted | instead |\n|---|---|---|\n");
    for (name, default, help) in NOT_YET.iter().flat_map(|(_, rows)| rows.iter()) {
        let default = if default.is_empty() { "\"\"" } else { default };
        page.push_str(&format!("| `{name}` | `{default}` | {} |\n", cell(help)));
    }
    page
}

/// The JSON schema of a configuration file, for editors.
pub fn json_schema() -> Json {
    let defaults = RunConfig::default();
    let mut properties = Map::new();
    for key in KEYS {
        let doc = key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
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
