//! A model that is talked to: `sft serve` as a process of its own, whose page and answers come under this server's address.
//!
//! The address `/chat/<key>/…` has the key of that process in it: its page, which knows nothing of this server, can ask, and
//! nobody else.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, REFERER};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::Shared;
use crate::jobs::{self, Served};
use crate::key::is_same;
use crate::refusal::Refusal;

/// How long a model that is loaded may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// The model that is talked to: whether it can be, and where.
pub async fn state(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let Some(job) = shared.jobs.chat() else { return Ok(Json(json!({"state": "none"}))) };
    let is_running = shared.jobs.state(&job) == jobs::State::Running;
    let (output, _) = shared.jobs.output(&job, None).map_err(|error| Refusal::failed("output.txt", error))?;
    let state = match &job.served {
        Some(served) if is_running && is_there(served).await => "ready",
        _ if is_running => "loading",
        _ => "ended",
    };
    let path = job.served.as_ref().map(|served| format!("chat/{}/", served.key));
    Ok(Json(json!({"state": state, "id": job.id, "model": job.model, "path": path, "output": output})))
}

/// Whether the process answers.
async fn is_there(served: &Served) -> bool {
    let asked = Request::get("/v1/models").body(Body::empty()).map_err(|_| StatusCode::BAD_REQUEST);
    let answered = async { Some(ask(served, asked.ok()?).await.ok()?.status() == StatusCode::OK) };
    tokio::time::timeout(PATIENCE, answered).await.ok().flatten() == Some(true)
}

/// The process's page.
pub async fn page(
    state: State<Arc<Shared>>,
    Path(key): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    pass_on(state, Path((key, String::new())), request).await
}

/// Passes a request on, and the answer back as it comes.
pub async fn pass_on(
    State(shared): State<Arc<Shared>>,
    Path((key, path)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let served = shared.jobs.chat().and_then(|job| job.served);
    let served =
        served.filter(|served| is_same(&served.key, &key)).ok_or_else(|| Refusal::none("such model"))?;
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let uri = Uri::try_from(format!("/{path}{query}")).map_err(Refusal::bad)?;
    *request.uri_mut() = uri;
    ask(&served, request).await
}

/// An answer of the process.
async fn ask(served: &Served, mut request: Request) -> Result<Response, Refusal> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Refusal(StatusCode::BAD_GATEWAY, format!("the model does not answer: {error}"))
    };
    let headers = request.headers_mut();
    // To the process this server is a program on its own machine, not a browser.
    headers.remove(ORIGIN);
    headers.remove(REFERER);
    let text = |text: String| HeaderValue::try_from(text).map_err(Refusal::bad);
    headers.insert(HOST, text(format!("127.0.0.1:{}", served.port))?);
    headers.insert(AUTHORIZATION, text(format!("Bearer {}", served.key))?);
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, served.port)).await.map_err(|e| unreachable(&e))?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|e| unreachable(&e))?;
    // It ends with the answer, or with whoever reads it.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
    Ok(answer.map(Body::new))
}
