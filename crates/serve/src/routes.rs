//! The addresses of the server.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::access::check_key;
use crate::asked::Asked;
use crate::engine::Jobs;
use crate::reply::{self, Refusal, json_response};
use crate::{Served, Service};

/// Bytes of a request at most.
const MOST_BYTES: usize = 16 << 20;

/// What every request needs.
pub struct Shared {
    pub service: Arc<Service>,
    pub jobs: Jobs,
    /// Requests that are being answered.
    pub in_work: Arc<AtomicUsize>,
    pub report: Box<dyn Fn(&Served) + Send + Sync>,
    started: u64,
    /// Whether the template writes the tools that are offered.
    pub offers_tools: bool,
    /// Whether only this machine can reach the server.
    pub alone: bool,
    /// Requests and answers so far: the number of one is part of its id, of the other of its seed.
    pub requests: AtomicU64,
    pub answers: AtomicU64,
}

/// All addresses.
pub fn router(
    service: Service,
    (jobs, in_work): (Jobs, Arc<AtomicUsize>),
    alone: bool,
    report: Box<dyn Fn(&Served) + Send + Sync>,
) -> Router {
    let shared = Arc::new(Shared {
        offers_tools: service.offers_tools(),
        service: Arc::new(service),
        jobs,
        in_work,
        alone,
        report,
        started: reply::now(),
        requests: AtomicU64::new(0),
        answers: AtomicU64::new(0),
    });
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), check_key));
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/health", get(|| async { json_response(&json!({"status": "ok"})) }))
        .merge(api)
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(shared)
}

async fn unknown(request: Request) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    let there_are = "GET /v1/models, POST /v1/chat/completions, GET /health and the page at /";
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no {method} {path}; there are {there_are}"))
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    json_response(&reply::models(&shared.service.name, shared.started))
}

async fn model(State(shared): State<Arc<Shared>>, name: Result<Path<String>, PathRejection>) -> Response {
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    if name != shared.service.name {
        let message = format!("the model served here is `{}`, not `{name}`", shared.service.name);
        return Refusal::new(StatusCode::NOT_FOUND, message).with_code("model_not_found").into_response();
    }
    json_response(&reply::model(&name, shared.started))
}

async fn chat(State(shared): State<Arc<Shared>>, body: Result<Bytes, BytesRejection>) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejected) if rejected.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the request has more than {} MiB\nhelp: send less", MOST_BYTES >> 20);
            return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message).into_response();
        }
        Err(rejected) => return Refusal::new(rejected.status(), rejected.body_text()).into_response(),
    };
    // A long text takes its time, in which others are served.
    let begun = tokio::task::spawn_blocking(move || Asked::begin(&shared, &body)).await;
    let failed = |_| Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be read"));
    let asked = match begun.unwrap_or_else(failed) {
        Ok(asked) => asked,
        Err(refusal) => return refusal.into_response(),
    };
    if asked.ask.stream {
        let (events, stream) = unbounded_channel();
        tokio::spawn(asked.stream(events));
        let stream = UnboundedReceiverStream::new(stream).map(Ok::<_, Infallible>);
        return Sse::new(stream).keep_alive(KeepAlive::default()).into_response();
    }
    match asked.collect().await {
        Ok(completion) => json_response(&completion),
        Err(refusal) => refusal.into_response(),
    }
}
