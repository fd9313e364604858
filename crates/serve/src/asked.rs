//! A request on its way: understood, brought to the model, and answered whole or piece by piece.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::http::StatusCode;
use axum::response::sse::Event;
use serde_json::{Value, json};
use sft_data::conversation::ToolCall;
use sft_infer::slots::Told;
use sft_infer::{Continuation, GenerationOptions, InferError};
use sft_kernels::random;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Served;
use crate::answer::{Answer, Failure, Finish, Piece};
use crate::engine::{Job, NotTaken};
use crate::reply::{Heading, Refusal, Usage};
use crate::request::Ask;
use crate::routes::Shared;

/// A request whose answers are on their way. However it ends, it is reported.
pub struct Asked {
    shared: Arc<Shared>,
    /// What is asked for.
    pub ask: Ask,
    heading: Heading,
    pieces: UnboundedReceiver<(usize, Piece)>,
    usage: Usage,
    began: Instant,
    first: Option<Instant>,
    /// Answers that have ended.
    ended: usize,
    finish: Option<Finish>,
}

/// Brings a prompt to the model: what it tells of the answer.
fn bring(
    shared: &Shared,
    prompt: &[u32],
    options: &GenerationOptions,
) -> Result<UnboundedReceiver<Told>, Refusal> {
    let continuation = Continuation::new(shared.service.context, prompt, options).map_err(|error| {
        let is_too_long = matches!(error, InferError::PromptTooLong { .. });
        if is_too_long { bad(&error).with_code("context_length_exceeded") } else { bad(&error) }
    })?;
    let (reply, told) = unbounded_channel();
    let job = Job { prompt: prompt.to_vec(), continuation, reply };
    shared.jobs.send(job).map_err(|not_taken| match not_taken {
        NotTaken::Full => {
            let message = format!("{} answers wait already; come again later", crate::MOST_WAITING);
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
        NotTaken::Ended => gone(),
    })?;
    Ok(told)
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

/// What a request with this mistake gets.
fn bad(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, error.to_string())
}

/// What the model reads before it answers.
fn prompt(shared: &Shared, ask: &Ask) -> Result<Vec<u32>, Refusal> {
    let service = &shared.service;
    if ask.tools.is_some() && !shared.offers_tools {
        return Err(bad(&"`tools`: the template of this model does not write them\n\
            help: leave them out, or serve the model with another `template`"));
    }
    let (messages, most) = (ask.messages.len(), service.context.tokens);
    if messages > most {
        let message =
            format!("{messages} messages, and {most} tokens at most\nhelp: {}", service.context.help);
        return Err(bad(&message).with_code("context_length_exceeded"));
    }
    let prompt = service.pipeline.prompt(&ask.messages, ask.tools.as_ref()).map_err(|error| bad(&error))?;
    match prompt.iter().find(|id| **id as usize >= service.vocab_size) {
        None => Ok(prompt),
        Some(id) => {
            let token = service.pipeline.tokenizer().token_text(*id).unwrap_or_default();
            Err(bad(&format!("`{token}` is a token that the model has no row for\nhelp: leave it out")))
        }
    }
}

impl Asked {
    /// Understands a request, and asks the model.
    ///
    /// # Errors
    /// What is wrong with it; too many wait.
    pub fn begin(shared: &Arc<Shared>, body: &[u8]) -> Result<Self, Refusal> {
        let began = Instant::now();
        let service = &shared.service;
        let ask = Ask::read(body, &service.options).map_err(|problems| Refusal::of(&problems))?;
        let prompt = prompt(shared, &ask)?;
        let (out, pieces) = unbounded_channel();
        let (stops, tools): (Arc<[String]>, _) = (ask.stops.clone().into(), ask.tools.clone().map(Arc::new));
        for index in 0..ask.answers {
            let number = shared.answers.fetch_add(1, Ordering::Relaxed);
            let mut options = ask.options.clone();
            options.sampling.seed = match ask.seed {
                Some(seed) => random::key(seed, &[index as u64]),
                None => random::key(options.sampling.seed, &[number]),
            };
            let told = bring(shared, &prompt, &options)?;
            let (stops, tools, parallel_calls) = (Arc::clone(&stops), tools.clone(), ask.parallel_calls);
            let answer = Answer { index, told, stops, tools, parallel_calls };
            tokio::spawn(answer.follow(Arc::clone(service), out.clone()));
        }
        let number = shared.requests.fetch_add(1, Ordering::Relaxed);
        shared.in_work.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
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
            Piece::Failed(_) | Piece::Text(_) | Piece::Calls(_) => {}
        }
        Some((index, piece))
    }

    /// All answers in one object.
    pub async fn collect(mut self) -> Result<Value, Refusal> {
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
    pub async fn stream(mut self, events: UnboundedSender<Event>) {
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
