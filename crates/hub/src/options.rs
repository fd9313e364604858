//! Where the hubs are, how to be let in, and where what is fetched lies: the configuration's keys and the variables that the
//! hubs' own libraries read.

use std::fmt;
use std::path::PathBuf;

/// A secret: it can be compared and sent, and is shown as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where the hubs are, how to be let in, and where what is fetched lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Address of the Hugging Face hub (`HF_ENDPOINT`).
    pub hf_endpoint: String,
    /// Its token (`hf_hub_token`, `HF_TOKEN`, or the file `HF_HOME/token`).
    pub hf_token: Option<Token>,
    /// Its folder (`cache_dir`, `HF_HUB_CACHE`, or `HF_HOME/hub`).
    pub hf_cache: PathBuf,
    /// Address of the ModelScope hub (`MODELSCOPE_DOMAIN`).
    pub ms_endpoint: String,
    /// Its token (`ms_hub_token`, `MODELSCOPE_API_TOKEN`).
    pub ms_token: Option<Token>,
    /// Its folder of data sets (`cache_dir`, `MODELSCOPE_CACHE`).
    pub ms_cache: PathBuf,
    /// Its folder of models: the same, but for the default, which its library has changed.
    pub ms_models: PathBuf,
    /// ModelScope is asked first (`USE_MODELSCOPE_HUB`).
    pub prefer_modelscope: bool,
    /// Nothing is fetched (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The pause before a second attempt, doubled before each further one.
    pub pause: std::time::Duration,
}

/// What a configuration says of the hubs; the environment says the rest.
#[derive(Clone, Default)]
pub struct HubKeys {
    /// `hf_hub_token`.
    pub hf_hub_token: Option<String>,
    /// `ms_hub_token`.
    pub ms_hub_token: Option<String>,
    /// `cache_dir`.
    pub cache_dir: Option<PathBuf>,
}

impl fmt::Debug for HubKeys {
    /// Without the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubKeys").field("cache_dir", &self.cache_dir).finish_non_exhaustive()
    }
}

impl Default for HubOptions {
    /// Of an empty environment.
    fn default() -> Self {
        Self::new(&HubKeys::default(), |_| None)
    }
}

impl HubOptions {
    /// The keys of a configuration, and where they are silent the variables of `of`.
    pub fn new(keys: &HubKeys, of: impl Fn(&str) -> Option<String>) -> Self {
        let of = |name: &str| of(name).filter(|value| !value.trim().is_empty());
        let is_on = |name: &str| {
            of(name).is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
        };
        let path = |name: &str| of(name).map(PathBuf::from);
        let home = path(if cfg!(windows) { "USERPROFILE" } else { "HOME" }).unwrap_or_default();
        let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| cache.join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let hf_token = keys.hf_hub_token.clone().or_else(|| of("HF_TOKEN"));
        let hf_token = hf_token.or_else(|| of("HUGGING_FACE_HUB_TOKEN"));
        let hf_token = hf_token.or_else(|| std::fs::read_to_string(token_file).ok());
        let token = |text: String| Token(text.trim().to_owned());
        let domain = of("MODELSCOPE_DOMAIN").unwrap_or_else(|| "www.modelscope.cn".to_owned());
        let ms_endpoint = if domain.contains("://") { domain } else { format!("https://{domain}") };
        let hf_endpoint = of("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let ms_cache = keys.cache_dir.clone().or_else(|| path("MODELSCOPE_CACHE"));
        Self {
            hf_endpoint: hf_endpoint.trim_end_matches('/').to_owned(),
            hf_token: hf_token.map(token).filter(|token| !token.0.is_empty()),
            hf_cache: keys
                .cache_dir
                .clone()
                .or_else(|| path("HF_HUB_CACHE"))
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            ms_endpoint: ms_endpoint.trim_end_matches('/').to_owned(),
            ms_token: keys.ms_hub_token.clone().or_else(|| of("MODELSCOPE_API_TOKEN")).map(token),
            ms_models: ms_cache.clone().unwrap_or_else(|| cache.join("modelscope")),
            ms_cache: ms_cache.unwrap_or_else(|| cache.join("modelscope").join("hub")),
            prefer_modelscope: is_on("USE_MODELSCOPE_HUB"),
            offline: ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().any(is_on),
            pause: std::time::Duration::from_secs(1),
        }
    }

    /// As [`HubOptions::new`], of this process's environment.
    pub fn from_env(keys: &HubKeys) -> Self {
        Self::new(keys, |name| std::env::var(name).ok())
    }
}
