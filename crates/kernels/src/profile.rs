//! What every op costs: calls, time, arithmetic and bytes moved.
//!
//! In: each op of this crate says at its entrance what it is about to do. Out: a table by op. While it is switched
//! off, as it is at first, an op pays one comparison for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cuda::{Cuda, Span};

/// An op, and for products the weight, whatever the number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Op {
    /// Its name, `matmul x·Wᵀ` for instance.
    pub name: &'static str,
    /// The shape of the weight in a product, or of its gradient; zeros for other ops.
    pub weight: [usize; 2],
}

/// What calls of an op came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// How often it ran.
    pub calls: u64,
    /// Wall time.
    pub time: Duration,
    /// Multiplications and additions.
    pub flops: f64,
    /// Operands read and results written, each once.
    pub bytes: f64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.time += other.time;
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// The table of a device.
#[derive(Debug, Default)]
pub struct Profile {
    on: AtomicBool,
    costs: Mutex<BTreeMap<Op, Cost>>,
    /// Ops on a GPU, whose time is known when they are done.
    under_way: Mutex<Vec<(Op, Cost, Span)>>,
}

impl Profile {
    /// Begins to count.
    pub fn start(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    /// Stops counting and hands over what was counted since the last time.
    pub fn take(&self) -> BTreeMap<Op, Cost> {
        self.on.store(false, Ordering::Relaxed);
        for (op, cost, span) in std::mem::take(&mut *lock(&self.under_way)) {
            self.add(op, Cost { time: span.time(), ..cost });
        }
        std::mem::take(&mut lock(&self.costs))
    }

    fn add(&self, op: Op, cost: Cost) {
        *lock(&self.costs).entry(op).or_default() += cost;
    }

    /// Times an op from here until what is returned goes out of scope; `work` tells its FLOP and bytes.
    pub(crate) fn op(
        &self,
        cuda: Option<&Cuda>,
        name: &'static str,
        weight: [usize; 2],
        work: impl FnOnce() -> [usize; 2],
    ) -> Option<Timed<'_>> {
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        let [flops, bytes] = work().map(|amount| amount as f64);
        let cost = Cost { calls: 1, time: Duration::ZERO, flops, bytes };
        let started =
            cuda.map_or_else(|| Started::OnCpu(Instant::now()), |cuda| Started::OnGpu(Span::begin(cuda)));
        Some(Timed { profile: self, op: Op { name, weight }, cost, started: Some(started) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When an op began.
#[derive(Debug)]
enum Started {
    OnCpu(Instant),
    OnGpu(Span),
}

/// An op that runs.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    profile: &'a Profile,
    op: Op,
    cost: Cost,
    started: Option<Started>,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        match self.started.take() {
            Some(Started::OnCpu(started)) => {
                self.profile.add(self.op, Cost { time: started.elapsed(), ..self.cost });
            }
            Some(Started::OnGpu(span)) => {
                span.end();
                lock(&self.profile.under_way).push((self.op, self.cost, span));
            }
            None => {}
        }
    }
}
