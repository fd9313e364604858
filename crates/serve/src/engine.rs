//! The model at work: jobs in, tokens out. Rows begin as there is room, in the order in which they came, and end at once when
//! nobody listens any more.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use sft_infer::slots::{Slots, Told};
use sft_infer::{Continuation, InferError};
use tokio::sync::mpsc::UnboundedSender;

/// A prompt to be continued.
#[derive(Debug)]
pub struct Job {
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// How it goes on.
    pub continuation: Continuation,
    /// Who hears of it; the row ends when nobody does.
    pub reply: UnboundedSender<Told>,
}

/// Where jobs wait.
pub fn queue() -> (SyncSender<Job>, Receiver<Job>) {
    sync_channel(crate::MOST_WAITING)
}

/// Works until nobody can send jobs any more. Between two tokens of the answers in work a piece of one prompt is read.
///
/// # Errors
/// What is wrong with the model, whatever is asked.
pub fn run(mut rows: Slots<'_>, jobs: &Receiver<Job>) -> Result<(), InferError> {
    let (mut replies, mut begun) = (BTreeMap::new(), 0);
    loop {
        while let Some(job) = next(&rows, jobs) {
            rows.begin(begun, &job.prompt, job.continuation);
            replies.insert(begun, job.reply);
            begun += 1;
        }
        if rows.is_empty() {
            return Ok(());
        }
        step(&mut rows, &mut replies)?;
    }
}

/// A job for which there is room now; waits for one where nothing else is to do. `None` if there is none.
fn next(rows: &Slots<'_>, jobs: &Receiver<Job>) -> Option<Job> {
    loop {
        if !rows.has_room() {
            return None;
        }
        let job = if rows.is_empty() {
            jobs.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            jobs.try_recv()
        };
        match job {
            Ok(job) if job.reply.is_closed() => {}
            Ok(job) => return Some(job),
            Err(_) => return None,
        }
    }
}

fn step(rows: &mut Slots<'_>, replies: &mut BTreeMap<u64, UnboundedSender<Told>>) -> Result<(), InferError> {
    replies.retain(|key, reply| {
        if reply.is_closed() {
            rows.leave(*key);
        }
        !reply.is_closed()
    });
    rows.step(
        1,
        || true,
        |key, told| {
            let ends = matches!(told, Told::Ended(_));
            // Whoever does not listen is found at the next step.
            let _ = replies.get(&key).map(|reply| reply.send(told));
            if ends {
                replies.remove(&key);
            }
        },
    )?;
    Ok(())
}
