//! `show_answers`: what the model answers to held-out questions before and after training, side by side.

use std::path::PathBuf;

use serde_json::json;
use sft_config::Stage;
use sft_infer::{Answered, GenerationOptions, Questions, SamplingOptions, exact_match};
use sft_kernels::Device;
use sft_model::Decoder;
use sft_model::workspace::{Purpose, Workspace};
use sft_runs::results::HELD_OUT_ANSWERS;
use sft_train::{Job, setup};

/// The file in the run's folder with every question: one line `{prompt, expected, before, after}` each, or `{prompt,
/// problem}` of one that could not be asked.
/// Rows whose answers are printed; the share and the file count all of them.
const SHOWN: usize = 10;
/// Characters of an answer that are printed.
const WIDTH: usize = 60;

/// The questions of a run, and what the untrained model answered.
pub struct Comparison {
    config: sft_config::RunConfig,
    questions: Questions,
    before: Vec<Answered>,
}

impl Comparison {
    /// Asks the untrained model; `None` where the configuration does not ask for it.
    pub fn begin(job: &Job) -> anyhow::Result<Option<Self>> {
        let count = job.config.show_answers.min(job.eval_rows.len());
        if count == 0 {
            return Ok(None);
        }
        if job.config.stage == Stage::Pt {
            println!(
                "show_answers: nothing is asked with `stage: pt`, whose rows are texts and no questions"
            );
            return Ok(None);
        }
        if !job.config.do_train {
            println!(
                "show_answers: there is no before and after, since nothing is trained; `do_predict: true` answers all rows"
            );
            return Ok(None);
        }
        job.check_memory()?;
        let pipeline = setup::pipeline(&job.config)?;
        let options = GenerationOptions {
            sampling: SamplingOptions::GREEDY,
            skip_special_tokens: true,
            ..GenerationOptions::from_config(&job.config, pipeline.stop_ids())
        };
        let questions = Questions::new(pipeline, options, &job.eval_rows[..count])?;
        let mut comparison = Self { config: job.config.clone(), questions, before: Vec::new() };
        println!("answering {count} held-out questions before training");
        let dev = setup::device(&job.config)?;
        let decoder = dev.install(|| sft_train::trainer::load_decoder(&dev, job))?.decoder;
        comparison.before = comparison.ask(&dev, &decoder)?;
        Ok(Some(comparison))
    }

    /// Asks the trained model, prints both and writes [`HELD_OUT_ANSWERS`].
    pub fn finish(&self, decoder: &Decoder) -> anyhow::Result<()> {
        let dev = setup::device(&self.config)?;
        let after = self.ask(&dev, decoder)?;
        println!("\nheld-out questions, before and after training:");
        for (before, after) in self.before.iter().zip(&after).take(SHOWN) {
            println!("  {}", shortened(&after.asked));
            match (&before.answer, &after.answer) {
                (Ok(said_before), Ok(said_after)) => {
                    println!("    expected  {}", shortened(&after.expected));
                    println!("    before {} {}", mark(before), shortened(said_before));
                    println!("    after  {} {}", mark(after), shortened(said_after));
                }
                (Err(problem), _) | (_, Err(problem)) => println!("    not asked: {problem}"),
            }
        }
        let asked = after.iter().filter(|row| row.answer.is_ok()).count();
        println!(
            "exactly as expected: {:.1} % before, {:.1} % after, of {asked} questions",
            100.0 * exact_match(&self.before),
            100.0 * exact_match(&after),
        );
        if let Some(problem) = after.iter().find_map(|row| row.answer.as_ref().err()) {
            println!("not asked: {} more, the first because {problem}", after.len() - asked);
        }
        println!("all of them: {}", self.write(&after)?.display());
        Ok(())
    }

    fn write(&self, after: &[Answered]) -> anyhow::Result<PathBuf> {
        let line = |(before, after): (&Answered, &Answered)| {
            let line = match (&before.answer, &after.answer) {
                (Ok(said_before), Ok(said_after)) => json!({
                    "prompt": after.asked,
                    "expected": after.expected,
                    "before": said_before,
                    "after": said_after,
                }),
                (Err(problem), _) | (_, Err(problem)) => {
                    json!({"prompt": after.asked, "problem": problem})
                }
            };
            format!("{line}\n")
        };
        let lines: String = self.before.iter().zip(after).map(line).collect();
        let path = self.config.output_dir.join(HELD_OUT_ANSWERS);
        sft_runs::atomic::write(&path, lines.as_bytes())?;
        Ok(path)
    }

    fn ask(&self, dev: &Device, decoder: &Decoder) -> anyhow::Result<Vec<Answered>> {
        let (rows, spec) = (self.config.per_device_eval_batch_size, &decoder.spec);
        let tokens = self.questions.piece().max(rows.min(self.questions.len()));
        let answers = dev.install(|| {
            let mut work =
                Workspace::new(dev, spec, decoder.adapters(), decoder.compute, tokens, Purpose::Forward);
            self.questions.answer(dev, decoder, (&mut work, rows), || false, |_| ())
        })?;
        Ok(answers.expect("nobody stops them"))
    }
}

fn mark(answered: &Answered) -> char {
    if answered.is_exact() { '✓' } else { '✗' }
}

/// One line of at most [`WIDTH`] characters.
fn shortened(text: &str) -> String {
    let line = text.trim().replace('\n', "⏎");
    if line.chars().count() <= WIDTH {
        return line;
    }
    let start: String = line.chars().take(WIDTH - 1).collect();
    format!("{start}…")
}
