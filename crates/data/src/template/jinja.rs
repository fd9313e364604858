//! Jinja as `transformers` renders it: the environment that chat templates expect.
//!
//! Blocks are trimmed (`trim_blocks`, `lstrip_blocks`), loops have `break` and `continue`, values have
//! Python's methods, `tojson` is `json.dumps` without HTML escapes, and there are `raise_exception`
//! and `strftime_now`. `{% generation %}` is accepted and changes nothing: spans are found without it.
//! A template comes from a stranger, so the work of one rendering is bounded, and so is its depth ([`guarded`]).

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::clock::Clock;
use super::guarded;
use super::python::{self, JsonStyle};

/// Instructions of one rendering: hundreds of times what the longest real conversations take, about
/// a second of work.
const FUEL: u64 = 20_000_000;

/// What one rendering may write: as much as the longest row of a file has.
const MAX_BYTES: usize = 64 << 20;
/// What one `tojson` may give: of its own result it doubles every backslash, so a row of them grows without end.
const MAX_JSON_BYTES: usize = 8 << 20;
/// How long one rendering may write: lists that were doubled again and again print for years at no cost of instructions.
const LONGEST: Duration = Duration::from_secs(10);

const NAME: &str = "chat_template";

/// A chat template that parses.
#[derive(Debug, Clone)]
pub struct JinjaTemplate {
    environment: Arc<Environment<'static>>,
}

impl JinjaTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// What is wrong with it, and on which line.
    pub fn new(source: &str, clock: Clock) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_filter(guarded::KEPT, guarded::kept);
        // The engine takes none for an empty list, Python does not.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| clock.strftime(format));
        environment.add_template_owned(NAME, guarded::source(source)?).map_err(|error| describe(&error))?;
        Ok(Self { environment: Arc::new(environment) })
    }

    /// Renders with the given variables.
    ///
    /// # Errors
    /// What the template refuses or gets wrong, in words.
    pub fn render(&self, variables: Value) -> Result<String, String> {
        let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
        let mut out = Bounded { bytes: Vec::new(), begun: Instant::now() };
        let rendered = template.render_captured_to(variables, &mut out).map(drop);
        match rendered {
            Ok(()) => {
                String::from_utf8(out.bytes).map_err(|_| "the template wrote what is not text".to_owned())
            }
            Err(_) if out.begun.elapsed() > LONGEST => {
                Err(format!("rendering took more than {} s", LONGEST.as_secs()))
            }
            Err(_) if out.bytes.len() >= MAX_BYTES => {
                Err(format!("rendering wrote more than {} MiB", MAX_BYTES >> 20))
            }
            Err(error) => Err(describe(&error)),
        }
    }
}

/// What is rendered, up to [`MAX_BYTES`] and [`LONGEST`].
struct Bounded {
    bytes: Vec<u8>,
    begun: Instant,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = MAX_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        match bytes.len() > room || self.begun.elapsed() > LONGEST {
            true => Err(std::io::Error::other("too much is rendered")),
            false => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A JSON value as the engine has it, keys in their order.
pub fn value_of(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value_of).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, item)| (key.as_str(), value_of(item)))),
    }
}

/// An engine value as JSON, the way `json.dumps` sees it.
fn json_of(value: &Value) -> Result<serde_json::Value, Error> {
    use serde_json::Value as Json;
    let refused = || {
        let message = format!("tojson: {} is not JSON serializable", value.kind());
        Error::new(ErrorKind::InvalidOperation, message)
    };
    Ok(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => match (i64::try_from(value.clone()), u64::try_from(value.clone())) {
            _ if !value.is_integer() => Json::from(f64::try_from(value.clone())?),
            (Ok(integer), _) => Json::from(integer),
            (_, Ok(integer)) => Json::from(integer),
            _ => return Err(refused()),
        },
        ValueKind::String => Json::String(value.as_str().ok_or_else(refused)?.to_owned()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Result<Vec<Json>, Error> = value.try_iter()?.map(|item| json_of(&item)).collect();
            Json::Array(items?)
        }
        ValueKind::Map => {
            let mut map = serde_json::Map::new();
            for key in value.try_iter()? {
                let name = match key.kind() {
                    ValueKind::String | ValueKind::Number => key.to_string(),
                    ValueKind::Bool | ValueKind::None => key.to_string().to_lowercase(),
                    _ => return Err(refused()),
                };
                map.insert(name, json_of(&value.get_item(&key)?)?);
            }
            Json::Object(map)
        }
        _ => return Err(refused()),
    })
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let option = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional.get(place) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let (ascii, indent) = (option(0, "ensure_ascii")?, option(1, "indent")?);
    let (separators, sorted) = (option(2, "separators")?, option(3, "sort_keys")?);
    named.assert_all_used()?;
    let mut style = JsonStyle::default();
    if let Some(indent) = indent {
        style.item_separator = ",".into();
        style.indent = Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        });
    }
    if let Some(separators) = separators {
        let part = |i: usize| separators.get_item_by_index(i).map(|part| part.to_string());
        (style.item_separator, style.key_separator) = (part(0)?, part(1)?);
    }
    style.ensure_ascii = ascii.is_some_and(|value| value.is_true());
    style.sort_keys = sorted.is_some_and(|value| value.is_true());
    let text = python::json_styled(&json_of(value)?, &style);
    match text.len() <= MAX_JSON_BYTES {
        true => Ok(Value::from(text)),
        false => {
            let reason = format!("tojson: a value of more than {MAX_JSON_BYTES} bytes");
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        }
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{message}")))
}

/// Marks an error as the template's own words.
const REFUSAL: &str = "the template refuses the conversation: ";

fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("rendering took more than {FUEL} instructions");
    }
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        _ if detail.starts_with(REFUSAL) => detail,
        Some(line) => format!("line {line} of the template: {}: {detail}", error.kind()),
        None => format!("{}: {detail}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, variables: serde_json::Value) -> Result<String, String> {
        let template = JinjaTemplate::new(source, Clock::Fixed(1_721_952_000))?;
        template.render(value_of(&variables))
    }

    // Expected texts rendered by transformers 5.6 (`render_jinja_template`).
    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        let source = "{%- if a %}\n  yes\n  {%- endif %}\n\n  {% if b %}\n    no\n  {% endif %}\n{{ a }}\n";
        assert_eq!(render(source, json!({"a": "x"})).unwrap(), "  yes\nx");
        assert_eq!(render("{% if true %}\n a\n{% endif %}\nb\n\n", json!({})).unwrap(), " a\nb\n");
    }

    #[test]
    fn tojson_of_tojson_does_not_grow_without_end() {
        let source = format!("{{{{ '\"'{} }}}}", " | tojson".repeat(60));
        let template = JinjaTemplate::new(&source, Clock::System).unwrap();
        let error = template.render(value_of(&serde_json::json!({}))).unwrap_err();
        assert!(error.contains("tojson: a value of more than"), "{error}");
    }

    #[test]
    fn what_would_overflow_the_stack_is_refused() {
        let chain = |link: &str| format!("{{{{ x{} }}}}", link.repeat(100_000));
        let depth = "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n }}";
        let cases = [
            (chain(" | e"), "characters of code"),
            (chain("+1"), "characters of code"),
            (format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(100_000)), "`elif`s"),
            (depth.to_owned(), "lists deep"),
            ("{% set x = [x] %}".repeat(100_000), "lists deep"),
            ("{% set n = namespace() %}{% set n.n = n %}{{ n }}".to_owned(), "put into itself"),
            ("{% set n = namespace() %}{% set n.n = [{'a': n}] %}{{ n }}".to_owned(), "put into itself"),
            (
                "{% set n = namespace() %}{% set m = namespace(n=n) %}{% set n.m = m %}{{ n }}".to_owned(),
                "put into itself",
            ),
        ];
        for (source, reason) in cases {
            let error = render(&source, json!({})).unwrap_err();
            assert!(error.contains(reason), "{error}: {}", &source[..source.len().min(100)]);
        }
        let kept = "{% set n = namespace(a=1) %}{% set n.a = [n.a, {'b': 2}] %}{% set x, y = n.a %}{{ n.a }}{{ y.b }}";
        assert_eq!(render(kept, json!({})).unwrap(), "[1, {'b': 2}]2");
    }

    #[test]
    fn tojson_is_pythons() {
        let value = json!({"v": {"b": "<ü'>", "a": [1, 2.5, null, true]}});
        let cases = [
            ("{{ v | tojson }}", r#"{"b": "<ü'>", "a": [1, 2.5, null, true]}"#),
            ("{{ v | tojson(separators=(',', ':')) }}", r#"{"b":"<ü'>","a":[1,2.5,null,true]}"#),
            (
                "{{ v | tojson(ensure_ascii=True, sort_keys=True) }}",
                r#"{"a": [1, 2.5, null, true], "b": "<\u00fc'>"}"#,
            ),
            ("{{ v.a | tojson(indent=1) }}", "[\n 1,\n 2.5,\n null,\n true\n]"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, value.clone()).unwrap(), expected, "{source}");
        }
        assert!(render("{{ nothing | tojson }}", value).is_err());
    }

    #[test]
    fn values_print_and_behave_as_in_python() {
        let cases = [
            ("{{ [true, none, 'a'] }}", "[True, None, 'a']"),
            ("{{ none }}{{ true }}{{ missing }}", "NoneTrue"),
            ("{{ ' x '.strip() ~ 'a-b'.split('-')[-1] ~ 'abc'[1:] }}", "xbbc"),
            ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
            ("{% set n = namespace(x=1) %}{% for i in [1] %}{% set n.x = 5 %}{% endfor %}{{ n.x }}", "5"),
            ("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "12"),
            ("{{ {'a': 1}.get('b', 3) }}{% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "3x1"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            (
                "{{ none is iterable }}{{ 'a' is iterable }}{{ [] is iterable }}{{ 1 is iterable }}",
                "FalseTrueTrueFalse",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, json!({})).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn generation_tags_change_nothing() {
        let source = "a {%- generation -%} b {%- endgeneration %} c{% generation %}\nd{% endgeneration %}";
        assert_eq!(render(source, json!({})).unwrap(), "ab cd");
        assert_eq!(render("{{ '{% generation x %}' }}", json!({})).unwrap(), "{% generation x %}");
    }

    #[test]
    fn a_refusal_is_told_in_the_templates_words() {
        let refusal = render("{{ raise_exception('roles must alternate') }}", json!({})).unwrap_err();
        assert_eq!(refusal, "the template refuses the conversation: roles must alternate");
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(render(source, json!({})).unwrap_err().contains("instructions"));
        let doubling =
            "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}";
        for source in [
            doubling,
            "{{ 'a' * 99999999999 }}",
            "{{ ([0] * 99999999999) | length }}",
            "{{ '%99999999999d' % 1 }}",
            "{{ range(9999999999) | list | length }}",
            "{{ 'a' | center(99999999999) }}",
            "{% set s = 'a' * 1000000 %}{% for i in range(1000) %}{{ s }}{% endfor %}",
        ] {
            assert!(render(source, json!({})).is_err(), "{source}");
        }
        assert!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", json!({})).is_err());
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        assert!(render("a\n{% if %}", json!({})).unwrap_err().contains("line 2"));
    }
}
