//! Data sets of hubs, against servers on this machine that speak the hubs' protocols: lists, redirects to another
//! machine, connections that break, tokens.

#[path = "../../hub/tests/server/mod.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sft_data::dataset::{self, DatasetOptions, LoadedData, Mix, ProblemLimit, Stage};
use sft_data::error::DataError;
use sft_data::hub::{HubKeys, HubOptions};

use server::{Answer, Log, Request, serve, sha256};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_very_secret";

fn rows(rows: std::ops::Range<usize>) -> Vec<u8> {
    let row = |row| format!("{{\"instruction\": \"q{row}\", \"output\": \"a{row}\"}}\n");
    rows.map(row).collect::<String>().into_bytes()
}

/// The hub with one closed data set, whose large file lies on another machine, which breaks off once.
fn hugging_face(large: Vec<u8>) -> (String, Log, Log) {
    let bytes = large.clone();
    let (cdn, cdn_log) = serve(move |request, before| {
        let from = request
            .headers
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match from {
            None if before == 0 => Answer(200, Vec::new(), bytes.clone(), Some(bytes.len() / 2)),
            None => Answer(200, Vec::new(), bytes.clone(), None),
            Some(from) => {
                let from: usize = from;
                Answer(206, Vec::new(), bytes[from..].to_vec(), None)
            }
        }
    });
    let etag = sha256(&large);
    let size = large.len().to_string();
    let (hub, log) = serve(move |request, _| {
        if request.headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Answer(401, Vec::new(), b"closed".to_vec(), None);
        }
        let resolve = format!("/datasets/own/talks/resolve/{SHA}/");
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train*}\n  - {split: test, path: test.jsonl}\n---\n";
        match request.path.strip_prefix(&resolve) {
            _ if request.path == "/api/datasets/own/talks/revision/main?blobs=true" => {
                let files = ["README.md", "data/train one.jsonl", "test.jsonl", "../evil.jsonl"];
                let files: Vec<_> = files.iter().map(|name| json!({"rfilename": name})).collect();
                Answer(200, Vec::new(), json!({"sha": SHA, "siblings": files}).to_string().into_bytes(), None)
            }
            Some("README.md") => Answer(200, vec![header("etag", "\"card\"")], card.to_vec(), None),
            Some("test.jsonl") => Answer(200, vec![header("etag", "W/\"small\"")], rows(20..22), None),
            Some("data/train%20one.jsonl") => {
                let headers = [
                    ("location", format!("{cdn}/blob?signed=1")),
                    ("x-linked-etag", format!("\"{etag}\"")),
                    ("x-linked-size", size.clone()),
                ];
                Answer(
                    302,
                    headers.iter().map(|(name, value)| header(name, value)).collect(),
                    Vec::new(),
                    None,
                )
            }
            _ => Answer(404, Vec::new(), Vec::new(), None),
        }
    });
    (hub, log, cdn_log)
}

fn hub(folder: &Path, endpoint: &str, token: Option<&str>, offline: bool) -> HubOptions {
    let keys = HubKeys {
        hf_hub_token: token.map(str::to_owned),
        ms_hub_token: token.map(str::to_owned),
        cache_dir: None,
    };
    let home = folder.display().to_string();
    let options = HubOptions::new(&keys, |name| match name {
        "HF_HOME" => Some(format!("{home}/hf")),
        "MODELSCOPE_CACHE" => Some(format!("{home}/ms")),
        "HF_ENDPOINT" | "MODELSCOPE_DOMAIN" => Some(endpoint.to_owned()),
        "HF_HUB_OFFLINE" => offline.then(|| "1".to_owned()),
        _ => None,
    });
    HubOptions { pause: Duration::from_millis(1), ..options }
}

fn load(folder: &Path, entry: &serde_json::Value, hub: HubOptions) -> Result<LoadedData, DataError> {
    fs::write(folder.join("dataset_info.json"), json!({"talks": entry}).to_string()).unwrap();
    dataset::load(&DatasetOptions {
        dataset: vec!["talks".to_owned()],
        eval_dataset: Vec::new(),
        dataset_dir: folder.to_owned(),
        hub,
        stage: Stage::Sft,
        max_samples: None,
        val_size: None,
        mix: Mix::default(),
        eval_on_each_dataset: false,
        streaming: None,
        seed: 42,
        problem_limit: ProblemLimit::Rows(0),
    })
}

#[test]
fn a_data_set_is_fetched_once_and_found_offline() {
    let folder = tempfile::tempdir().unwrap();
    let large = rows(0..2000);
    let (endpoint, log, cdn_log) = hugging_face(large.clone());
    let entry = json!({"hf_hub_url": "own/talks", "split": "train+test[:1]"});
    let loaded = load(folder.path(), &entry, hub(folder.path(), &endpoint, Some(TOKEN), false)).unwrap();
    assert_eq!(loaded.train.len(), 2001);
    assert_eq!(loaded.train[2000].messages[0].content, "q20");

    // The folder is that of huggingface_hub.
    let home = folder.path().join("hf/hub/datasets--own--talks");
    assert_eq!(fs::read_to_string(home.join("refs/main")).unwrap(), SHA);
    assert_eq!(fs::read(home.join("blobs").join(sha256(&large))).unwrap(), large);
    let named = home.join("snapshots").join(SHA).join("data/train one.jsonl");
    assert_eq!(fs::read(&named).unwrap(), large);
    #[cfg(unix)]
    assert_eq!(fs::read_link(&named).unwrap(), PathBuf::from(format!("../../../blobs/{}", sha256(&large))));
    assert!(!folder.path().join("hf/hub/evil.jsonl").exists() && !home.join("snapshots/evil.jsonl").exists());
    let left: Vec<PathBuf> = fs::read_dir(home.join("blobs")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension().is_none()), "nothing incomplete is left: {left:?}");

    // What broke off was gone on with, and the other machine never saw the token.
    let cdn: Vec<Request> = cdn_log.lock().unwrap().clone();
    assert_eq!(cdn.len(), 2, "{cdn:?}");
    assert!(cdn[1].headers["range"].starts_with("bytes=") && cdn[1].headers["range"] != "bytes=0-");
    assert!(cdn.iter().all(|request| !request.headers.contains_key("authorization")));

    // A second start asks for the revision alone; offline for nothing.
    let asked = log.lock().unwrap().len();
    load(folder.path(), &entry, hub(folder.path(), &endpoint, Some(TOKEN), false)).unwrap();
    let again: Vec<String> =
        log.lock().unwrap()[asked..].iter().map(|request| request.path.clone()).collect();
    assert!(again.iter().all(|path| path.contains("/revision/")), "{again:?}");
    let asked = log.lock().unwrap().len();
    let offline = load(folder.path(), &entry, hub(folder.path(), &endpoint, None, true)).unwrap();
    assert_eq!((offline.train.len(), log.lock().unwrap().len()), (2001, asked));
}

#[test]
fn no_message_tells_a_token_and_each_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, ..) = hugging_face(rows(0..3));
    let error = |repo: &str, split: &str, token: &str, offline: bool| {
        let hub = hub(folder.path(), &endpoint, Some(token), offline);
        assert!(!format!("{hub:?}").contains(token), "a token is shown: {hub:?}");
        let entry = json!({"hf_hub_url": repo, "split": split});
        let message = load(folder.path(), &entry, hub).unwrap_err().to_string();
        assert!(!message.contains(token) && message.contains("\nhelp: "), "{message}");
        message
    };
    assert!(error("own/talks", "train", "hf_wrong", false).contains("is closed to this token"));
    assert!(error("own/gone", "train", TOKEN, false).contains("is not there (status 404)"));
    assert!(error("own/talks", "dev", TOKEN, false).contains("has no files of the split `dev`"));
    assert!(error("own/../talks", "train", TOKEN, false).contains("is no name of a data set"));
    // A part of the files is never taken for all of them.
    assert!(error("own/talks", "train", TOKEN, true).contains("which was not fetched before"));
    assert!(error("own/other", "train", TOKEN, true).contains("nothing is fetched offline"));
}

#[test]
fn a_file_that_is_not_the_one_named_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (cdn, _) = serve(|_, _| Answer(200, Vec::new(), rows(0..3), None));
    let (endpoint, _) = serve(move |request, _| match request.path.contains("/api/") {
        true => Answer(
            200,
            Vec::new(),
            json!({"sha": SHA, "siblings": [{"rfilename": "train.jsonl"}]}).to_string().into_bytes(),
            None,
        ),
        false => {
            let header = |name: &str, value: String| (name.to_owned(), value);
            let etag = "0".repeat(64);
            let headers = vec![
                header("location", format!("{cdn}/x")),
                header("x-linked-etag", etag),
                header("x-linked-size", rows(0..3).len().to_string()),
            ];
            Answer(302, headers, Vec::new(), None)
        }
    });
    let entry = json!({"hf_hub_url": "own/talks"});
    let message =
        load(folder.path(), &entry, hub(folder.path(), &endpoint, None, false)).unwrap_err().to_string();
    assert!(message.contains("gave another file than it names"), "{message}");
    let blobs = fs::read_dir(folder.path().join("hf/hub/datasets--own--talks/blobs")).unwrap();
    assert_eq!(blobs.count(), 0);
}

#[test]
fn a_hub_that_fails_is_asked_again_and_then_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, log) = serve(|_, _| Answer(503, Vec::new(), Vec::new(), None));
    let entry = json!({"hf_hub_url": "own/talks"});
    let message =
        load(folder.path(), &entry, hub(folder.path(), &endpoint, None, false)).unwrap_err().to_string();
    assert!(message.contains("could not be fetched in 5 attempts: status 503"), "{message}");
    assert_eq!(log.lock().unwrap().len(), 5);
}

#[test]
fn modelscope_is_read_by_its_own_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, log) = serve(|request, _| {
        if request.headers.get("cookie") != Some(&format!("m_session_id={TOKEN}")) {
            return Answer(403, Vec::new(), Vec::new(), None);
        }
        let bytes = rows(0..5);
        if request.path.starts_with("/api/v1/datasets/own/talks/repo/tree?Revision=master&Recursive=true") {
            let files = json!([{"Path": "data", "Type": "tree"},
                {"Path": "data/train.jsonl", "Type": "blob", "Size": bytes.len(), "Sha256": sha256(&bytes)}]);
            return Answer(
                200,
                Vec::new(),
                json!({"Code": 200, "Data": {"Files": files}}).to_string().into_bytes(),
                None,
            );
        }
        match request.path.as_str() {
            "/api/v1/datasets/own/talks/repo?Revision=master&FilePath=data/train.jsonl" => {
                Answer(200, Vec::new(), bytes, None)
            }
            _ => Answer(404, Vec::new(), Vec::new(), None),
        }
    });
    let entry = json!({"ms_hub_url": "own/talks", "split": "train[1:]"});
    let loaded = load(folder.path(), &entry, hub(folder.path(), &endpoint, Some(TOKEN), false)).unwrap();
    assert_eq!(loaded.train.len(), 4);
    assert!(folder.path().join("ms/datasets/own/talks/data/train.jsonl").is_file());
    let asked = log.lock().unwrap().len();
    assert_eq!(
        load(folder.path(), &entry, hub(folder.path(), &endpoint, None, true)).unwrap().train.len(),
        4
    );
    assert_eq!(log.lock().unwrap().len(), asked);
}

#[test]
fn names_of_a_hub_need_no_dataset_info() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, ..) = hugging_face(rows(0..7));
    let options = DatasetOptions {
        dataset: vec!["own/talks".to_owned()],
        eval_dataset: Vec::new(),
        dataset_dir: PathBuf::from("ONLINE"),
        hub: hub(folder.path(), &endpoint, Some(TOKEN), false),
        stage: Stage::Sft,
        max_samples: None,
        val_size: None,
        mix: Mix::default(),
        eval_on_each_dataset: false,
        streaming: None,
        seed: 42,
        problem_limit: ProblemLimit::Rows(0),
    };
    assert_eq!(dataset::load(&options).unwrap().train.len(), 7);
}

#[test]
fn the_environment_says_where_hubs_and_their_folders_are() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("hf")).unwrap();
    fs::write(folder.path().join("hf/token"), "from_file\n").unwrap();
    let home = folder.path().display().to_string();
    let of = |name: &str| match name {
        "HOME" => Some(home.clone()),
        "HF_HOME" => Some(format!("{home}/hf")),
        _ => None,
    };
    let plain = HubOptions::new(&HubKeys::default(), of);
    assert_eq!(plain.hf_cache, folder.path().join("hf/hub"));
    assert_eq!(plain.ms_cache, folder.path().join(".cache/modelscope/hub"));
    assert!(plain.hf_token.is_some() && plain.ms_token.is_none() && !plain.offline);
    let keys = HubKeys { cache_dir: Some("c".into()), ..HubKeys::default() };
    assert_eq!(HubOptions::new(&keys, of).hf_cache, PathBuf::from("c"));
}
