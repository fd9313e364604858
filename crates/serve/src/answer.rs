//! One answer on its way: tokens of the model → pieces of text, calls of tools, and how it ended.

use std::sync::Arc;

use serde_json::Value;
use sft_data::conversation::ToolCall;
use sft_data::template::tools::calls_in;
use sft_infer::slots::Told;
use sft_infer::{InferError, StopReason};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::Service;
use crate::words::Words;

/// How an answer ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a text that was to end it came.
    Stop,
    /// It is as long as it may be.
    Length,
    /// It calls tools.
    ToolCalls,
}

impl Finish {
    /// OpenAI's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// What is told of an answer.
#[derive(Debug)]
pub enum Piece {
    /// Its prompt has been read; a cache held so many tokens of it.
    Read(usize),
    /// Another token of it, whether or not there is text.
    Token,
    /// More of its text.
    Text(String),
    /// What it calls.
    Calls(Vec<ToolCall>),
    /// Its end.
    End(Finish),
    /// There is no more of it.
    Failed(Failure),
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Something is wrong with the model.
    Infer(InferError),
    /// The model is not there any more.
    Ended,
}

/// An answer that is asked for.
#[derive(Debug)]
pub struct Answer {
    /// Its place among those to the same request.
    pub index: usize,
    /// What comes of it.
    pub told: UnboundedReceiver<Told>,
    /// Texts that end it.
    pub stops: Arc<[String]>,
    /// The tools that it may call; its text is told when it has ended, since it may be a call.
    pub tools: Option<Arc<Value>>,
    /// Whether it may call several at once.
    pub parallel_calls: bool,
}

impl Answer {
    /// Tells `out` of it until it ends, or nobody listens.
    pub async fn follow(mut self, service: Arc<Service>, out: UnboundedSender<(usize, Piece)>) {
        let tokenizer = service.pipeline.tokenizer();
        let mut words = Words::new(tokenizer.stream(service.options.skip_special_tokens), &self.stops);
        let (mut held, mut ids) = (String::new(), Vec::new());
        let say = |piece| drop(out.send((self.index, piece)));
        let mut text = |text: String| match &self.tools {
            Some(_) => held.push_str(&text),
            None => say(Piece::Text(text)),
        };
        let finish = loop {
            let told = tokio::select! {
                () = out.closed() => return,
                told = self.told.recv() => told,
            };
            match told {
                Some(Told::Read { reused }) => say(Piece::Read(reused)),
                Some(Told::Token(id)) => {
                    ids.push(id);
                    say(Piece::Token);
                    let piece = words.push(id);
                    text(piece.text);
                    if piece.stopped {
                        break Finish::Stop;
                    }
                }
                Some(Told::Ended(Ok(generation))) => {
                    let rest = words.finish();
                    text(rest.text);
                    break match generation.reason {
                        _ if rest.stopped => Finish::Stop,
                        StopReason::Stop | StopReason::Cancelled => Finish::Stop,
                        StopReason::Length | StopReason::Context => Finish::Length,
                    };
                }
                Some(Told::Ended(Err(error))) => return say(Piece::Failed(Failure::Infer(error))),
                None => return say(Piece::Failed(Failure::Ended)),
            }
        };
        let finish = match self.tools.as_ref().and_then(|tools| self.calls(tools, &service, &ids)) {
            None => {
                say(Piece::Text(held));
                finish
            }
            Some((words, mut calls)) => {
                calls.truncate(if self.parallel_calls { usize::MAX } else { 1 });
                say(Piece::Text(words));
                say(Piece::Calls(calls));
                Finish::ToolCalls
            }
        };
        say(Piece::End(finish));
    }

    /// The words and the calls of a whole answer, up to a text that ends it; `None` if it calls nothing.
    fn calls(&self, tools: &Value, service: &Service, ids: &[u32]) -> Option<(String, Vec<ToolCall>)> {
        // Marks of calls may be special tokens.
        let tokenizer = service.pipeline.tokenizer();
        let mut text = tokenizer.decode(ids, false);
        if let Some(at) = self.stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
            text.truncate(at);
        }
        let (words, calls) = calls_in(&text, tools)?;
        let spelled =
            |words: &str| Some(tokenizer.decode(&tokenizer.encode(words).ok()?, true).trim().to_owned());
        let plain = service.options.skip_special_tokens.then(|| spelled(&words)).flatten();
        Some((plain.unwrap_or(words), calls))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sft_infer::{Context, Generation, GenerationOptions};
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::tiny;

    /// The pieces of an answer in these words (a token a byte) to an offer of the tool `now`, in a line each.
    fn pieces(words: &str, parallel_calls: bool, stops: &[&str]) -> Vec<String> {
        let service = Arc::new(Service {
            name: String::new(),
            pipeline: tiny::pipeline(),
            options: GenerationOptions::greedy(100, &[]),
            vocab_size: 258,
            context: Context { name: "--context", tokens: 100, help: "" },
            api_key: None,
        });
        let (model, told) = unbounded_channel();
        let tools =
            Some(Arc::new(json!([{"type": "function", "function": {"name": "now", "parameters": {}}}])));
        let ids: Vec<u32> = words.bytes().map(u32::from).collect();
        ids.iter().for_each(|id| model.send(Told::Token(*id)).unwrap());
        let generation = Generation { ids, reason: StopReason::Stop, reused: 0 };
        model.send(Told::Ended(Ok(generation))).unwrap();
        let (out, mut pieces) = unbounded_channel();
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let answer = Answer { index: 0, told, stops, tools, parallel_calls };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(answer.follow(service, out));
        let line = |(_, piece)| match piece {
            Piece::Calls(calls) => format!("{} calls of {}", calls.len(), calls[0].name),
            Piece::End(finish) => finish.name().to_owned(),
            other => format!("{other:?}"),
        };
        let told = std::iter::from_fn(|| pieces.try_recv().ok());
        told.filter(|(_, piece)| !matches!(piece, Piece::Token)).map(line).collect()
    }

    const CALL: &str = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";

    #[test]
    fn calls_are_told_apart_from_the_words_before_them() {
        let words = format!("Let me see.\n{CALL}\n{CALL}");
        let end = "tool_calls";
        assert_eq!(pieces(&words, true, &[]), ["Text(\"Let me see.\")", "2 calls of now", end]);
        assert_eq!(pieces(&words, false, &[]), ["Text(\"Let me see.\")", "1 calls of now", end]);
    }

    #[test]
    fn a_call_before_a_text_that_ends_the_answer_is_one() {
        let words = "Action: now\nAction Input: {}\nObservation: late";
        assert_eq!(pieces(words, true, &["\nObservation:"]), ["Text(\"\")", "1 calls of now", "tool_calls"]);
    }

    #[test]
    fn an_answer_without_calls_is_its_words_though_tools_were_offered() {
        assert_eq!(pieces("It is late.", true, &[]), ["Text(\"It is late.\")", "stop"]);
    }
}
