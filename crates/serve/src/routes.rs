//! The addresses of the server, and what becomes of a request.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use sft_data::conversation::ToolCall;
use sft_infer::{Continuation, InferError};
use sft_kernels::random;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::answer::{Answer, Failure, Finish, Piece};
use crate::engine::{Job, Jobs, NotTaken};
use crate::reply::{self, Heading, Refusal, Usage, json_response};
use crate::request::Ask;
use crate::{Served, Service};

/// Bytes of a request at most.
const MOST_BYTES: usize = 16 << 20;

/// What every request needs.
struct Shared {
    service: Arc<Service>,
    jobs: Jobs,
    /// Requests that are being answered.
    in_work: Arc<AtomicUsize>,
    report: Box<dyn Fn(&Served) + Send + Sync>,
    started: u64,
    /// Whether the template writes the tools that are offered.
    offers_tools: bool,
    /// Whether only this machine can reach the server.
    alone: bool,
    /// Requests and answers so far: the number of one is part of its id, of the other of its seed.
    requests: AtomicU64,
    answers: AtomicU64,
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

async fn check_key(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let refused = match &shared.service.api_key {
        Some(key) => !is_same(key, shown_key(request.headers())),
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
    let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&name.as_str());
    let same_origin = text(header::ORIGIN).is_none_or(|origin| origin.split("://").nth(1) == Some(host));
    same_origin && (is_local || !alone)
}

/// In a time that tells nothing of where they differ.
fn is_same(key: &str, shown: &str) -> bool {
    let differs = key.bytes().zip(shown.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
    key.len() == shown.len() && differs == 0
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
    let begun = tokio::task::spawn_blocking(move || begin(&shared, &body)).await;
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

/// A request whose answers are on their way. However it ends, it is reported.
struct Asked {
    shared: Arc<Shared>,
    ask: Ask,
    heading: Heading,
    pieces: UnboundedReceiver<(usize, Piece)>,
    usage: Usage,
    began: Instant,
    first: Option<Instant>,
    /// Answers that have ended.
    ended: usize,
    finish: Option<Finish>,
}

/// Understands a request, and asks the model.
fn begin(shared: &Arc<Shared>, body: &[u8]) -> Result<Asked, Refusal> {
    let began = Instant::now();
    let service = &shared.service;
    let ask = Ask::read(body, &service.options).map_err(|problems| Refusal::of(&problems))?;
    let bad = |error: &dyn std::fmt::Display| Refusal::new(StatusCode::BAD_REQUEST, error.to_string());
    if ask.tools.is_some() && !shared.offers_tools {
        return Err(bad(&"`tools`: the template of this model does not write them\n\
            help: leave them out, or serve the model with another `template`"));
    }
    if ask.messages.len() > service.context.tokens {
        let message =
            format!("{} messages, and {} tokens at most", ask.messages.len(), service.context.tokens);
        return Err(bad(&message).with_code("context_length_exceeded"));
    }
    let prompt = service.pipeline.prompt(&ask.messages, ask.tools.as_ref()).map_err(|error| bad(&error))?;
    if let Some(id) = prompt.iter().find(|id| **id as usize >= service.vocab_size) {
        let token = service.pipeline.tokenizer().token_text(*id).unwrap_or_default();
        return Err(bad(&format!("`{token}` is a token that the model has no row for\nhelp: leave it out")));
    }
    let (out, pieces) = unbounded_channel();
    let (stops, tools): (Arc<[String]>, _) = (ask.stops.clone().into(), ask.tools.clone().map(Arc::new));
    for index in 0..ask.answers {
        let number = shared.answers.fetch_add(1, Ordering::Relaxed);
        let mut options = ask.options.clone();
        options.sampling.seed = match ask.seed {
            Some(seed) => random::key(seed, &[index as u64]),
            None => random::key(options.sampling.seed, &[number]),
        };
        let continuation = Continuation::new(service.context, &prompt, &options).map_err(|error| {
            let refusal = bad(&error);
            let is_too_long = matches!(error, InferError::PromptTooLong { .. });
            if is_too_long { refusal.with_code("context_length_exceeded") } else { refusal }
        })?;
        let (reply, told) = unbounded_channel();
        let job = Job { prompt: prompt.clone(), continuation, reply };
        shared.jobs.send(job).map_err(|not_taken| match not_taken {
            NotTaken::Full => Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{} answers wait already; come again later", crate::MOST_WAITING),
            ),
            NotTaken::Ended => gone(),
        })?;
        let (stops, tools, parallel_calls) = (Arc::clone(&stops), tools.clone(), ask.parallel_calls);
        let answer = Answer { index, told, stops, tools, parallel_calls };
        tokio::spawn(answer.follow(Arc::clone(service), out.clone()));
    }
    let number = shared.requests.fetch_add(1, Ordering::Relaxed);
    shared.in_work.fetch_add(1, Ordering::Relaxed);
    Ok(Asked {
        shared: Arc::clone(shared),
        heading: Heading::new(number, &service.name),
        usage: Usage { prompt_tokens: prompt.len(), ..Usage::default() },
        ask,
        pieces,
        began,
        first: None,
        ended: 0,
        finish: None,
    })
}

fn gone() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server ends")
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Infer(error) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            Failure::Ended => gone(),
        }
    }
}

impl Asked {
    /// The next piece of an answer; `None` when all have ended.
    async fn next(&mut self) -> Option<(usize, Piece)> {
        let (index, piece) = self.pieces.recv().await?;
        match &piece {
            Piece::Read(cached) => {
                // All answers have the same prompt, and the first token comes with its end.
                if index == 0 {
                    self.usage.cached_tokens = *cached;
                }
                self.first = self.first.or_else(|| Some(Instant::now()));
            }
            Piece::Token => self.usage.tokens += 1,
            Piece::End(finish) => {
                self.ended += 1;
                self.finish = Some(*finish).filter(|_| self.ended == self.ask.answers);
            }
            Piece::Failed(_) => {}
            Piece::Text(_) | Piece::Calls(_) => {}
        }
        Some((index, piece))
    }

    /// All answers in one object.
    async fn collect(mut self) -> Result<Value, Refusal> {
        let none = || (String::new(), Vec::<ToolCall>::new(), Finish::Stop);
        let mut choices: Vec<_> = (0..self.ask.answers).map(|_| none()).collect();
        while let Some((index, piece)) = self.next().await {
            let (text, calls, finish) = &mut choices[index];
            match piece {
                Piece::Read(_) | Piece::Token => {}
                Piece::Text(more) => text.push_str(&more),
                Piece::Calls(all) => calls.extend(all),
                Piece::End(end) => *finish = end,
                Piece::Failed(failure) => return Err(failure.into()),
            }
        }
        Ok(self.heading.completion(&choices, self.usage))
    }

    /// The answers piece by piece, as events, as long as somebody listens.
    async fn stream(mut self, events: UnboundedSender<Event>) {
        let say = |value: &Value| drop(events.send(Event::default().data(value.to_string())));
        let first = |index| self.heading.chunk(index, json!({"role": "assistant", "content": ""}), None);
        (0..self.ask.answers).for_each(|index| say(&first(index)));
        loop {
            let next = tokio::select! {
                () = events.closed() => return,
                next = self.next() => next,
            };
            let Some((index, piece)) = next else { break };
            let heading = &self.heading;
            match piece {
                Piece::Read(_) | Piece::Token => {}
                Piece::Text(text) if text.is_empty() => {}
                Piece::Text(text) => say(&heading.chunk(index, json!({"content": text}), None)),
                Piece::Calls(calls) => {
                    let calls = heading.calls(index, &calls, true);
                    say(&heading.chunk(index, json!({"tool_calls": calls}), None));
                }
                Piece::End(finish) => say(&heading.chunk(index, json!({}), Some(finish))),
                Piece::Failed(failure) => {
                    say(&Refusal::from(failure).json());
                    break;
                }
            }
        }
        if self.finish.is_some() && self.ask.include_usage {
            say(&self.heading.usage_chunk(self.usage));
        }
        drop(events.send(Event::default().data("[DONE]")));
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.shared.in_work.fetch_sub(1, Ordering::Relaxed);
        (self.shared.report)(&Served {
            prompt_tokens: self.usage.prompt_tokens,
            cached_tokens: self.usage.cached_tokens,
            tokens: self.usage.tokens,
            to_first_token: self.first.map(|first| first - self.began),
            took: self.began.elapsed(),
            finish: self.finish,
        });
    }
}
