//! A model behind OpenAI's chat interface: `POST /v1/chat/completions`, `GET /v1/models`, and a page to try it.
//!
//! HTTP runs on a thread of its own, with one task for each answer; the model is at work on the caller's thread
//! ([`engine`]), on several answers at a time. Prompts are rendered by the pipeline that training used.
//!
//! ```text
//! [`routes`] → [`request`] → [`asked`]: prompt, job → [`engine`] → tokens → [`answer`]: text, calls → [`reply`]: JSON or events
//! ```

mod access;
mod answer;
mod asked;
mod engine;
mod fields;
mod reply;
mod request;
mod routes;
mod words;

#[cfg(test)]
#[path = "../../infer/tests/tiny/mod.rs"]
mod tiny;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::serve::ListenerExt;
use sft_data::conversation::{Message, Role};
use sft_data::pipeline::Pipeline;
use sft_infer::slots::Slots;
use sft_infer::{Context, GenerationOptions, InferError};
use thiserror::Error;
use tokio::sync::watch;

pub use answer::Finish;

/// Requests that wait while all rows are in work; one more is told to come again.
pub const MOST_WAITING: usize = 256;

/// Who has not sent all of a request when the end is asked for is waited for so long.
const GRACE: Duration = Duration::from_secs(2);

/// What is served.
#[derive(Debug)]
pub struct Service {
    /// The name that the model is told by.
    pub name: String,
    /// What renders prompts and reads answers.
    pub pipeline: Pipeline,
    /// What holds where a request says nothing else.
    pub options: GenerationOptions,
    /// How long prompt and answer of a request may be.
    pub context: Context,
    /// Rows of the model's vocabulary: a token beyond them cannot be read.
    pub vocab_size: usize,
    /// What requests have to show, if anything.
    pub api_key: Option<String>,
}

impl Service {
    /// Whether the template writes the tools that are offered.
    pub fn offers_tools(&self) -> bool {
        let asked = [Message::text(Role::User, "?")];
        let tool = serde_json::json!([{"type": "function", "function": {"name": "probe", "description": "",
            "parameters": {"type": "object", "properties": {}}}}]);
        let prompt = |tools| self.pipeline.prompt(&asked, tools).ok();
        prompt(Some(&tool)).is_some_and(|with| Some(with) != prompt(None))
    }
}

/// A request that has been answered, or broken off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Served {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them a cache held already.
    pub cached_tokens: usize,
    /// Tokens of all its answers.
    pub tokens: usize,
    /// Until the first token, waiting included; `None` if there was none.
    pub to_first_token: Option<Duration>,
    /// Until the end.
    pub took: Duration,
    /// How it ended; `None` if whoever asked went away, or something went wrong.
    pub finish: Option<Finish>,
}

/// Ends [`serve`]: nobody new is let in, who waits is sent away, and who is answered is answered to the end.
#[derive(Debug, Clone, Default)]
pub struct Stop(watch::Sender<bool>);

impl Stop {
    /// Asks for the end.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    async fn asked(&self) {
        // It fails when nobody can ask any more, and `self` can.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

/// Why there is no server any more.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The system refuses what a server needs.
    #[error("the server cannot run: {0}")]
    Io(#[from] std::io::Error),
    /// Something is wrong with the model.
    #[error(transparent)]
    Infer(#[from] InferError),
}

/// Serves until `stop`; `report` hears of every request that was answered.
///
/// # Errors
/// The system's, and what is wrong with the model whatever is asked.
pub fn serve(
    listener: TcpListener,
    service: Service,
    slots: Slots<'_>,
    stop: &Stop,
    report: impl Fn(&Served) + Send + Sync + 'static,
) -> Result<(), ServeError> {
    // Without the model there is nothing to serve, whyever it ends.
    struct StopOnDrop<'a>(&'a Stop);
    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    listener.set_nonblocking(true)?;
    let alone = listener.local_addr()?.ip().is_loopback();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (jobs, waiting) = engine::queue();
    let in_work = Arc::new(AtomicUsize::new(0));
    let router = routes::router(service, (jobs, Arc::clone(&in_work)), alone, Box::new(report));
    std::thread::scope(|scope| {
        let http = std::thread::Builder::new().name("http".into()).spawn_scoped(scope, || {
            let served = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                // Tokens are sent as they come.
                let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
                let until = stop.clone();
                let served =
                    axum::serve(listener, router).with_graceful_shutdown(async move { until.asked().await });
                tokio::select! {
                    served = served => served,
                    () = answered(stop, &in_work) => Ok(()),
                }
            });
            // A text that is still being read is waited for by nobody.
            runtime.shutdown_background();
            served
        })?;
        let done = {
            let _stop = StopOnDrop(stop);
            engine::run(slots, waiting, stop)
        };
        http.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(done?)
    })
}

/// Waits for the end to be asked for, then until nobody has been answered for a while: connections on which nothing comes
/// keep no server alive.
async fn answered(stop: &Stop, in_work: &AtomicUsize) {
    stop.asked().await;
    let mut idle = Duration::ZERO;
    let step = Duration::from_millis(50);
    while idle < GRACE {
        tokio::time::sleep(step).await;
        idle = if in_work.load(Ordering::Relaxed) == 0 { idle + step } else { Duration::ZERO };
    }
}
