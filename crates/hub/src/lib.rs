//! Models and data sets of the Hugging Face and ModelScope hubs: which of their files are there, fetched once and kept.
//!
//! In: the name of a repository and a revision. Out: local files. What is fetched lies where the hubs' own libraries look for
//! it (`HF_HOME`, `MODELSCOPE_CACHE`), so either finds what the other has fetched. A token is sent to its hub and to no other
//! machine, and is never printed. What is going on is told to [`watch`]; nothing is printed here.

mod download;
mod error;
mod huggingface;
mod model;
mod modelscope;
mod options;
mod repository;
mod space;
mod watch;

pub use error::HubError;
pub use model::{Model, is_description};
pub use options::{HubKeys, HubOptions, Token};
pub use repository::{Kind, Repository, Site, Snapshot, is_safe, open};
pub use watch::{Event, watch};
