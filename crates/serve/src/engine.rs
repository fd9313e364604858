//! The model at work: jobs in, tokens out. Jobs begin as there is room, in the order in which they came, and end at once when
//! nobody listens any more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use sft_infer::slots::{Slots, Told};
use sft_infer::{Continuation, InferError};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{MOST_WAITING, Stop};

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

/// Where jobs are brought.
#[derive(Debug, Clone)]
pub struct Jobs {
    sender: Sender<Waiting>,
    places: Arc<Semaphore>,
}

/// A job that has not begun, and its place among those.
type Waiting = (Job, OwnedSemaphorePermit);

/// Why a job is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// As many wait as may.
    Full,
    /// Nobody works any more.
    Ended,
}

impl Jobs {
    /// Brings a job.
    pub fn send(&self, job: Job) -> Result<(), NotTaken> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| NotTaken::Full)?;
        self.sender.send((job, place)).map_err(|_| NotTaken::Ended)
    }
}

/// Where jobs are brought, and where they wait.
pub fn queue() -> (Jobs, Receiver<Waiting>) {
    let (sender, receiver) = channel();
    (Jobs { sender, places: Arc::new(Semaphore::new(MOST_WAITING)) }, receiver)
}

/// Works until nobody can bring jobs any more. Between two tokens of the answers in work a piece of one prompt is read. Once
/// the end is asked for no job begins.
///
/// # Errors
/// What is wrong with the model, whatever is asked.
pub fn run(mut slots: Slots<'_>, jobs: Receiver<Waiting>, stop: &Stop) -> Result<(), InferError> {
    let (mut waiting, mut replies, mut begun) = (VecDeque::new(), BTreeMap::new(), 0);
    loop {
        if slots.is_empty() && waiting.is_empty() {
            match jobs.recv() {
                Ok(job) => waiting.push_back(job),
                Err(_) => return Ok(()),
            }
        }
        waiting.extend(jobs.try_iter());
        // Who has gone needs no answer, and makes room for others.
        waiting.retain(|(job, _): &Waiting| !job.reply.is_closed());
        if stop.is_asked() {
            waiting.clear();
        }
        while slots.has_room()
            && let Some((job, _)) = waiting.pop_front()
        {
            slots.begin(begun, &job.prompt, job.continuation);
            replies.insert(begun, job.reply);
            begun += 1;
        }
        step(&mut slots, &mut replies)?;
    }
}

fn step(slots: &mut Slots<'_>, replies: &mut BTreeMap<u64, UnboundedSender<Told>>) -> Result<(), InferError> {
    replies.retain(|key, reply| {
        if reply.is_closed() {
            slots.leave(*key);
        }
        !reply.is_closed()
    });
    slots.step(
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
