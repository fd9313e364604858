//! Calls whose arguments are written as Python or Gemma 4 writes values: `f(a="x", b=[1, True])`, `call:f{a:<|"|>x<|"|>}`.

use serde_json::{Map, Number, Value};

use crate::conversation::ToolCall;

/// What stands around a text, and whether a backslash has a meaning in it.
const QUOTES: [(&str, bool); 3] = [("<|\"|>", false), ("\"", true), ("'", true)];
/// Lists in lists at most.
const MOST_DEPTH: usize = 64;

/// One call, calls one behind the other, or a list of them in brackets.
pub(super) fn calls(text: &str) -> Option<Vec<ToolCall>> {
    let mut reader = Reader { left: text, depth: 0 };
    let in_brackets = reader.eat("[");
    let mut calls = vec![reader.call()?];
    while reader.eat(",") || !(reader.left.is_empty() || reader.left.starts_with(']')) {
        calls.push(reader.call()?);
    }
    let ends = !in_brackets || reader.eat("]");
    (ends && reader.left.is_empty()).then_some(calls)
}

struct Reader<'t> {
    left: &'t str,
    depth: usize,
}

impl<'t> Reader<'t> {
    /// Takes a mark and the white space around it, if it comes next.
    fn eat(&mut self, mark: &str) -> bool {
        let found = self.left.trim_start().strip_prefix(mark);
        self.left = found.map_or(self.left, str::trim_start);
        found.is_some()
    }

    /// What can be a name, a number or a word for a value.
    fn word(&mut self) -> Option<&'t str> {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
        let end = self.left.find(|c| !is_part(c)).unwrap_or(self.left.len());
        let (word, left) = self.left.split_at(end);
        self.left = left.trim_start();
        (!word.is_empty()).then_some(word)
    }

    fn call(&mut self) -> Option<ToolCall> {
        self.eat("call:");
        let name = self.word()?.to_owned();
        let arguments = match self.eat("(") {
            true => self.pairs("=", ")")?,
            false if self.eat("{") => self.pairs(":", "}")?,
            false => return None,
        };
        Some(ToolCall { id: None, name, arguments: Value::Object(arguments) })
    }

    /// Keys and values up to `close`.
    fn pairs(&mut self, between: &str, close: &str) -> Option<Map<String, Value>> {
        let mut pairs = Map::new();
        while !self.eat(close) {
            let key = match self.text() {
                Some(key) => key,
                None => self.word()?.to_owned(),
            };
            if !self.eat(between) {
                return None;
            }
            pairs.insert(key, self.value()?);
            if !self.eat(",") && !self.left.starts_with(close) {
                return None;
            }
        }
        Some(pairs)
    }

    fn value(&mut self) -> Option<Value> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return None;
        }
        let value = match self.text() {
            Some(text) => Value::String(text),
            None if self.eat("{") => Value::Object(self.pairs(":", "}")?),
            None if self.eat("[") => self.list()?,
            None => match self.word()? {
                "true" | "True" => Value::Bool(true),
                "false" | "False" => Value::Bool(false),
                "null" | "None" => Value::Null,
                number => Value::Number(number.parse::<Number>().ok()?),
            },
        };
        self.depth -= 1;
        Some(value)
    }

    fn list(&mut self) -> Option<Value> {
        let mut list = Vec::new();
        while !self.eat("]") {
            list.push(self.value()?);
            if !self.eat(",") && !self.left.starts_with(']') {
                return None;
            }
        }
        Some(Value::Array(list))
    }

    /// A text in quotes.
    fn text(&mut self) -> Option<String> {
        let (quote, escapes) = QUOTES.iter().find(|(quote, _)| self.left.starts_with(quote))?;
        let inside = &self.left[quote.len()..];
        let (mut text, mut chars) = (String::new(), inside.char_indices());
        while let Some((at, c)) = chars.next() {
            if inside[at..].starts_with(quote) {
                self.left = inside[at + quote.len()..].trim_start();
                return Some(text);
            }
            match c {
                '\\' if *escapes => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    quoted @ ('\\' | '"' | '\'' | '/') => text.push(quoted),
                    kind @ ('x' | 'u' | 'U') => {
                        let digits = match kind {
                            'x' => 2,
                            'u' => 4,
                            _ => 8,
                        };
                        let code: String = chars.by_ref().take(digits).map(|(_, digit)| digit).collect();
                        text.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?)?);
                    }
                    // Python keeps both.
                    other => text.extend(['\\', other]),
                },
                c => text.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_read_as_python_and_gemma_write_them() {
        let text = r#"[f(a="x, \"y\"", b=[1, True, None], c={'k': -2.5e3}), g()]"#;
        let found = calls(text).unwrap();
        assert_eq!(found[0].arguments, json!({"a": "x, \"y\"", "b": [1, true, null], "c": {"k": -2500.0}}));
        let escaped = calls(r"f(a='\x41 \u00e9\n', b='\d+')").unwrap();
        assert_eq!(escaped[0].arguments, json!({"a": "A é\n", "b": "\\d+"}));
        assert_eq!((found[1].name.as_str(), &found[1].arguments), ("g", &json!({})));
        let text = r#"call:f{a:<|"|>say "hi", {b}<|"|>,b:{c:[1,<|"|>d<|"|>]},e:false}"#;
        let expected = json!({"a": "say \"hi\", {b}", "b": {"c": [1, "d"]}, "e": false});
        assert_eq!(calls(text).unwrap()[0].arguments, expected);
    }

    #[test]
    fn what_is_no_call_is_none() {
        for text in ["", "f", "f(", "f(a)", "f(a=)", "f(a=1) and more(", "[f()", "f(a=1 2)", "{\"a\": 1}"] {
            assert_eq!(calls(text), None, "{text}");
        }
        assert_eq!(calls(&format!("f(a={})", "[".repeat(10_000))), None);
    }
}
