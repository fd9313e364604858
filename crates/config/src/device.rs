//! The device that computes: a word, and for a GPU its number.

use serde_json::{Value as Json, json};

use crate::source::Node;
use crate::value::{KeyType, Reject};

/// The device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The first GPU if there is one that can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse().map(Device::Cuda).ok();
        match text {
            "auto" => Some(Device::Auto),
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| format!("`{text}` is no device; there are `auto`, `cpu`, `cuda` and `cuda:N`"))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl KeyType for Device {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let text = node.text().ok_or(Reject::Type)?;
        text.parse().map_err(|reason: String| Reject::because(reason, "`sft doctor` lists what is there"))
    }
    fn to_json(&self) -> Json {
        json!(self.to_string())
    }
    fn takes() -> String {
        "`auto`, `cpu`, `cuda` or `cuda:N`".into()
    }
    fn schema() -> Json {
        json!({"type": "string", "pattern": "^(auto|cpu|cuda(:[0-9]+)?)$"})
    }
}
