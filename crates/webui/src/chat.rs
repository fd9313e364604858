//! A model that is talked to: `sft serve` as a process of its own, whose page and answers come under this server's address.
//!
//! The address `/chat/<key>/…` has the key of that process in it: its page, which knows nothing of this server, can ask, and
//! nobody else. What comes from there has no part in this server's own page ([`POLICY`]).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::Shared;
use crate::jobs::{self, Served};
use crate::key::is_same;
use crate::refusal::{Refusal, beside};

/// How long a model that is loaded may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);
/// A page from there is of an origin of its own, whoever answers: it cannot read what this server's page keeps.
const POLICY: &str = "sandbox allow-scripts allow-forms";
/// What is of one connection, or of this server.
const NOT_PASSED_ON: [HeaderName; 14] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::COOKIE,
    header::SET_COOKIE,
    // To the process this server is a program on its own machine, not a browser.
    header::ORIGIN,
    header::REFERER,
    header::AUTHORIZATION,
];

/// The model that is talked to: whether it can be, and where.
pub async fn state(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let found = beside(Arc::clone(&shared), |shared| Ok(shared.jobs.chat())).await?;
    let Some((state, job)) = found else { return Ok(Json(json!({"state": "none"}))) };
    let is_running = state == jobs::State::Running;
    let state = match &job.served {
        Some(served) if is_running && is_there(served).await => "ready",
        _ if is_running => "loading",
        // What was unloaded has said nothing that matters.
        _ if job.stopped => "none",
        _ => "ended",
    };
    let path = job.served.as_ref().map(|served| format!("chat/{}/", served.key));
    let mut told = json!({"state": state, "id": job.id, "model": job.model, "path": path});
    if state != "ready" {
        let output = beside(shared, move |shared| {
            shared.jobs.output(&job, None).map_err(|error| Refusal::failed("what it said", error))
        });
        told["output"] = output.await?.text.into();
    }
    Ok(Json(told))
}

/// Whether the process answers.
async fn is_there(served: &Served) -> bool {
    let asked = Request::get("/v1/models").body(Body::empty()).map_err(|_| StatusCode::BAD_REQUEST);
    let answered = async { Some(ask(served, asked.ok()?).await.ok()?.status() == StatusCode::OK) };
    tokio::time::timeout(PATIENCE, answered).await.ok().flatten() == Some(true)
}

/// Passes a request on, and the answer back as it comes.
pub async fn pass_on(
    State(shared): State<Arc<Shared>>,
    Path(parts): Path<Vec<(String, String)>>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let key = parts.first().map_or("", |(_, key)| key.as_str());
    // Where the process has ended, its port may be anybody's.
    let found = beside(Arc::clone(&shared), |shared| Ok(shared.jobs.chat())).await?;
    let running = found.filter(|(state, _)| *state == jobs::State::Running);
    let served = running.and_then(|(_, job)| job.served).filter(|served| is_same(&served.key, key));
    let Some(served) = served else { return Ok(with_policy(Refusal::none("such model").into_response())) };
    if request.method() == Method::OPTIONS {
        // Its page is of no origin, and asks before it sends JSON.
        return Ok(with_policy(StatusCode::NO_CONTENT.into_response()));
    }
    // As it was sent, so that what is escaped in it stays so.
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let path = path.split_once(key).map_or("/", |(_, rest)| rest);
    *request.uri_mut() = Uri::try_from(path).map_err(Refusal::bad)?;
    Ok(with_policy(ask(&served, request).await.unwrap_or_else(IntoResponse::into_response)))
}

/// Lets the page from there ask there, and do nothing else.
fn with_policy(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The address has the key in it.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "content-type, authorization"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// An answer of the process.
async fn ask(served: &Served, mut request: Request) -> Result<Response, Refusal> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Refusal(StatusCode::BAD_GATEWAY, format!("the model does not answer: {error}"))
    };
    let text = |text: String| HeaderValue::try_from(text).map_err(Refusal::bad);
    *request.version_mut() = Version::HTTP_11;
    clear(request.headers_mut());
    request.headers_mut().insert(header::HOST, text(format!("127.0.0.1:{}", served.port))?);
    request.headers_mut().insert(header::AUTHORIZATION, text(format!("Bearer {}", served.key))?);
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, served.port)).await.map_err(|e| unreachable(&e))?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|e| unreachable(&e))?;
    // It ends with the answer, or with whoever reads it.
    tokio::spawn(connection);
    let mut answer = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
    clear(answer.headers_mut());
    Ok(answer.map(Body::new))
}

/// Takes away what is of one connection, and what that names as such.
fn clear(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        named.flat_map(|value| value.split(',')).map(|name| name.trim().to_owned()).collect();
    named.iter().for_each(|name| drop(headers.remove(name.as_str())));
    NOT_PASSED_ON.iter().for_each(|name| drop(headers.remove(name)));
}
