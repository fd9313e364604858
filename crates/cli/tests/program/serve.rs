//! `sft serve` as a process: what it says before it loads anything, an answer over HTTP, and its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::place::{Place, QUICKSTART, text};

/// `sft serve` on the quick start's base with these words more.
fn serve(place: &Place, words: &[&str]) -> Command {
    let model = format!("model_name_or_path={QUICKSTART}/base");
    let mut command = place.sft(&[&["serve", model.as_str(), "device=cpu", "threads=1"], words].concat());
    for name in ["API_HOST", "API_PORT", "API_KEY", "API_MODEL_NAME"] {
        command.env_remove(name);
    }
    command
}

/// A server that listens.
struct Server {
    child: Child,
    said: BufReader<ChildStderr>,
    address: String,
}

impl Server {
    /// Waits until it listens.
    fn start(mut command: Command) -> Self {
        let mut child = command.env("API_PORT", "0").stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("serving   tiny at http://") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it has ended");
        }
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        Self { child, said, address }
    }

    /// The answer to a question, head and body.
    fn ask(&self, question: &str) -> String {
        let body = format!(r#"{{"messages": [{{"role": "user", "content": "{question}"}}]}}"#);
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Ends it by SIGTERM: its status, and what else it said.
    fn end(mut self) -> (Option<i32>, String) {
        assert!(
            Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success()
        );
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

const TINY: [&str; 4] = ["--name", "tiny", "do_sample=false", "max_new_tokens=4"];

#[test]
fn a_served_model_answers_and_ends_at_sigterm_with_success() {
    let place = Place::new("");
    let server = Server::start(serve(&place, &TINY));
    let answer = server.ask("hat");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""model":"tiny""#), "{answer}");
    assert!(
        answer.contains(r#""completion_tokens":4"#) && answer.contains(r#""finish_reason":"length""#),
        "{answer}"
    );
    let (status, rest) = server.end();
    assert_eq!(status, Some(0));
    assert!(rest.contains("tokens (0 kept) + 4 in "), "{rest}");
}

#[test]
fn tokens_that_an_adapter_brought_can_be_asked_with() {
    let place =
        Place::new("add_tokens: <|new|>\nresize_vocab: true\nadditional_target: embed_tokens,lm_head\n");
    let keys = ["finetuning_type=lora", "train_from_scratch=false", "max_steps=1"];
    let trained = place.train("adapter", &keys).output().unwrap();
    assert!(trained.status.success(), "{}", text(&trained));
    let server = Server::start(serve(&place, &[&TINY[..], &["adapter_name_or_path=adapter"]].concat()));
    let answer = server.ask("hat <|new|>");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn what_cannot_be_served_is_told_before_anything_is_loaded() {
    let place = Place::new("");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (words, expected) in [
        (vec!["--port", port.as_str()], "cannot be listened on"),
        (vec!["--host", "no.such.host.invalid"], "is no address of this machine"),
        (vec!["--context", "513"], "rows of this model have 512 at most"),
        (vec!["--rows", "0"], "0 is not in 1..=256"),
    ] {
        let output = serve(&place, &words).output().unwrap();
        assert!(!output.status.success());
        let said = text(&output);
        assert!(said.contains(expected) && !said.contains("serving"), "{words:?}: {said}");
    }
}
