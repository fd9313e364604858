//! A server on this machine that answers as a test says, and remembers what it was asked. Tests of other crates use it too.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request: method, address, headers in lower case.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

/// An answer: status, headers, the body, and after how many bytes of it the connection breaks.
pub struct Answer(pub u16, pub Vec<(String, String)>, pub Vec<u8>, pub Option<usize>);

pub type Log = Arc<Mutex<Vec<Request>>>;

/// Serves on a free port until the test ends; gives its address and what it was asked.
pub fn serve(answer: impl Fn(&Request, usize) -> Answer + Send + 'static) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log: Log = Log::default();
    let seen = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Some(request) = read(&stream) else { continue };
            let before = {
                let mut seen = seen.lock().unwrap();
                seen.push(request.clone());
                seen.iter()
                    .filter(|other| other.path == request.path && other.method == request.method)
                    .count()
                    - 1
            };
            write(&stream, &request, answer(&request, before));
        }
    });
    (address, log)
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
    let header = |line: String| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned()));
    Some(Request { method, path, headers: headers.filter_map(header).collect() })
}

fn write(mut stream: &TcpStream, request: &Request, Answer(status, headers, body, breaks): Answer) {
    let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let _ = stream.write_all((head + "\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(&body[..breaks.unwrap_or(body.len())]);
    }
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
