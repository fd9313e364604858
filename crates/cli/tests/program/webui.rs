//! `sft webui` as a process: runs that it starts and watches, and a model that is talked to through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::place::{Place, QUICKSTART, text};

/// The page's server, and what it is to leave nothing behind of.
struct Webui {
    child: Child,
    address: String,
    key: String,
    jobs: PathBuf,
}

impl Webui {
    /// Waits until it listens.
    fn start(place: &Place) -> Self {
        let mut command = place.sft(&["webui", "--port", "0", "--jobs", "jobs"]);
        for name in ["GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "SFT_WEBUI_KEY"] {
            command.env_remove(name);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| line.starts_with("page ")).expect("it has ended");
        let address = line.split("http://").nth(1).unwrap();
        let (address, key) = address.split_once("/#key=").unwrap();
        Self { child, address: address.to_owned(), key: key.to_owned(), jobs: place.path("jobs") }
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

    /// The list.
    fn runs(&self) -> Vec<Value> {
        self.get("api/runs")["runs"].as_array().unwrap().clone()
    }

    /// Waits for a run to be listed.
    fn until_listed(&self) {
        let begun = Instant::now();
        while self.runs().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(50));
        }
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

    /// Waits for a run to come to this, and for its process to be gone.
    fn ended(&self, name: &str, status: &str) -> Value {
        self.until(name, |run| run["status"] == status && run["alive"] == false)
    }

    /// Ends it by SIGTERM.
    fn end(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success() && self.child.wait().unwrap().success());
    }
}

impl Drop for Webui {
    fn drop(&mut self) {
        // Of a test that failed neither the server nor what it began goes on.
        if !std::thread::panicking() {
            return;
        }
        let _ = self.child.kill();
        for job in std::fs::read_dir(&self.jobs).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(job.path().join("job.json")).unwrap_or_default();
            let job: Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(process) = job["process"].as_u64().filter(|_| job["ended"].is_null()) {
                let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
            }
        }
    }
}

/// Many steps: it is still at work when it is looked at.
const LONG: &str = "output_dir: long\nmax_steps: 20000\nsave_steps: 100000\n";

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
    let stopped = webui.ended("1", "interrupted");
    assert!(stopped["output"]["text"].as_str().unwrap().contains("interrupted after step"), "{stopped:#}");
    assert_eq!(stopped["can_resume"], true);

    let again = webui.post("api/runs/1/resume", &json!({}));
    let again = again["name"].as_str().unwrap();
    let steps = stopped["record"]["end"]["steps"].as_u64();
    webui.until(again, |run| run["status"] == "running" && run["steps"].as_u64() > steps);
    assert_eq!(webui.runs().len(), 1, "it is the same run");
    webui.post("api/runs/1/stop", &json!({}));
    webui.ended("1", "interrupted");
    webui.end();
}

#[test]
fn a_run_that_a_terminal_started_is_watched_and_stopped() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let mut run = place.start("elsewhere", &["max_steps=20000"]);
    webui.until_listed();
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
    let place = Place::new("output_dir: out\n");
    let webui = Webui::start(&place);
    let text = std::fs::read_to_string(place.path("config.yaml")).unwrap();
    let body = json!({"command": "train", "text": text, "what": "plan", "path": "new.yaml"});
    for (method, path) in [
        ("GET", "api/runs"),
        ("POST", "api/runs"),
        ("GET", "api/runs/1"),
        ("DELETE", "api/runs/1"),
        ("POST", "api/runs/1/stop"),
        ("POST", "api/runs/1/resume"),
        ("GET", "api/runs/1/recipe"),
        ("GET", "api/runs/1/answers"),
        ("GET", "api/compare?runs=1"),
        ("GET", "api/form"),
        ("GET", "api/suggestions"),
        ("GET", "api/file?path=config.yaml"),
        ("PUT", "api/file"),
        ("POST", "api/recipe"),
        ("POST", "api/look"),
        ("GET", "api/chat"),
    ] {
        for key in ["another", ""] {
            assert_eq!(webui.request(method, path, key, Some(&body)).0, 401, "{method} {path}");
        }
        assert_ne!(webui.request(method, path, &webui.key, None).0, 401, "{method} {path}");
    }
    assert!(webui.runs().is_empty() && !place.path("new.yaml").exists(), "nothing was begun or written");
    // The page itself says nothing.
    assert_eq!(webui.request("GET", "", "", None).0, 200);
    assert_eq!(webui.request("GET", "api/nothing", &webui.key, None).0, 404);
    webui.end();
}

#[test]
fn what_is_not_understood_is_refused_in_words() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    for (method, path, body, status, expected) in [
        ("POST", "api/runs", json!({"command": "fly", "text": ""}), 400, "unknown variant `fly`"),
        ("POST", "api/look", json!([]), 400, "not understood"),
        ("GET", "api/file", json!({}), 400, "path"),
        ("GET", "api/file?path=none.yaml", json!({}), 404, "there is no file none.yaml"),
        ("GET", "api/runs/7", json!({}), 404, "there is no run"),
        ("POST", "api/runs/7/stop", json!({}), 404, "there is no run"),
        (
            "POST",
            "api/runs",
            json!({"command": "chat", "text": "model_name_or_path: /no/such\n"}),
            400,
            "no such folder",
        ),
    ] {
        let (found, said) = webui.request(method, path, &webui.key, Some(&body));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(
            found == status && said["error"].as_str().unwrap().contains(expected),
            "{path}: {found} {said}"
        );
    }
    webui.end();
}

#[test]
fn a_job_that_finds_its_folder_in_use_takes_nothing_from_the_run_there() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let first = webui.train(&place, LONG);
    webui.until(&first, |run| run["status"] == "running");
    let second = webui.train(&place, LONG);
    let refused = webui.until(&second, |run| run["status"] == "failed");
    assert!(
        refused["number"].is_null() && refused["output"]["text"].as_str().unwrap().contains("in use"),
        "{refused:#}"
    );
    let run = webui.get(&format!("api/runs/{first}"));
    assert_eq!((&run["number"], &run["job"], &run["status"]), (&json!(1), &json!(first), &json!("running")));
    webui.post(&format!("api/runs/{first}/stop"), &json!({"now": true}));
    webui.ended(&first, "stopped");
    assert_eq!(webui.get("api/runs/1")["can_resume"], false, "there is no checkpoint to go on from");
    assert_eq!(webui.request("POST", "api/runs/1/resume", &webui.key, None).0, 409);
    webui.end();
}

#[test]
fn a_run_of_another_folder_goes_on_there() {
    let place = Place::new("");
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    let base = std::path::Path::new(QUICKSTART).join("base").canonicalize().unwrap();
    std::os::unix::fs::symlink(base, place.path("elsewhere/base")).unwrap();
    let keys = ["model_name_or_path=base", "max_steps=20000", "output_dir=out"];
    let mut run = place.sft(&[&["train", "../config.yaml"], &keys[..]].concat());
    run.current_dir(place.path("elsewhere")).env("SFT_LEDGER", place.path("runs.sqlite"));
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let webui = Webui::start(&place);
    webui.until_listed();
    webui.until("1", |run| run["steps"].as_u64() > Some(1));
    webui.post("api/runs/1/stop", &json!({}));
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let steps = webui.get("api/runs/1")["steps"].as_u64();
    webui.post("api/runs/1/resume", &json!({}));
    webui.until("1", |run| run["status"] == "running" && run["steps"].as_u64() > steps);
    let again = webui.get("api/runs/1/recipe?command=chat")["text"].as_str().unwrap().to_owned();
    assert!(again.contains(&*place.path("elsewhere/out").to_string_lossy()), "{again}");
    webui.post("api/runs/1/stop", &json!({}));
    webui.ended("1", "interrupted");
    webui.end();
}

#[test]
fn curves_and_words_come_as_they_grow() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let name = webui.train(&place, "output_dir: out\nmax_steps: 6\n");
    let whole = webui.ended(&name, "done");
    assert_eq!(whole["curves"]["loss"].as_array().unwrap().len(), 6);
    assert_eq!(whole["anew"], true);
    let seen = |log: &Value, from: &Value| {
        let session = whole["session"].as_str().unwrap();
        webui.get(&format!("api/runs/{name}?session={session}&log={log}&from={from}"))
    };
    let nothing = seen(&whole["log"], &whole["output"]["next"]);
    assert_eq!(
        (&nothing["curves"], &nothing["output"]["text"], &nothing["anew"]),
        (&json!({}), &json!(""), &json!(false))
    );
    let all = seen(&json!(0), &json!(0));
    assert_eq!((&all["curves"], &all["output"]), (&whole["curves"], &whole["output"]));
    let compared = webui.get("api/compare?runs=1,1");
    assert_eq!(compared["runs"][0]["curves"], whole["curves"]);
    assert!(compared["differ"].as_str().unwrap().contains("data: the same"), "{compared:#}");
    webui.end();
}

#[test]
fn a_damaged_ledger_takes_no_job_away() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let name = webui.train(&place, LONG);
    webui.until(&name, |run| run["status"] == "running" && run["steps"].as_u64() > Some(1));
    std::fs::write(place.path("runs.sqlite"), "no ledger").unwrap();
    let told = webui.get("api/runs");
    assert!(told["wrong"].as_str().unwrap().contains("runs.sqlite"), "{told:#}");
    assert_eq!(told["runs"][0]["job"], name);
    webui.post(&format!("api/runs/{name}/stop"), &json!({}));
    webui.ended(&name, "interrupted");
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
    assert!(failed["output"]["text"].as_str().unwrap().contains("error: "), "{failed:#}");
    assert_eq!(webui.request("DELETE", &format!("api/runs/{name}"), &webui.key, None).0, 200);
    assert!(webui.runs().is_empty());
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
    let row = &rows["rows"][0];
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
    assert_eq!(webui.get("api/chat")["state"], "none");
    webui.end();
}

#[test]
fn what_keeps_the_page_from_being_opened_is_told() {
    let place = Place::new("");
    let webui = Webui::start(&place);
    let port = webui.address.rsplit(':').next().unwrap();
    for (words, expected) in [
        (vec!["--port", port, "--jobs", "others"], "cannot be listened on"),
        (vec!["--port", "0", "--jobs", "jobs"], "a page uses this folder already"),
        (vec!["--port", "0", "--key", "ä", "--jobs", "others"], "letters, digits and marks"),
        (vec!["--port", "0", "--key", "short", "--jobs", "others"], "8 or more letters"),
        (vec!["--port", "0", "--key", "50%50%50%", "--jobs", "others"], "8 or more letters"),
        (vec!["--port", "0", "--jobs", "config.yaml/jobs"], "help: `--jobs`"),
    ] {
        let output = place.sft(&[&["webui"], words.as_slice()].concat()).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(expected), "{words:?}: {}", text(&output));
    }
    webui.end();
}
