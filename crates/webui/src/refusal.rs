//! What a request asks, and a request that is not done: its status and why, as `{"error": …}`.

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::Shared;

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

    /// It cannot be done as things are.
    pub fn not_now(reason: impl Display) -> Self {
        Self(StatusCode::CONFLICT, reason.to_string())
    }

    /// The system refuses; `what` is what was tried.
    pub fn failed(what: &str, error: impl Display) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}: {error}"))
    }

    /// The system refuses a file.
    pub fn of_file(name: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::none(format!("file {name}")),
            io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                Self::bad(format!("{name}: {error}"))
            }
            io::ErrorKind::InvalidData => Self::bad(format!("{name}: this is no text in UTF-8")),
            _ => Self::failed(name, error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

/// The JSON of a request.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|rejected| Refusal(rejected.status(), rejected.body_text()))?;
        let parsed = serde_json::from_slice(if body.is_empty() { b"{}" } else { &body });
        parsed.map(Self).map_err(|error| Refusal::bad(format!("this request is not understood: {error}")))
    }
}

/// What stands behind the `?` of an address.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(asked)| Self(asked)).map_err(|rejected| Refusal::bad(rejected.body_text()))
    }
}

/// What may take a while is done beside what others ask.
pub async fn beside<T: Send + 'static>(
    shared: Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || work(&shared)).await;
    done.unwrap_or_else(|error| Err(Refusal::failed("the request could not be done", error)))
}
