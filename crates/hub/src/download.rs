//! Fetching over HTTP: redirects, several attempts, taking up what was broken off, check sums.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::http::{Response, StatusCode};

use crate::error::HubError;
use crate::repository::{Kind, Repository};
use crate::watch::{Event, tell};

const REDIRECTS: usize = 8;
/// Longest answer that is read into memory: a list of files.
const MOST_JSON: u64 = 64 << 20;

/// A header that lets the caller in.
pub(crate) type Header = Option<(&'static str, String)>;

/// Asks for one repository.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    pub repository: Repository<'a>,
    pub header: Header,
    /// How often trouble that may pass is put up with.
    pub attempts: u32,
    /// The pause before a second attempt, doubled before each further one.
    pub pause: Duration,
}

/// A file to fetch.
pub(crate) struct Fetch<'a> {
    pub name: &'a str,
    pub url: &'a str,
    pub size: Option<u64>,
    pub sha256: Option<String>,
    pub to: &'a Path,
}

/// What a hub says of a file before it is fetched.
pub(crate) struct Known {
    pub etag: Option<String>,
    pub size: Option<u64>,
}

/// Why an attempt failed: whether another one may not.
enum Trouble {
    Passing(String),
    Lasting(HubError),
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Get,
    Head,
}

impl Client<'_> {
    /// The JSON at an address.
    pub(crate) fn json(&self, url: &str) -> Result<Value, HubError> {
        self.repeated(|| {
            let answer = self.request(url, Method::Get, 0)?;
            let mut text = Vec::new();
            let read = answer.into_body().into_reader().take(MOST_JSON).read_to_end(&mut text);
            read.map_err(|error| Trouble::Passing(error.to_string()))?;
            serde_json::from_slice(&text)
                .map_err(|error| Trouble::Passing(format!("the answer is no JSON: {error}")))
        })
    }

    /// Etag and size of a file; of a large one those that the hub's first answer names.
    pub(crate) fn head(&self, url: &str) -> Result<Known, HubError> {
        self.repeated(|| {
            let answer = self.request(url, Method::Head, 0)?;
            let of = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
            let etag = of("x-linked-etag").or_else(|| of("etag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
            let size = of("x-linked-size")
                .or_else(|| of("content-length").filter(|_| !answer.status().is_redirection()));
            Ok(Known { etag, size: size.and_then(|size| size.parse().ok()) })
        })
    }

    /// Fetches a file, going on where an earlier attempt was broken off; it is in place whole or not at all.
    pub(crate) fn fetch(&self, fetch: &Fetch<'_>) -> Result<(), HubError> {
        let at = |source| HubError::io(fetch.to, source, fetch.size.unwrap_or(0));
        let folder = fetch.to.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(at)?;
        let mut name = fetch.to.file_name().unwrap_or_default().to_owned();
        name.push(".incomplete");
        let partial = fetch.to.with_file_name(name);
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(&partial).map_err(at)?;
        // Another process may be fetching the same file: it is waited for.
        file.lock().map_err(at)?;
        let is_whole = |size| fs::metadata(fetch.to).is_ok_and(|file| file.len() == size);
        if fetch.to.is_file() && fetch.size.is_none_or(is_whole) {
            return Ok(());
        }
        self.repeated(|| self.attempt(fetch, &mut file))?;
        if let Some(expected) = &fetch.sha256 {
            let found = sha256(&mut file).map_err(at)?;
            if found != *expected {
                let _ = fs::remove_file(&partial);
                let reason = format!(
                    "gave another file than it names for `{}` (SHA-256 {found}, not {expected})",
                    fetch.url
                );
                return Err(self.repository.failed(reason, "try again: the next attempt begins anew"));
            }
        }
        file.sync_all().map_err(at)?;
        fs::rename(&partial, fetch.to).map_err(at)?;
        let size = file.metadata().map_err(at)?.len();
        tell(&Event::Fetched { repo: self.repository.name, file: fetch.name, size });
        Ok(())
    }

    fn attempt(&self, fetch: &Fetch<'_>, file: &mut File) -> Result<(), Trouble> {
        let left = |have: u64| fetch.size.unwrap_or(have).saturating_sub(have);
        let io = |have| move |source| Trouble::Lasting(HubError::io(fetch.to, source, left(have)));
        let mut have = file.metadata().map_err(io(0))?.len();
        if fetch.size.is_some_and(|size| have > size) {
            file.set_len(0).map_err(io(0))?;
            have = 0;
        }
        if fetch.size == Some(have) {
            return Ok(());
        }
        let answer = match self.request(fetch.url, Method::Get, have) {
            Ok(answer) => answer,
            Err(trouble) => {
                if fetch.size.is_none() && have > 0 {
                    // Nobody knows whether that was all.
                    file.set_len(0).map_err(io(0))?;
                }
                return Err(trouble);
            }
        };
        if have > 0 {
            let range = answer.headers().get("content-range").and_then(|range| range.to_str().ok());
            let goes_on = range.is_none_or(|range| range.starts_with(&format!("bytes {have}-")));
            let is_partial = answer.status() == StatusCode::PARTIAL_CONTENT;
            if !is_partial || !goes_on {
                file.set_len(0).map_err(io(0))?;
                have = 0;
            }
            if is_partial && !goes_on {
                return Err(Trouble::Passing("another part of the file came than was asked for".into()));
            }
        }
        let mut body = answer.into_body().into_reader();
        let mut chunk = vec![0; 1 << 18];
        loop {
            let read = body.read(&mut chunk).map_err(|error| Trouble::Passing(error.to_string()))?;
            if read == 0 {
                break;
            }
            file.write_all(&chunk[..read]).map_err(io(have))?;
            have += read as u64;
            let repo = self.repository.name;
            tell(&Event::Fetching { repo, file: fetch.name, done: have, size: fetch.size });
        }
        match fetch.size {
            Some(size) if size != have => Err(Trouble::Passing(format!("only {have} of {size} bytes came"))),
            _ => Ok(()),
        }
    }

    /// An answer; redirects are followed by hand so that the header goes to no other machine. `from`: only the bytes from
    /// there on.
    fn request(&self, url: &str, method: Method, from: u64) -> Result<Response<ureq::Body>, Trouble> {
        let home = authority(url);
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let agent = agent(authority(&url));
            let mut request = if method == Method::Head { agent.head(&url) } else { agent.get(&url) };
            if let Some((name, value)) = self.header.as_ref().filter(|_| authority(&url) == home) {
                request = request.header(*name, value);
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let answer = request.call().map_err(|error| Trouble::Passing(error.to_string()))?;
            let status = answer.status();
            // A large file's etag is in the answer that sends elsewhere.
            let tells_all = method == Method::Head && answer.headers().contains_key("x-linked-etag");
            if !status.is_redirection() || tells_all {
                return self.checked(answer, tells_all);
            }
            let to = answer.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or_default();
            url = match to.strip_prefix('/') {
                Some(path) => format!("{}/{path}", authority(&url)),
                None => to.to_owned(),
            };
        }
        let reason = format!("sends elsewhere more than {REDIRECTS} times");
        Err(Trouble::Lasting(self.repository.failed(reason, "try again later")))
    }

    /// An answer that can be used, or what is wrong with it.
    fn checked(
        &self,
        answer: Response<ureq::Body>,
        tells_all: bool,
    ) -> Result<Response<ureq::Body>, Trouble> {
        let kind = self.repository.kind;
        let status = answer.status();
        let lasting =
            |reason: String, help: &str| Err(Trouble::Lasting(self.repository.failed(reason, help)));
        // Hugging Face's hub says more than the status.
        let code = answer.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        match (status.as_u16(), code) {
            _ if status.is_success() || tells_all => Ok(answer),
            (_, Some("RevisionNotFound")) => lasting(
                format!("has no revision `{}`", self.repository.revision.unwrap_or("main")),
                "its page lists branches, tags and commits; leave `model_revision` out for the main branch",
            ),
            (_, Some("GatedRepo")) => lasting(
                format!("is open only to those who accepted its terms (status {status})"),
                "accept them on its page, and set `hf_hub_token` or HF_TOKEN to a token of that account",
            ),
            (401 | 403, _) => lasting(
                format!("is closed to this token, or there is no such {kind} (status {status})"),
                "ask for access on its page, and set `hf_hub_token` or HF_TOKEN (`ms_hub_token` for ModelScope); check the name",
            ),
            (404, _) => lasting(
                "is not there (status 404)".to_owned(),
                match kind {
                    Kind::Dataset => "check the name, the split and the subset",
                    Kind::Model => "check the name and `model_revision`",
                },
            ),
            (408 | 416 | 425 | 429 | 500..=599, _) => Err(Trouble::Passing(format!("status {status}"))),
            _ => lasting(format!("answers with status {status}"), "try again later"),
        }
    }

    /// Tries again after passing trouble, with longer and longer pauses.
    fn repeated<T>(&self, mut attempt: impl FnMut() -> Result<T, Trouble>) -> Result<T, HubError> {
        let mut pause = self.pause;
        for left in (0..self.attempts).rev() {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing(reason)) if left == 0 => {
                    let attempts = match self.attempts {
                        1 => String::new(),
                        n => format!(" in {n} attempts"),
                    };
                    let reason = format!("could not be fetched{attempts}: {reason}");
                    let help = "check the connection and HF_ENDPOINT; what came is kept, and the next start goes on from there";
                    return Err(self.repository.failed(reason, help));
                }
                Err(Trouble::Passing(reason)) => {
                    tell(&Event::Retrying { repo: self.repository.name, reason: &reason, pause });
                    std::thread::sleep(pause);
                    pause *= 2;
                }
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// `scheme://machine:port` of an address.
fn authority(url: &str) -> &str {
    let from = url.find("://").map_or(0, |at| at + 3);
    &url[..url[from..].find(['/', '?']).map_or(url.len(), |at| from + at)]
}

fn agent(authority: &str) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .user_agent(concat!("sft/", env!("CARGO_PKG_VERSION")));
    if authority.contains("://127.0.0.1") || authority.contains("://localhost") {
        config = config.proxy(None);
    }
    config.build().new_agent()
}

fn sha256(file: &mut File) -> std::io::Result<String> {
    file.rewind()?;
    let (mut sum, mut chunk) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => sum.update(&chunk[..read]),
        }
    }
}

/// Writes a small file whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    let at = |source| HubError::io(path, source, bytes.len() as u64);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(at)?;
    let mut partial = tempfile::NamedTempFile::new_in(folder).map_err(at)?;
    partial.write_all(bytes).map_err(at)?;
    partial.persist(path).map(drop).map_err(|error| at(error.error))
}

/// A name as it stands in an address: all but letters, digits and `-_.~/` as `%XX`.
pub(crate) fn encoded(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes().map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256_of(path: &Path) -> Result<String, HubError> {
    let at = |source| HubError::io(path, source, 0);
    sha256(&mut File::open(path).map_err(at)?).map_err(at)
}
