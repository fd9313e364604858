//! A request that is not done: its status and why, as `{"error": …}`.

use std::fmt::Display;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub String);

impl Refusal {
    /// Something is wrong with what was asked.
    pub fn bad(reason: impl Display) -> Self {
        Self(StatusCode::BAD_REQUEST, reason.to_string())
    }

    /// There is no such thing.
    pub fn none(what: impl Display) -> Self {
        Self(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    /// The system refuses; `what` is what was tried.
    pub fn failed(what: &str, error: impl Display) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}: {error}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}
