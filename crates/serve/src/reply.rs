//! What is answered: OpenAI's objects (API reference, chat completions) as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sft_data::conversation::ToolCall;
use sft_kernels::random;

use crate::answer::Finish;
use crate::fields::Problem;

/// What the objects of one request have in common.
#[derive(Debug, Clone)]
pub struct Heading {
    id: u64,
    created: u64,
    model: String,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub tokens: usize,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Heading {
    /// Of the request of that number.
    pub fn new(number: u64, model: &str) -> Self {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        Self { id: random::key(nanos, &[number]), created: now(), model: model.to_owned() }
    }

    fn object(&self, object: &str, choices: Value, usage: Option<Value>) -> Value {
        let mut all = json!({
            "id": format!("chatcmpl-{:016x}", self.id),
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            all["usage"] = usage;
        }
        all
    }

    /// The whole answer; a choice is its text, its calls and its end.
    pub fn completion(&self, choices: &[(String, Vec<ToolCall>, Finish)], usage: Usage) -> Value {
        let choice = |(index, (text, calls, finish)): (usize, &(String, Vec<ToolCall>, Finish))| {
            let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { json!(text) };
            let mut message = json!({"role": "assistant", "content": content, "refusal": null});
            if !calls.is_empty() {
                message["tool_calls"] = self.calls(index, calls, false);
            }
            json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish.name()})
        };
        self.object("chat.completion", choices.iter().enumerate().map(choice).collect(), Some(usage.json()))
    }

    /// A piece of a choice.
    pub fn chunk(&self, index: usize, delta: Value, finish: Option<Finish>) -> Value {
        let finish = finish.map(Finish::name);
        let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish});
        self.object("chat.completion.chunk", json!([choice]), None)
    }

    /// The last piece, without a choice.
    pub fn usage_chunk(&self, usage: Usage) -> Value {
        self.object("chat.completion.chunk", json!([]), Some(usage.json()))
    }

    /// Calls of tools; in a piece each has its place.
    pub fn calls(&self, index: usize, calls: &[ToolCall], in_piece: bool) -> Value {
        let call = |(at, call): (usize, &ToolCall)| {
            let id = call_id(random::key(self.id, &[index as u64, at as u64]));
            let function = json!({"name": call.name, "arguments": call.arguments.to_string()});
            let mut object = json!({"id": id, "type": "function", "function": function});
            if in_piece {
                object["index"] = json!(at);
            }
            object
        };
        calls.iter().enumerate().map(call).collect()
    }
}

/// Nine letters and digits, which is what Mistral's templates ask of the id of a call.
fn call_id(mut key: u64) -> String {
    let mut letter = || {
        let digit = (key % 36) as u32;
        key /= 36;
        char::from_digit(digit, 36).unwrap_or('0')
    };
    (0..9).map(|_| letter()).collect()
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}

/// The list of models: one.
pub fn models(name: &str, created: u64) -> Value {
    json!({"object": "list", "data": [model(name, created)]})
}

/// A model.
pub fn model(name: &str, created: u64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "sft"})
}

/// A request that is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    message: String,
    /// The field that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Of a request with problems; the first names the field.
    pub fn of(problems: &[Problem]) -> Self {
        let line = |problem: &Problem| match problem.field.as_str() {
            "" => problem.reason.clone(),
            field => format!("`{field}` {}", problem.reason),
        };
        let lines: Vec<String> = problems.iter().map(line).collect();
        let param = problems.first().map(|problem| problem.field.clone()).filter(|field| !field.is_empty());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, lines.join("; ")) }
    }

    pub fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_response(&self.json());
        *response.status_mut() = self.status;
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// An object as an answer.
pub fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
