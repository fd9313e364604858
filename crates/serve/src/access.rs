//! Who may ask: whoever has the key, and without one no page of another site.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use constant_time_eq::constant_time_eq;

use crate::reply::Refusal;
use crate::routes::Shared;

/// Lets a request through, or refuses it.
pub async fn check_key(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let refused = match &shared.service.api_key {
        Some(key) => !constant_time_eq(key.as_bytes(), shown_key(request.headers()).as_bytes()),
        None => false,
    };
    if refused {
        let message = "the request has no valid key\nhelp: send it as `Authorization: Bearer KEY`";
        return Refusal::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key").into_response();
    }
    if shared.service.api_key.is_none() && !is_from_here(request.headers(), shared.alone) {
        let message = "pages of other sites may not use this server\n\
            help: start it with `--api-key`, and send the key; or ask for it by the address that it prints";
        return Refusal::new(StatusCode::FORBIDDEN, message).into_response();
    }
    next.run(request).await
}

/// What a request shows as `Bearer KEY`.
fn shown_key(headers: &HeaderMap) -> &str {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match shown.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ => "",
    }
}

/// Whether a browser that asks shows a page of this server, under a name that nobody else can give it: without a key that
/// is all that keeps other sites out.
fn is_from_here(headers: &HeaderMap, alone: bool) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST).unwrap_or_default();
    let name = host.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    let is_local = name == "localhost" || address.is_ok_and(|address| address.is_loopback());
    let same_origin = text(header::ORIGIN).is_none_or(|origin| origin.split("://").nth(1) == Some(host));
    same_origin && (is_local || !alone)
}
