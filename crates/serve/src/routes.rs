//! The addresses of the server, and what becomes of a request.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
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
use crate::engine::Job;
use crate::reply::{self, Heading, Refusal, Usage, json_response};
use crate::request::Ask;
use crate::{Served, Service};

/// Bytes of a request at most.
const MOST_BYTES: usize = 16 << 20;

/// What every request needs.
struct Shared {
    service: Arc<Service>,
    jobs: SyncSender<Job>,
    report: Box<dyn Fn(&Served) + Send + Sync>,
    started: u64,
    /// Requests and answers so far: the number of one is part of its id, of the other of its seed.
    requests: AtomicU64,
    answers: AtomicU64,
}

/// All addresses.
pub fn router(service: Service, jobs: SyncSender<Job>, report: Box<dyn Fn(&Served) + Send + Sync>) -> Router {
    let shared = Arc::new(Shared {
        service: Arc::new(service),
        jobs,
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
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    match &shared.service.api_key {
        Some(key) if !is_same(key, shown.trim()) => {
            let message = "the request has no valid key\nhelp: send it as `Authorization: Bearer KEY`";
            Refusal::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key").into_response()
        }
        _ => next.run(request).await,
    }
}

/// In a time that tells nothing of where they differ.
fn is_same(key: &str, shown: &str) -> bool {
    let differs = key.bytes().zip(shown.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
    key.len() == shown.len() && differs == 0
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    json_response(&reply::models(&shared.service.name, shared.started))
}

async fn model(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    if name != shared.service.name {
        let message = format!("the model served here is `{}`, not `{name}`", shared.service.name);
        return Refusal::new(StatusCode::NOT_FOUND, message).with_code("model_not_found").into_response();
    }
    json_response(&reply::model(&name, shared.started))
}

async fn chat(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    // A long text takes its time, in which others are served.
    let begun = tokio::task::spawn_blocking(move || begin(&shared, &body)).await;
    let asked = match begun.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
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
    finish: Option<Finish>,
}

/// Understands a request, and asks the model.
fn begin(shared: &Arc<Shared>, body: &[u8]) -> Result<Asked, Refusal> {
    let began = Instant::now();
    let service = &shared.service;
    let ask = Ask::read(body, &service.options).map_err(|problems| Refusal::of(&problems))?;
    let bad = |error: &dyn std::fmt::Display| Refusal::new(StatusCode::BAD_REQUEST, error.to_string());
    let prompt = service.pipeline.prompt(&ask.messages, ask.tools.as_ref()).map_err(|error| bad(&error))?;
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
        shared.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{} answers wait already; come again later", crate::MOST_WAITING),
            ),
            TrySendError::Disconnected(_) => gone(),
        })?;
        let (stops, tools, parallel_calls) = (Arc::clone(&stops), tools.clone(), ask.parallel_calls);
        let answer = Answer { index, told, stops, tools, parallel_calls };
        tokio::spawn(answer.follow(Arc::clone(service), out.clone()));
    }
    let number = shared.requests.fetch_add(1, Ordering::Relaxed);
    Ok(Asked {
        shared: Arc::clone(shared),
        heading: Heading::new(number, &service.name),
        usage: Usage { prompt_tokens: prompt.len(), ..Usage::default() },
        ask,
        pieces,
        began,
        first: None,
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
            Piece::End(finish, tokens) => {
                self.usage.tokens += tokens;
                self.finish = Some(*finish);
            }
            Piece::Failed(_) => self.finish = None,
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
                Piece::Read(_) => {}
                Piece::Text(more) => text.push_str(&more),
                Piece::Calls(all) => calls.extend(all),
                Piece::End(end, _) => *finish = end,
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
                () = events.closed() => return self.finish = None,
                next = self.next() => next,
            };
            let Some((index, piece)) = next else { break };
            let heading = &self.heading;
            match piece {
                Piece::Read(_) => {}
                Piece::Text(text) if text.is_empty() => {}
                Piece::Text(text) => say(&heading.chunk(index, json!({"content": text}), None)),
                Piece::Calls(calls) => {
                    let calls = heading.calls(index, &calls, true);
                    say(&heading.chunk(index, json!({"tool_calls": calls}), None));
                }
                Piece::End(finish, _) => say(&heading.chunk(index, json!({}), Some(finish))),
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
