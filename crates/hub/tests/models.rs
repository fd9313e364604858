//! Models of hubs, against servers on this machine that speak the hubs' protocols.

mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sft_hub::{HubKeys, HubOptions, Model};

use server::{Answer, Log, Request, serve, sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_very_secret";

type Files = BTreeMap<&'static str, Vec<u8>>;

fn tiny_model() -> Files {
    let index = json!({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}});
    BTreeMap::from([
        ("config.json", b"{\"model_type\": \"qwen2\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("additional_chat_templates/tool_use.jinja", b"x".to_vec()),
        ("modeling_own.py", b"import os".to_vec()),
        ("pytorch_model.bin", vec![7; 64]),
        ("consolidated.safetensors", vec![6; 64]),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        ("model-00001-of-00002.safetensors", vec![1; 300_000]),
        ("model-00002-of-00002.safetensors", (0..=255).cycle().take(700_000).collect()),
    ])
}

/// Hugging Face's hub with one model: `own/model`, whose large files lie on another machine that breaks off once each.
fn hugging_face(files: Files, revision: &'static str) -> (String, Log, Log) {
    let large = files.clone();
    let (cdn, cdn_log) = serve(move |request, before| {
        let bytes = &large[request.path.trim_start_matches('/')];
        let range =
            request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        match range.and_then(|from| from.parse::<usize>().ok()) {
            Some(from) => Answer(206, Vec::new(), bytes[from..].to_vec(), None),
            None => Answer(200, Vec::new(), bytes.clone(), (before == 0).then_some(bytes.len() / 3)),
        }
    });
    let (hub, log) = serve(move |request, _| {
        let header = |name: &str, value: String| (name.to_owned(), value);
        if request.headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Answer(401, vec![header("x-error-code", "RepoNotFound".into())], Vec::new(), None);
        }
        let info = request.path.strip_prefix("/api/models/own/model/revision/");
        if let Some(asked) = info.and_then(|asked| asked.strip_suffix("?blobs=true")) {
            if asked != revision && asked != COMMIT {
                return Answer(
                    404,
                    vec![header("x-error-code", "RevisionNotFound".into())],
                    Vec::new(),
                    None,
                );
            }
            let siblings: Vec<_> =
                files.iter().map(|(name, bytes)| json!({"rfilename": name, "size": bytes.len()})).collect();
            let info = json!({"sha": COMMIT, "siblings": siblings});
            return Answer(200, Vec::new(), info.to_string().into_bytes(), None);
        }
        let name = request.path.strip_prefix(&format!("/own/model/resolve/{COMMIT}/")).unwrap_or_default();
        match files.get_key_value(name) {
            Some((name, bytes)) if name.ends_with(".safetensors") => {
                let headers = vec![
                    header("location", format!("{cdn}/{name}")),
                    header("x-linked-etag", format!("\"{}\"", sha256(bytes))),
                    header("x-linked-size", bytes.len().to_string()),
                ];
                Answer(302, headers, Vec::new(), None)
            }
            Some((name, bytes)) => {
                Answer(200, vec![header("etag", format!("\"git-{}\"", name.len()))], bytes.clone(), None)
            }
            None => Answer(404, Vec::new(), Vec::new(), None),
        }
    });
    (hub, log, cdn_log)
}

fn options(folder: &Path, endpoint: &str, more: &[(&str, &str)]) -> HubOptions {
    let home = folder.display().to_string();
    let keys =
        HubKeys { hf_hub_token: Some(TOKEN.into()), ms_hub_token: Some(TOKEN.into()), cache_dir: None };
    let options = HubOptions::new(&keys, |name| match name {
        "HF_HOME" => Some(format!("{home}/hf")),
        "MODELSCOPE_CACHE" => Some(format!("{home}/ms")),
        "HF_ENDPOINT" | "MODELSCOPE_DOMAIN" => Some(endpoint.to_owned()),
        name => more.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()),
    });
    HubOptions { pause: Duration::from_millis(1), ..options }
}

fn message(options: &HubOptions, name: &str, revision: &str) -> String {
    let message = Model::find(options, name, revision).unwrap_err().to_string();
    assert!(!message.contains(TOKEN) && message.contains("\nhelp: "), "{message}");
    message
}

#[test]
fn a_model_is_fetched_once_what_describes_it_first() {
    let folder = tempfile::tempdir().unwrap();
    let files = tiny_model();
    let (endpoint, log, cdn_log) = hugging_face(files.clone(), "main");
    let online = options(folder.path(), &endpoint, &[]);
    let model = Model::find(&online, "own/model", "main").unwrap();
    let home = folder.path().join("hf/hub/models--own--model");
    assert_eq!(model.folder(), home.join("snapshots").join(COMMIT));
    let is_here = |name: &str| model.folder().join(name).is_file();
    assert!(is_here("config.json") && is_here("additional_chat_templates/tool_use.jinja"));
    assert!(!is_here("model-00001-of-00002.safetensors") && cdn_log.lock().unwrap().is_empty());

    model.fetch_weights().unwrap();
    for (name, bytes) in &files {
        let is_needed = !["modeling_own.py", "pytorch_model.bin", "consolidated.safetensors"].contains(name);
        assert_eq!(is_here(name), is_needed, "{name}");
        assert!(!is_needed || fs::read(model.folder().join(name)).unwrap() == *bytes, "{name}");
    }
    // The folder is that of huggingface_hub.
    assert_eq!(fs::read_to_string(home.join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(model.folder().join("model-00001-of-00002.safetensors")).unwrap(),
        PathBuf::from("../../blobs").join(sha256(&files["model-00001-of-00002.safetensors"]))
    );
    // What broke off was gone on with, and the other machine never saw the token.
    let cdn: Vec<Request> = cdn_log.lock().unwrap().clone();
    assert_eq!(cdn.iter().filter(|request| request.headers.contains_key("range")).count(), 2, "{cdn:?}");
    assert!(cdn.iter().all(|request| !request.headers.contains_key("authorization")));

    // Again: one question. Offline, and a commit that is whole: none.
    let asked = || log.lock().unwrap().len() + cdn_log.lock().unwrap().len();
    let before = asked();
    Model::find(&online, "own/model", "main").unwrap().fetch_weights().unwrap();
    assert_eq!(asked(), before + 1);
    let offline = options(folder.path(), &endpoint, &[("HF_HUB_OFFLINE", "1")]);
    let kept = Model::find(&offline, "own/model", "main").unwrap();
    kept.fetch_weights().unwrap();
    assert_eq!(kept.folder(), model.folder());
    Model::find(&online, "own/model", COMMIT).unwrap().fetch_weights().unwrap();
    assert_eq!(asked(), before + 1);

    // A hub that cannot be reached, where the snapshot is here.
    let gone = options(folder.path(), "http://127.0.0.1:1", &[]);
    let kept = Model::find(&gone, "own/model", "main").unwrap();
    kept.fetch_weights().unwrap();
    assert_eq!(kept.folder(), model.folder());
}

#[test]
fn a_download_that_was_broken_off_goes_on_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let files = tiny_model();
    let (endpoint, _, cdn_log) = hugging_face(files.clone(), "main");
    let name = "model-00002-of-00002.safetensors";
    let blobs = folder.path().join("hf/hub/models--own--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&files[name]))), &files[name][..500_000]).unwrap();
    let model = Model::find(&options(folder.path(), &endpoint, &[]), "own/model", "main").unwrap();
    model.fetch_weights().unwrap();
    assert_eq!(fs::read(model.folder().join(name)).unwrap(), files[name]);
    let asked = cdn_log.lock().unwrap().iter().find(|request| request.path.ends_with(name)).cloned().unwrap();
    assert_eq!(asked.headers["range"], "bytes=500000-");
}

#[test]
fn a_folder_goes_before_any_hub_and_a_path_is_never_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, log, _) = hugging_face(tiny_model(), "main");
    let online = options(folder.path(), &endpoint, &[]);
    let here = folder.path().display().to_string();
    for name in [here.as_str(), "./no/such/folder", "/no/such", "a/b/c"] {
        let model = Model::find(&online, name, "main").unwrap();
        assert_eq!(model.folder(), Path::new(name));
        model.fetch_weights().unwrap();
        Model::find_adapter(&online, name).unwrap();
    }
    assert!(log.lock().unwrap().is_empty());
}

#[test]
fn revisions_have_snapshots_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, ..) = hugging_face(tiny_model(), "refs%2Fpr%2F1");
    let online = options(folder.path(), &endpoint, &[]);
    Model::find(&online, "own/model", "refs/pr/1").unwrap();
    let reference = folder.path().join("hf/hub/models--own--model/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
    let kept = options(folder.path(), &endpoint, &[("HF_HUB_OFFLINE", "1")]);
    Model::find(&kept, "own/model", "refs/pr/1").unwrap();
    assert!(message(&kept, "own/model", "main").contains("nothing is fetched offline"));
    assert!(message(&online, "own/model", "v9").contains("has no revision `v9`"));
    assert!(message(&online, "own/model", "../x").contains("cannot have a revision `../x`"));
}

#[test]
fn every_error_says_what_was_tried_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, log, _) = hugging_face(tiny_model(), "main");
    let online = options(folder.path(), &endpoint, &[]);
    let said = message(&online, "own/gone", "main");
    assert!(said.contains(&format!(
        "model `own/gone` is no folder here, and asked for at {endpoint} it is not there"
    )));
    let closed =
        HubOptions::new(&HubKeys { hf_hub_token: Some("hf_wrong".into()), ..HubKeys::default() }, |name| {
            (name == "HF_ENDPOINT")
                .then(|| endpoint.clone())
                .or_else(|| (name == "HF_HOME").then(|| "/nowhere".into()))
        });
    assert!(
        message(&closed, "own/model", "main")
            .contains("is closed to this token, or there is no such model (status 401")
    );
    let asked = log.lock().unwrap().len();
    let offline = options(folder.path(), &endpoint, &[("HF_HUB_OFFLINE", "1")]);
    assert!(
        message(&offline, "own/model", "main")
            .contains("and nothing is fetched offline\nhelp: unset HF_HUB_OFFLINE")
    );
    assert_eq!(log.lock().unwrap().len(), asked);
    let nobody = options(folder.path(), "http://127.0.0.1:1", &[]);
    assert!(message(&nobody, "own/model", "main").contains("could not be fetched in 2 attempts"));

    let (gated, _) =
        serve(|_, _| Answer(403, vec![("x-error-code".into(), "GatedRepo".into())], Vec::new(), None));
    let said = message(&options(folder.path(), &gated, &[]), "meta/closed", "main");
    assert!(said.contains("is open only to those who accepted its terms") && said.contains("HF_TOKEN"));
}

#[test]
fn weights_that_can_run_code_are_refused_before_anything_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let files = |names: &[&'static str]| names.iter().map(|name| (*name, b"{}".to_vec())).collect::<Files>();
    let refused = |names: &[&'static str]| {
        let (endpoint, log, _) = hugging_face(files(names), "main");
        let said = message(&options(folder.path(), &endpoint, &[]), "own/model", "main");
        assert_eq!(log.lock().unwrap().len(), 1, "{said}");
        said
    };
    let said = refused(&["config.json", "pytorch_model-00001-of-00002.bin"]);
    assert!(
        said.contains("pytorch_model-00001-of-00002.bin` alone, which can run code")
            && said.contains("save_pretrained")
    );
    assert!(
        refused(&["adapter_config.json", "adapter_model.safetensors"]).contains("is an adapter, no model")
    );
    assert!(refused(&["model.gguf"]).contains("has no `config.json`, only model.gguf"));

    let (endpoint, ..) = hugging_face(files(&["adapter_config.json", "adapter_model.bin"]), "main");
    let said =
        Model::find_adapter(&options(folder.path(), &endpoint, &[]), "own/model").unwrap_err().to_string();
    assert!(
        said.contains("has no `adapter_model.safetensors`") && said.contains("load it with PEFT"),
        "{said}"
    );
}

#[test]
fn an_adapter_is_fetched_whole() {
    let folder = tempfile::tempdir().unwrap();
    let files = BTreeMap::from([
        ("adapter_config.json", b"{}".to_vec()),
        ("adapter_model.safetensors", vec![3; 5000]),
        ("tokenizer.json", b"{}".to_vec()),
        ("optimizer.pt", vec![1; 10]),
    ]);
    let (endpoint, ..) = hugging_face(files.clone(), "main");
    let adapter = Model::find_adapter(&options(folder.path(), &endpoint, &[]), "own/model").unwrap();
    assert_eq!(fs::read(adapter.folder().join("adapter_model.safetensors")).unwrap(), vec![3; 5000]);
    assert!(adapter.folder().join("tokenizer.json").exists(), "new tokens are in it");
    assert!(!adapter.folder().join("optimizer.pt").exists());
}

#[test]
fn a_model_that_the_disk_has_no_room_for_is_refused_before_it_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, _) = serve(|request, _| match request.path.contains("/api/") {
        true => {
            let siblings = json!([{"rfilename": "config.json", "size": 2},
                {"rfilename": "model.safetensors", "size": 1_u64 << 60}]);
            Answer(
                200,
                Vec::new(),
                json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes(),
                None,
            )
        }
        false => Answer(200, vec![("etag".into(), "\"x\"".into())], b"{}".to_vec(), None),
    });
    let model = Model::find(&options(folder.path(), &endpoint, &[]), "own/model", "main").unwrap();
    let said = model.fetch_weights().unwrap_err().to_string();
    assert!(
        said.contains("1152921504.61 GB are to be fetched") && said.contains("help: make room"),
        "{said}"
    );
}

/// ModelScope's hub with `own/mo.del` at `master`.
fn modelscope(files: Files) -> (String, Log) {
    serve(move |request, _| {
        if request.headers.get("cookie") != Some(&format!("m_session_id={TOKEN}")) {
            return Answer(403, Vec::new(), Vec::new(), None);
        }
        if request.path == "/api/v1/models/own/mo.del/repo/files?Revision=master&Recursive=True" {
            let list: Vec<_> = files
                .iter()
                .map(|(name, bytes)| json!({"Path": name, "Type": "blob", "Size": bytes.len(), "Sha256": sha256(bytes)}))
                .collect();
            return Answer(
                200,
                Vec::new(),
                json!({"Code": 200, "Data": {"Files": list}}).to_string().into_bytes(),
                None,
            );
        }
        let name = request.path.strip_prefix("/api/v1/models/own/mo.del/repo?Revision=master&FilePath=");
        match name.and_then(|name| files.get(name)) {
            Some(bytes) => Answer(200, Vec::new(), bytes.clone(), None),
            None => Answer(404, Vec::new(), Vec::new(), None),
        }
    })
}

#[test]
fn modelscope_gives_models_by_its_own_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = tiny_model();
    let (endpoint, log) = modelscope(files.clone());
    let of = |endpoint: &str, more: &[(&str, &str)]| {
        options(folder.path(), endpoint, &[&[("USE_MODELSCOPE_HUB", "1")], more].concat())
    };
    let model = Model::find(&of(&endpoint, &[]), "own/mo.del", "main").unwrap();
    assert_eq!(model.folder(), folder.path().join("ms/models/own--mo.del/snapshots/master"));
    model.fetch_weights().unwrap();
    let name = "model-00002-of-00002.safetensors";
    assert_eq!(fs::read(model.folder().join(name)).unwrap(), files[name]);
    assert!(!model.folder().join("modeling_own.py").exists());

    let asked = log.lock().unwrap().len();
    let offline = of(&endpoint, &[("HF_HUB_OFFLINE", "1")]);
    Model::find(&offline, "own/mo.del", "main").unwrap().fetch_weights().unwrap();
    assert_eq!(log.lock().unwrap().len(), asked);
    Model::find(&of("http://127.0.0.1:1", &[]), "own/mo.del", "main").unwrap().fetch_weights().unwrap();

    // A file of the same length that says something else is fetched again.
    files.insert("config.json", b"{\"model_type\": \"qwen3\"}".to_vec());
    let (endpoint, _) = modelscope(files.clone());
    Model::find(&of(&endpoint, &[]), "own/mo.del", "main").unwrap();
    assert_eq!(fs::read(model.folder().join("config.json")).unwrap(), files["config.json"]);
}

#[test]
fn what_modelscopes_older_library_has_fetched_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let older = folder.path().join("ms/models/own/mo___del");
    fs::create_dir_all(&older).unwrap();
    for (name, bytes) in tiny_model() {
        fs::create_dir_all(older.join(name).parent().unwrap()).unwrap();
        fs::write(older.join(name), bytes).unwrap();
    }
    let offline =
        options(folder.path(), "http://127.0.0.1:1", &[("USE_MODELSCOPE_HUB", "1"), ("HF_HUB_OFFLINE", "1")]);
    let model = Model::find(&offline, "own/mo.del", "main").unwrap();
    model.fetch_weights().unwrap();
    assert_eq!(model.folder(), older);
}
