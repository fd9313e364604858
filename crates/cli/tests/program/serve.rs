//! `sft serve` as a process: what it says before it loads anything, an answer over HTTP, and its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

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

#[test]
fn a_served_model_answers_and_ends_at_sigterm_with_success() {
    let place = Place::new("");
    let mut command =
        serve(&place, &["--name", "tiny", "--rows", "2", "do_sample=false", "max_new_tokens=4"]);
    let mut child = command.env("API_PORT", "0").stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("serving   tiny at http://") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it has ended");
    }
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let body = r#"{"messages": [{"role": "user", "content": "hat"}]}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""model":"tiny""#), "{answer}");
    assert!(
        answer.contains(r#""completion_tokens":4"#) && answer.contains(r#""finish_reason":"length""#),
        "{answer}"
    );
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("tokens (0 kept) + 4 in "), "{rest}");
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
