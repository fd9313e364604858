//! A server and its clients, over HTTP.

#[path = "../../infer/tests/tiny/mod.rs"]
mod tiny;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sft_infer::slots::Slots;
use sft_infer::{Context, GenerationOptions, SamplingOptions};
use sft_kernels::DType;
use sft_model::Decoder;
use sft_model::workspace::{Purpose, Workspace};
use sft_serve::{Finish, Served, Service, Stop, serve};

/// No letter twice: its speaker says it whatever is asked.
const SPOKEN: &str = "OK, sure!";
const ROWS: usize = 2;
const CONTEXT: usize = 400;

/// Where a server listens, and what ends it.
struct Server<'a> {
    address: SocketAddr,
    stop: &'a Stop,
}

/// Runs `clients` beside a server of `decoder`; what was reported.
fn with_server(
    decoder: &Decoder,
    key: Option<&str>,
    clients: impl FnOnce(&Server<'_>) + Send,
) -> Vec<Served> {
    let dev = tiny::device();
    let mut work = Workspace::new(&dev, &decoder.spec, decoder.adapters(), DType::F32, 16, Purpose::Forward);
    let slots = Slots::new(&dev, decoder, &mut work, (ROWS, CONTEXT)).keeping_conversations();
    let service = Service {
        name: "tiny".to_owned(),
        pipeline: tiny::pipeline(),
        options: GenerationOptions {
            sampling: SamplingOptions { do_sample: true, ..SamplingOptions::GREEDY },
            ..GenerationOptions::greedy(40, tiny::pipeline().stop_ids())
        },
        context: Context { name: "--context", tokens: CONTEXT, help: "ask for less" },
        vocab_size: decoder.spec.vocab_size,
        api_key: key.map(str::to_owned),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, reported) = (Stop::default(), Arc::new(Mutex::new(Vec::new())));
    let report = {
        let reported = Arc::clone(&reported);
        move |served: &Served| reported.lock().unwrap().push(*served)
    };
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            // A client that fails must not leave a server that waits for others.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                clients(&Server { address, stop: &stop });
            }));
            stop.stop();
            done
        });
        serve(listener, service, slots, &stop, report).unwrap();
        clients.join().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let reported = reported.lock().unwrap();
    reported.clone()
}

fn spoken(key: Option<&str>, clients: impl FnOnce(&Server<'_>) + Send) -> Vec<Served> {
    with_server(&tiny::speaker(&tiny::device(), SPOKEN), key, clients)
}

impl Server<'_> {
    fn agent() -> ureq::Agent {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        config.timeout_global(Some(Duration::from_secs(60))).build().into()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Status and text of an answer.
    fn post(&self, body: &str, key: &str) -> (u16, String) {
        let request = Self::agent().post(self.url("/v1/chat/completions"));
        let mut answer = request.header("Authorization", format!("Bearer {key}")).send(body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut answer = Self::agent().get(self.url(path)).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    /// The answer to a question with other fields.
    fn ask(&self, question: &str, fields: Value) -> Value {
        let (status, text) = self.post(&request(question, fields), "");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// What is wrong with a request.
    fn refusal(&self, body: &str) -> (u16, Value) {
        let (status, text) = self.post(body, "");
        (status, serde_json::from_str::<Value>(&text).unwrap()["error"].take())
    }
}

fn request(question: &str, fields: Value) -> String {
    let mut body = json!({"model": "any", "messages": [{"role": "user", "content": question}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

fn text(answer: &Value, choice: usize) -> &str {
    answer["choices"][choice]["message"]["content"].as_str().unwrap()
}

#[test]
fn an_answer_is_openais_object() {
    let reported = spoken(None, |server| {
        let answer = server.ask("Can you help?", json!({"temperature": 0}));
        assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("tiny")));
        assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-") && answer["created"].is_u64());
        let message = json!({"role": "assistant", "content": SPOKEN, "refusal": null});
        let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
        assert_eq!(answer["choices"], json!([choice]));
        // `<s>U:`, the question, a line break, `A:`; a token a byte.
        let usage = json!({"prompt_tokens": 19, "completion_tokens": 9, "total_tokens": 28,
            "prompt_tokens_details": {"cached_tokens": 0}});
        assert_eq!(answer["usage"], usage);
    });
    assert_eq!(reported.len(), 1);
    let Served { prompt_tokens, cached_tokens, tokens, finish, .. } = reported[0];
    assert_eq!((prompt_tokens, cached_tokens, tokens, finish), (19, 0, 9, Some(Finish::Stop)));
}

#[test]
fn pieces_that_stream_are_the_answer() {
    spoken(None, |server| {
        let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
        let (status, events) = server.post(&request("Can you help?", fields), "");
        assert_eq!(status, 200);
        let events: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let (last, events) = events.split_last().unwrap();
        assert_eq!(*last, "[DONE]");
        let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        assert!(
            events
                .iter()
                .all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"])
        );
        assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let pieces: Vec<&str> =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!((pieces.len(), pieces.concat().as_str()), (1 + SPOKEN.len(), SPOKEN));
        let [end, usage] = &events[events.len() - 2..] else { panic!("{events:?}") };
        assert_eq!((&end["choices"][0]["finish_reason"], &end["usage"]), (&json!("stop"), &Value::Null));
        assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(9)));
    });
}

#[test]
fn an_answer_ends_at_its_length_or_at_a_text_that_was_named() {
    spoken(None, |server| {
        for (fields, expected, finish, tokens) in [
            (json!({"max_tokens": 4}), "OK, ", "length", 4),
            (json!({"max_completion_tokens": 6, "max_tokens": 4}), "OK, su", "length", 6),
            (json!({"stop": " s"}), "OK,", "stop", 5),
            (json!({"stop": ["nothing", "e"]}), "OK, sur", "stop", 8),
        ] {
            let answer = server.ask("?", fields.clone());
            assert_eq!(
                (text(&answer, 0), &answer["choices"][0]["finish_reason"]),
                (expected, &json!(finish)),
                "{fields}"
            );
            assert_eq!(answer["usage"]["completion_tokens"], tokens, "{fields}");
        }
    });
}

#[test]
fn everything_that_is_wrong_with_a_request_is_told_at_once() {
    spoken(None, |server| {
        let fields =
            json!({"temperature": "warm", "n": 0, "logprobs": true, "tool_choice": "required", "made_up": 1});
        let (status, error) = server.refusal(&request("?", fields));
        let message = "`temperature` is \"warm\", not a number from 0 to 100; `n` is 0, not a whole number from 1 to 128; \
            `tool_choice` is neither `auto` nor `none`: the model decides whether it calls a tool; \
            `logprobs` is true: probabilities of tokens are not told; `made_up` is not known";
        let told: Vec<&str> = error["message"].as_str().unwrap().split("; ").collect();
        for line in message.split("; ") {
            assert!(told.contains(&line), "{line}: {told:?}");
        }
        assert_eq!((status, told.len(), &error["type"]), (400, 5, &json!("invalid_request_error")));
        for (body, message) in [
            ("{", "the request is not JSON"),
            ("[]", "the request is not a JSON object"),
            ("{}", "`messages` is missing"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (
                r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
                "nothing to answer",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#,
                "only text is supported",
            ),
        ] {
            let (status, error) = server.refusal(body);
            let told = error["message"].as_str().unwrap();
            assert!(status == 400 && told.contains(message), "{body}: {status} {told}");
        }
    });
}

#[test]
fn numbers_that_other_servers_take_are_taken() {
    spoken(None, |server| {
        for fields in [
            json!({"top_k": -1, "seed": -1, "top_p": 0}),
            json!({"max_tokens": -1}),
            json!({"max_tokens": 40.0, "seed": 5.0, "n": 1.0}),
        ] {
            assert_eq!(text(&server.ask("?", fields.clone()), 0), SPOKEN, "{fields}");
        }
        let (status, error) = server.refusal(&request("?", json!({"max_tokens": 0})));
        assert!(status == 400 && error["message"].as_str().unwrap().contains("`max_tokens` is 0"), "{error}");
    });
}

#[test]
fn messages_come_in_any_order_that_the_template_takes() {
    spoken(None, |server| {
        let said = |role: &str| json!({"role": role, "content": "so"});
        for roles in [
            vec!["user", "user"],
            vec!["assistant", "user"],
            vec!["system", "user", "system", "user"],
            vec!["user", "assistant", "tool", "user"],
        ] {
            let messages: Vec<Value> = roles.iter().map(|role| said(role)).collect();
            assert_eq!(text(&server.ask("", json!({"messages": messages})), 0), SPOKEN, "{roles:?}");
        }
    });
}

#[test]
fn tools_that_the_template_does_not_write_are_refused() {
    spoken(None, |server| {
        let tools = json!([{"type": "function", "function": {"name": "now", "parameters": {}}}]);
        let (status, error) = server.refusal(&request("?", json!({"tools": tools.clone()})));
        assert!(
            status == 400 && error["message"].as_str().unwrap().contains("does not write them"),
            "{error}"
        );
        assert_eq!(text(&server.ask("?", json!({"tools": tools, "tool_choice": "none"})), 0), SPOKEN);
    });
}

#[test]
fn pages_of_other_sites_are_refused_where_there_is_no_key() {
    let status = |server: &Server<'_>, name: &str, value: &str| {
        let request = Server::agent().get(server.url("/v1/models")).header(name, value);
        request.header("Authorization", "Bearer key").call().unwrap().status().as_u16()
    };
    spoken(None, |server| {
        let own = format!("http://{}", server.address);
        for (name, value, expected) in [
            ("Origin", own.as_str(), 200),
            ("Origin", "http://evil.example", 403),
            ("Origin", "null", 403),
            ("Host", "localhost:8000", 200),
            ("Host", "[::1]:8000", 200),
            ("Host", "127.0.0.2", 200),
            ("Host", "10.0.0.1", 403),
            ("Host", "evil.example", 403),
        ] {
            assert_eq!(status(server, name, value), expected, "{name}: {value}");
        }
    });
    spoken(Some("key"), |server| {
        assert_eq!(status(server, "Origin", "http://other.example"), 200);
        assert_eq!(status(server, "Host", "other.example"), 200);
    });
}

#[test]
fn a_prompt_without_room_is_refused_by_openais_code() {
    spoken(None, |server| {
        let (status, error) = server.refusal(&request(&"?".repeat(CONTEXT), json!({})));
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")));
        assert!(error["message"].as_str().unwrap().contains("`--context` is 400"), "{error}");
    });
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    spoken(Some("secret"), |server| {
        let body = request("?", json!({}));
        for wrong in ["", "secre", "secret2", "Secret"] {
            let (status, text) = server.post(&body, wrong);
            assert_eq!(status, 401, "{wrong}: {text}");
            assert!(text.contains("invalid_api_key"), "{text}");
        }
        assert_eq!(server.post(&body, "secret").0, 200);
        assert_eq!(server.get("/v1/models").0, 401);
        assert_eq!(server.get("/health").0, 200);
        assert_eq!(server.get("/").0, 200, "the page asks for it");
    });
}

#[test]
fn the_model_is_listed_and_other_addresses_are_told() {
    spoken(None, |server| {
        let models: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
        assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
        assert_eq!(server.get("/v1/models/tiny").0, 200);
        let (status, text) = server.get("/v1/models/other");
        assert!(status == 404 && text.contains("`tiny`, not `other`"), "{text}");
        let (status, text) = server.get("/v1/completions");
        assert!(status == 404 && text.contains("POST /v1/chat/completions"), "{text}");
    });
}

#[test]
fn answers_at_once_are_those_that_are_given_one_by_one() {
    let decoder = tiny::random_decoder(&tiny::device(), &tiny::spec(512));
    with_server(&decoder, None, |server| {
        let questions: Vec<String> =
            (0..12).map(|i| "why? ".repeat(1 + i * 5 % 11) + &i.to_string()).collect();
        let greedy = || json!({"temperature": 0, "max_tokens": 12});
        let ids = |question: &str| {
            let answer = server.ask(question, greedy());
            (text(&answer, 0).to_owned(), answer["usage"]["completion_tokens"].clone())
        };
        let one_by_one: Vec<_> = questions.iter().map(|question| ids(question)).collect();
        let at_once: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> = questions.iter().map(|question| scope.spawn(|| ids(question))).collect();
            asked.into_iter().map(|client| client.join().unwrap()).collect()
        });
        assert_eq!(at_once, one_by_one);
    });
}

#[test]
fn a_seed_draws_the_same_again_and_several_answers_differ() {
    let decoder = tiny::random_decoder(&tiny::device(), &tiny::spec(512));
    with_server(&decoder, None, |server| {
        let drawn = |seed| {
            server.ask("why?", json!({"seed": seed, "n": 3, "temperature": 2.0, "max_tokens": 12}))["choices"]
                .take()
        };
        let (first, again, other) = (drawn(5), drawn(5), drawn(6));
        assert_eq!(first, again);
        assert_ne!(first, other);
        let texts: Vec<&Value> = (0..3).map(|index| &first[index]["message"]["content"]).collect();
        assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    });
}

#[test]
fn a_conversation_that_goes_on_is_not_read_again() {
    spoken(None, |server| {
        server.ask("Can you help?", json!({}));
        let messages = json!([{"role": "user", "content": "Can you help?"}, {"role": "assistant", "content": SPOKEN},
            {"role": "user", "content": "How?"}]);
        let answer = server.ask("", json!({"messages": messages}));
        // The first prompt, and its answer but for the token that ended it, which came last.
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 19 + 9);
        assert_eq!(text(&answer, 0), SPOKEN);
    });
}

#[test]
fn who_goes_away_makes_room() {
    let decoder = tiny::random_decoder(&tiny::device(), &tiny::spec(512));
    let reported = with_server(&decoder, None, |server| {
        // All rows answer at length, and nobody reads them to the end.
        let gone: Vec<TcpStream> = (0..ROWS)
            .map(|_| {
                let body = request("?", json!({"stream": true, "max_tokens": 380, "temperature": 0}));
                let mut stream = TcpStream::connect(server.address).unwrap();
                let length = body.len();
                write!(
                    stream,
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
                )
                .unwrap();
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !line.starts_with("data:") {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                }
                stream
            })
            .collect();
        drop(gone);
        let answer = server.ask("why?", json!({"max_tokens": 2, "temperature": 0}));
        assert_eq!(answer["usage"]["completion_tokens"], 2);
    });
    let broken_off = reported.iter().filter(|served| served.finish.is_none()).count();
    assert_eq!((reported.len(), broken_off), (ROWS + 1, ROWS), "{reported:?}");
}

#[test]
fn a_request_that_is_not_sent_to_its_end_keeps_no_server_alive() {
    let mut kept = Vec::new();
    spoken(None, |server| {
        for text in [
            "POST /v1/chat/comp",
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        ] {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            kept.push(stream);
        }
        // One that came later is answered: these have been let in.
        server.ask("?", json!({}));
    });
    assert_eq!(kept.len(), 2, "and still open");
}

#[test]
fn the_end_waits_for_answers_in_work() {
    let decoder = tiny::random_decoder(&tiny::device(), &tiny::spec(512));
    let reported = with_server(&decoder, None, |server| {
        std::thread::scope(|scope| {
            let fields = json!({"max_tokens": 200, "temperature": 0, "stream": true});
            let asked = scope.spawn(move || server.post(&request("?", fields), ""));
            std::thread::sleep(Duration::from_millis(100));
            server.stop.stop();
            let (status, events) = asked.join().unwrap();
            assert!(status == 200 && events.trim_end().ends_with("[DONE]"), "{events}");
        });
    });
    assert_eq!(reported.len(), 1);
    assert!(reported[0].finish.is_some());
}
