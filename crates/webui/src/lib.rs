//! `sft webui`: a page to write a recipe, to see what it would do, to start it, and to watch runs.
//!
//! The page knows nothing of models. It starts `sft` as processes of their own and reads what they leave: closing the page, or
//! ending this server, ends no run, and runs that were started in a terminal are watched like all others.
//!
//! | room | what |
//! |---|---|
//! | [`routes`] | the addresses, and who may ask |
//! | [`recipe`] | a recipe as it is written: its keys, what is wrong, files, what can be put into it |
//! | [`look`] | short commands, whose words are shown: `--dry-run`, `--fit`, `sft data …`, `sft doctor` |
//! | [`jobs`] | commands that outlive the page: `sft train`, `predict`, `export`, `serve` |
//! | [`runs`], [`entry`] | the ledger and the folders of runs, and which job worked on which |
//! | [`further`] | the recipe of a run → one to talk to what it trained, to let it answer, or to merge it |
//! | [`chat`] | what a model that is served says, under this server's own address |

mod chat;
mod entry;
mod further;
mod jobs;
mod key;
mod look;
mod recipe;
mod refusal;
mod routes;
mod runs;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use jobs::Jobs;
use sft_runs::RunError;
use thiserror::Error;
use tokio::sync::Semaphore;

pub use key::kept_key;

/// What the page is about.
#[derive(Debug)]
pub struct Options {
    /// The program that is started: this one.
    pub program: PathBuf,
    /// The folder that paths of recipes are relative to.
    pub folder: PathBuf,
    /// Where commands that were started are kept.
    pub jobs: PathBuf,
    /// The ledger of runs, if there is one.
    pub ledger: Option<PathBuf>,
    /// What requests have to show.
    pub key: String,
}

/// Why there is no page.
#[derive(Debug, Error)]
pub enum WebuiError {
    /// The system refuses what a server needs.
    #[error("the server cannot run: {0}")]
    Io(#[from] std::io::Error),
    /// The folder of what was started cannot be used.
    #[error("the folder of what is started here cannot be used: {0}\nhelp: `--jobs` names another")]
    Jobs(RunError),
    /// Another server uses it.
    #[error("{}: a page uses this folder already{holder}\nhelp: open that one's address, or name another folder with `--jobs`", .folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who, in words.
        holder: String,
    },
}

/// The server before it serves.
#[derive(Debug)]
pub struct Webui {
    shared: Arc<Shared>,
}

/// Ends what must not outlive the server.
#[derive(Debug, Clone)]
pub struct Closer(Arc<Shared>);

/// What every request needs.
#[derive(Debug)]
struct Shared {
    options: Options,
    jobs: Jobs,
    /// How many more commands may be looked at.
    looks: Semaphore,
}

/// Commands that are looked at at a time: each may read all data.
const LOOKS: usize = 2;

impl Webui {
    /// Looks at what was started before.
    ///
    /// # Errors
    /// A folder of jobs that cannot be used.
    pub fn new(options: Options) -> Result<Self, WebuiError> {
        let jobs = Jobs::open(&options.jobs, &options.program, options.ledger.as_deref());
        let jobs = jobs.map_err(|error| match error {
            RunError::FolderInUse { folder, holder } => WebuiError::InUse { folder, holder },
            error => WebuiError::Jobs(error),
        })?;
        let looks = Semaphore::new(LOOKS);
        Ok(Self { shared: Arc::new(Shared { options, jobs, looks }) })
    }

    /// Jobs that an earlier server let wait: they begin now, one after the other.
    pub fn waiting(&self) -> usize {
        self.shared.jobs.all().iter().filter(|(state, _)| *state == jobs::State::Waiting).count()
    }

    /// What ends a model that is talked to; runs go on.
    pub fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.shared))
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(self, listener: TcpListener) -> Result<(), WebuiError> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let router = routes::router(self.shared);
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, router).await
        })?;
        Ok(())
    }
}

impl Closer {
    /// Ends the models that are talked to.
    pub fn close(&self) {
        self.0.jobs.close();
    }
}
