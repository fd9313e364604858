//! The process is killed (SIGKILL) at random moments; started again by the same command, the run ends with the bits, the
//! log and the results of one that nothing happened to.
//!
//! A few kills are made by `cargo test`; 200 by `SFT_FAULTS=200 cargo test --release -p sft-cli --test program kills -- --nocapture`.

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use crate::place::{Place, digest, log, text};

/// Kills of a plain `cargo test`.
const FEW: usize = 5;

/// Numbers that look random, the same ones every time.
struct Random(u64);

impl Random {
    /// From 0 up to 1.
    fn next(&mut self) -> f64 {
        // Knuth's constants for a linear congruential generator of 64 bits.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Waits for a process, but no longer than this; `None` if it was killed then.
fn wait_or_kill(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// What was going on when the process was killed, as its folder tells.
fn moment(output: &Path) -> &'static str {
    let names: Vec<String> = std::fs::read_dir(output)
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    let has = |end: &str| names.iter().any(|name| name.starts_with("checkpoint-") && name.ends_with(end));
    match () {
        () if has(".partial") => "while a checkpoint was written",
        () if has(".removing") => "while a checkpoint was removed",
        () if names.iter().any(|name| name == "all_results.json") => "at the end",
        () if names.iter().any(|name| name.starts_with("checkpoint-")) => "between checkpoints",
        () => "before the first checkpoint",
    }
}

#[test]
fn a_run_that_is_killed_at_any_moment_ends_with_the_same_bits_when_started_again() {
    let keys = "max_steps: 6\nsave_steps: 1\nsave_total_limit: 2\nval_size: 4\neval_strategy: steps\neval_steps: 1\n\
                load_best_model_at_end: true\nplot_loss: true\n";
    let place = Place::new(keys);
    let started = Instant::now();
    let whole = place.train("whole", &[]).output().unwrap();
    let lasts = started.elapsed();
    assert!(whole.status.success(), "{}", text(&whole));
    let (bits, lines) = (digest(&whole), log(&place.path("whole")));

    let kills = std::env::var("SFT_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(FEW);
    let (mut random, mut moments) = (Random(42), std::collections::BTreeMap::new());
    let mut killed = 0;
    while killed < kills {
        let output = format!("killed-{killed}");
        let limit = lasts.mul_f64(random.next());
        if wait_or_kill(&mut place.start(&output, &[]), limit).is_none() {
            killed += 1;
            *moments.entry(moment(&place.path(&output))).or_insert(0) += 1;
        }
        // One that was faster than the kill has to be as good when nothing is left to do.
        let again = place.train(&output, &["resume_from_checkpoint=null"]).output().unwrap();
        assert!(again.status.success(), "kill {killed} after {limit:?}: {}", text(&again));
        assert_eq!(digest(&again), bits, "kill {killed} after {limit:?}");
        assert_eq!(log(&place.path(&output)), lines, "kill {killed} after {limit:?}");
        std::fs::remove_dir_all(place.path(&output)).unwrap();
    }
    println!("{killed} of {killed} kills resumed to the same bits: {moments:?}");
}
