//! What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sft_runs::trainer_log::LogLine;
use sft_train::events::{Event, Observer, Progress};

/// Plain lines come at most this often.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows a run.
pub struct Screen {
    bar: Option<ProgressBar>,
    interrupts: Arc<AtomicUsize>,
    told: bool,
    last_line: Option<Instant>,
    last_answer: Option<Instant>,
    started: Instant,
    first_step: u64,
    tokens: usize,
    seconds: f64,
}

impl Screen {
    /// Watches a run of `total_steps`.
    pub fn new(total_steps: u64, interrupts: Arc<AtomicUsize>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total_steps);
            let style = ProgressStyle::with_template("{bar:24.cyan/blue} {pos}/{len} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self {
            bar,
            interrupts,
            told: false,
            last_line: None,
            last_answer: None,
            started: Instant::now(),
            first_step: 0,
            tokens: 0,
            seconds: 0.0,
        }
    }

    /// Leaves the bar where the run has ended.
    pub fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => println!("{text}"),
        }
    }

    fn step(&mut self, p: &Progress) {
        self.tokens += p.tokens;
        self.seconds += p.seconds;
        let done = p.step - self.first_step;
        let per_step = self.started.elapsed().as_secs_f64() / done.max(1) as f64;
        let left = sft_runs::timing::format_seconds(per_step * (p.total_steps - p.step) as f64);
        let text = format!(
            "loss {:.4}  lr {:.2e}  grad {:.3}  {:.0} tokens/s  epoch {:.2}  left {left}",
            p.loss,
            p.learning_rate,
            p.grad_norm,
            self.tokens as f64 / self.seconds.max(1e-9),
            p.epoch,
        );
        match &self.bar {
            Some(bar) => {
                bar.set_length(p.total_steps);
                bar.set_position(p.step);
                bar.set_message(text);
            }
            None => {
                let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
                if due || p.step == p.total_steps {
                    println!("step {}/{}  {text}", p.step, p.total_steps);
                    self.last_line = Some(Instant::now());
                }
            }
        }
        if self.interrupts.load(Ordering::Relaxed) > 0 && !self.told {
            self.told = true;
            self.say("interrupted: writing a checkpoint (press Ctrl-C twice more to end at once)");
        }
    }

    fn answered(&mut self, done: usize, of: usize) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
                bar.set_message("rows answered");
            }
            None => {
                let due = self.last_answer.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
                if due || done == of {
                    println!("{done} of {of} rows answered");
                    self.last_answer = Some(Instant::now());
                }
            }
        }
    }

    fn evaluated(&self, line: &LogLine, is_best: bool) {
        let loss = line.eval_loss.unwrap_or(f64::NAN);
        let accuracy =
            line.eval_accuracy.map_or(String::new(), |a| format!("  token accuracy {:.1} %", a * 100.0));
        let scores = line.eval_scores.map_or(String::new(), |scores| {
            format!("  BLEU-4 {:.2}  ROUGE-L {:.2}", scores.bleu_4, scores.rouge_l)
        });
        let best = if is_best { "  (best so far)" } else { "" };
        self.say(&format!(
            "evaluation at step {}: loss {loss:.4}  perplexity {:.3}{accuracy}{scores}{best}",
            line.current_steps,
            loss.exp()
        ));
    }
}

impl Observer for Screen {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready { resumed_at, notes } => {
                self.started = Instant::now();
                self.first_step = *resumed_at;
                notes.iter().for_each(|note| self.say(note));
                if *resumed_at > 0 {
                    self.say(&format!("resumed after step {resumed_at}"));
                    if let Some(bar) = &self.bar {
                        bar.set_position(*resumed_at);
                    }
                }
            }
            Event::Step(progress) => self.step(progress),
            Event::Logged(_) => {}
            Event::Evaluated { line, is_best } => self.evaluated(line, *is_best),
            Event::Answered { done, of } => self.answered(*done, *of),
            Event::Predicted { path } => self.say(&format!("answers: {}", path.display())),
            Event::Warned { step: 0, text } => self.say(&format!("warning: {text}")),
            Event::Warned { step, text } => self.say(&format!("warning after step {step}: {text}")),
            Event::Saved { folder } => self.say(&format!("saved {}", folder.display())),
            Event::StoppedEarly { evaluations } => {
                self.say(&format!("stopping early: no better evaluation in the last {evaluations}"));
            }
            Event::BestLoaded { step } => {
                self.say(&format!("the best weights are those of step {step}: taken"))
            }
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed) > 0
    }
}
