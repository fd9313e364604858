//! `sft webui` as a process: runs that it starts and watches, and a model that is talked to through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::place::{Place, text};

/// The page's server.
struct Webui {
    child: Child,
    address: String,
    key: String,
}

impl Webui {
    /// Waits until it listens.
    fn start(place: &Place) -> Self {
        let mut command = place.sft(&["webui", "--port", "0", "--jobs", "jobs"]);
        command.env_remove("GRADIO_SERVER_NAME").env_remove("GRADIO_SERVER_PORT");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| line.starts_with("page ")).expect("it has ended");
        let address = line.split("http://").nth(1).unwrap();
        let (address, key) = address.split_once("/#key=").unwrap();
        Self { child, address: address.to_owned(), key: key.to_owned() }
    }

    /// Status and text of an answer.
    fn request(&self, method: &str, path: &str, key: &str, body: Option<&Value>) -> (u16, String) {
        let body = body.map_or_else(String::new, Value::to_string);
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "{method} /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, &self.key, None);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.request("POST", path, &self.key, Some(body));
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Starts training with the place's configuration and these lines more.
    fn train(&self, place: &Place, keys: &str) -> String {
        let text = std::fs::read_to_string(place.path("config.yaml")).unwrap() + keys;
        let started = self.post("api/runs", &json!({"command": "train", "text": text}));
        started["name"].as_str().unwrap().to_owned()
    }

    /// Waits for a run to be so.
    fn until(&self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let run = self.get(&format!("api/runs/{name}"));
            if holds(&run) {
                return run;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{run:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it by SIGTERM.
    fn end(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success() && self.child.wait().unwrap().success());
    }
}

impl Drop for Webui {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        let _ = self.child.kill();
    }
}

/// Many steps: it is still at work when it is looked at.
const LONG: &str = "output_dir: long\nmax_steps: 20000\n";

#[test]
fn a_run_goes_on_without_the_page_is_found_again_and_stopped_and_goes_on_from_there() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let key = webui.key.clone();
    let name = webui.train(&place, LONG);
    let at_work = webui.until(&name, |run| run["status"] == "running" && run["steps"].as_u64() > Some(1));
    assert_eq!((&at_work["number"], &at_work["total_steps"]), (&json!(1), &json!(20_000)));
    webui.end();

    let webui = Webui::start(&place);
    assert_eq!(webui.key, key, "the page's address stays the same");
    let found = webui.until("1", |run| run["steps"].as_u64() > at_work["steps"].as_u64());
    assert_eq!((&found["status"], &found["job"]), (&json!("running"), &json!(name)));
    webui.post("api/runs/1/stop", &json!({}));
    let stopped = webui.until("1", |run| run["status"] == "interrupted");
    assert!(stopped["output"].as_str().unwrap().contains("interrupted after step"), "{stopped:#}");
    assert_eq!(stopped["can_resume"], true);

    let again = webui.post("api/runs/1/resume", &json!({}));
    let again = again["name"].as_str().unwrap();
    let steps = stopped["record"]["end"]["steps"].as_u64();
    webui.until(again, |run| run["status"] == "running" && run["steps"].as_u64() > steps);
    assert_eq!(webui.get("api/runs").as_array().unwrap().len(), 1, "it is the same run");
    webui.post("api/runs/1/stop", &json!({}));
    webui.until("1", |run| run["status"] == "interrupted");
    webui.end();
}

#[test]
fn a_run_that_a_terminal_started_is_watched_and_stopped() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let mut run = place.start("elsewhere", &["max_steps=20000"]);
    let begun = Instant::now();
    while webui.get("api/runs").as_array().unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    let seen = webui.until("1", |run| run["steps"].as_u64() > Some(1));
    assert!(
        seen["curves"]["loss"].as_array().is_some_and(|points| points.len() > 1) && seen["job"].is_null()
    );
    webui.post("api/runs/1/stop", &json!({}));
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert_eq!(webui.get("api/runs/1")["status"], "interrupted");
    webui.end();
}

#[test]
fn nothing_is_told_or_started_without_the_key() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let body = json!({"command": "train", "text": "seed: 1"});
    for (method, path, body) in [
        ("GET", "api/runs", None),
        ("GET", "api/form", None),
        ("GET", "api/file?path=config.yaml", None),
        ("POST", "api/runs", Some(&body)),
        ("POST", "api/look", Some(&body)),
    ] {
        assert_eq!(webui.request(method, path, "another", body).0, 401, "{path}");
    }
    // The page itself says nothing.
    assert_eq!(webui.request("GET", "", "", None).0, 200);
    assert_eq!(webui.request("GET", "api/nothing", &webui.key, None).0, 404);
    webui.end();
}

#[test]
fn a_recipe_is_refused_with_all_that_is_wrong_and_one_that_fails_later_says_why() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let asked = json!({"command": "train", "text": "lora_rank: 0\nno_key: 1\n"});
    let (status, said) = webui.request("POST", "api/runs", &webui.key, Some(&asked));
    assert_eq!(status, 400);
    assert!(
        ["recipe.yaml:1", "recipe.yaml:2", "`output_dir` is missing"].iter().all(|part| said.contains(part)),
        "{said}"
    );
    let drafted = webui
        .post("api/recipe", &json!({"command": "train", "text": asked["text"], "set": ["lora_rank", "4"]}));
    assert_eq!(drafted["text"], "lora_rank: 4\nno_key: 1\n");
    assert_eq!(drafted["problems"][0]["line"], 2);

    let name = webui.train(&place, "output_dir: fails\neval_dataset: none\n");
    let failed = webui.until(&name, |run| run["status"] == "failed");
    assert!(failed["output"].as_str().unwrap().contains("error: "), "{failed:#}");
    assert_eq!(webui.request("DELETE", &format!("api/runs/{name}"), &webui.key, None).0, 200);
    assert_eq!(webui.get("api/runs"), json!([]));
    webui.end();
}

#[test]
fn a_recipe_is_looked_at_before_it_is_run_and_kept_in_a_file() {
    let place = Place::new("output_dir: out\n");
    let webui = Webui::start(&place);
    let text = webui.get("api/file?path=config.yaml")["text"].clone();
    let look = |what: &str| webui.post("api/look", &json!({"what": what, "text": text, "from": 1}));
    let plan = look("plan");
    let said = plan["said"].as_str().unwrap();
    assert!(plan["done"] == true && said.starts_with("device: ") && said.contains("memory for"), "{said}");
    let rows = look("rows");
    let row: Value = serde_json::from_str(rows["said"].as_str().unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(row["row"], 1);
    let trained = row["spans"].as_array().unwrap().iter().find(|span| span["trained"] == true).unwrap();
    assert_eq!(trained["reason"], "answer");
    let missing = webui.post("api/look", &json!({"what": "plan", "text": "no_key: 1"}));
    assert!(
        missing["done"] == false
            && missing["errors"].as_str().unwrap().contains("recipe.yaml:1: unknown key")
    );

    let save = |path: &str, replace: bool| {
        let body = json!({"path": path, "text": text, "replace": replace});
        webui.request("PUT", "api/file", &webui.key, Some(&body)).0
    };
    assert_eq!([save("a/b.yaml", false), save("a/b.yaml", false), save("a/b.yaml", true)], [200, 409, 200]);
    assert_eq!(save("../b.yaml", false), 400);
    assert_eq!(json!(std::fs::read_to_string(place.path("a/b.yaml")).unwrap()), text);
    assert_eq!(webui.get("api/suggestions")["recipes"], json!(["a/b.yaml", "config.yaml"]));
    webui.end();
}

#[test]
fn what_was_trained_is_talked_to_until_the_server_ends() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let name = webui.train(&place, "output_dir: out\nmax_steps: 2\ndo_sample: false\nmax_new_tokens: 4\n");
    webui.until(&name, |run| run["status"] == "done");
    let recipe = webui.get(&format!("api/runs/{name}/recipe?command=chat"))["text"].clone();
    webui.post("api/runs", &json!({"command": "chat", "text": recipe}));
    let begun = Instant::now();
    let path = loop {
        let chat = webui.get("api/chat");
        if chat["state"] == "ready" {
            break chat["path"].as_str().unwrap().to_owned();
        }
        assert!(chat["state"] == "loading" && begun.elapsed() < Duration::from_secs(60), "{chat:#}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let question = json!({"messages": [{"role": "user", "content": "hat"}]});
    let (status, said) = webui.request("POST", &format!("{path}v1/chat/completions"), "", Some(&question));
    assert!(status == 200 && said.contains(r#""completion_tokens":4"#), "{said}");
    let (status, page) = webui.request("GET", &path, "", None);
    assert!(status == 200 && page.contains("<!doctype html>"), "{page}");
    assert_eq!(webui.request("GET", "chat/another/v1/models", "", None).0, 404);
    webui.end();
    let webui = Webui::start(&place);
    assert_eq!(webui.get("api/chat")["state"], "ended");
    webui.end();
}

#[test]
fn what_keeps_the_page_from_being_opened_is_told() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let port = webui.address.rsplit(':').next().unwrap();
    for (words, expected) in [
        (vec!["--port", port, "--jobs", "others"], "cannot be listened on"),
        (vec!["--port", "0", "--jobs", "jobs"], "in use"),
        (vec!["--port", "0", "--key", "ä", "--jobs", "others"], "letters, digits and marks"),
        (vec!["--port", "0", "--jobs", "config.yaml/jobs"], "help: `--jobs`"),
    ] {
        let output = place.sft(&[&["webui"], words.as_slice()].concat()).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(expected), "{words:?}: {}", text(&output));
    }
    webui.end();
}
