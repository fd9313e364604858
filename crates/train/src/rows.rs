//! The rows of a run, tokenised and proved (stages 2 to 6 of the walk): made, read from what an earlier start kept, or
//! opened as a stream.

use std::time::Instant;

use sft_config::RunConfig;
use sft_data::cache::{Found, Place, Tokenised};
use sft_data::conversation::Conversation;
use sft_data::dataset::{self, LoadedData};
use sft_data::encoder::Encoder;
use sft_data::labels::Example;
use sft_data::pipeline::EncodeReport;
use sft_data::template::clock::Clock;
use sft_data::template::saved::Told;

use crate::{TrainError, setup};

/// Rows whose tokens are made faster than this are not kept: reading them costs as much.
const WORTH_KEEPING_S: f64 = 1.0;

/// Tokenised rows, and what is to be said of where they are from.
#[derive(Debug, Default)]
pub struct Rows {
    /// The rows; with `streaming` those to evaluate on alone.
    pub tokenised: Tokenised,
    /// How they were come by, in words.
    pub note: Option<String>,
    /// What the folders of the run are told of template and tokens: made while the tokenizer is there.
    pub told: Option<Told>,
}

impl Rows {
    /// Makes the rows of a run, or reads them from what was kept.
    ///
    /// # Errors
    /// Whatever is wrong with the data, tokenizer or template; rows that break a rule; nothing to train on.
    pub fn prepare(config: &RunConfig) -> Result<Self, TrainError> {
        if config.streaming {
            return make(config, None);
        }
        let place = match &config.tokenized_path {
            Some(folder) => Some(Place::Named(folder.clone())),
            None => Place::of_user(),
        };
        let Some(place) = place else { return make(config, None) };
        let started = Instant::now();
        let key = setup::cache_key(config)?;
        let mut note = None;
        if !config.overwrite_cache {
            match place.find(&key)? {
                Found::Rows(rows) => {
                    let seconds = started.elapsed().as_secs_f64();
                    let note = format!(
                        "rows tokenised earlier were read in {seconds:.2} s: {}",
                        place.file(&key).display()
                    );
                    return Ok(Self { tokenised: *rows, note: Some(note), told: setup::told(config)? });
                }
                Found::Nothing => {}
                Found::Unusable(reason) => note = Some(format!("rows are tokenised anew: {reason}")),
            }
        }
        let (started, day) = (Instant::now(), Clock::today());
        let mut rows = make(config, note)?;
        let is_named = matches!(place, Place::Named(_));
        if is_named || started.elapsed().as_secs_f64() > WORTH_KEEPING_S {
            match place.keep(&key, &rows.tokenised, &day) {
                Err(error) if is_named => return Err(error.into()),
                Err(error) => rows.note = Some(format!("tokenised rows are not kept: {error}")),
                Ok(()) => {}
            }
        }
        Ok(rows)
    }
}

fn make(config: &RunConfig, note: Option<String>) -> Result<Rows, TrainError> {
    let encoder = setup::encoder(config)?;
    let options = setup::dataset_options(config);
    let data = dataset::load(&options)?;
    let (train, encoded) = encoder.encode(&data.train);
    encoded.proof.require()?;
    if !config.streaming {
        check_prompts(&encoded, config.cutoff_len)?;
        if train.is_empty() && config.do_train {
            return Err(nothing_left("training", &encoded));
        }
    }
    let limit = options.problem_limit;
    limit.check(&encoded.refused, encoded.rows as u64, "refused by the template")?;
    let (eval, eval_encoded) = encode_eval(&encoder, &data)?;
    limit.check(
        &eval_encoded.refused,
        eval_encoded.rows as u64,
        "refused by the template (rows to evaluate on)",
    )?;
    let LoadedData { eval: eval_rows, reports, problems, .. } = data;
    let told = setup::told_by(config, &encoder)?;
    let tokenised = Tokenised { train, eval, eval_rows, reports, problems, encoded, eval_encoded };
    Ok(Rows { tokenised, note, told })
}

/// The examples of the evaluation rows, of each data set by itself or of all, and what became of all rows.
type EvalExamples = (Vec<(Option<String>, Vec<Example>)>, EncodeReport);

fn encode_eval(encoder: &Encoder, data: &LoadedData) -> Result<EvalExamples, TrainError> {
    if data.eval.is_empty() {
        return Ok((Vec::new(), EncodeReport::default()));
    }
    let sets: Vec<(Option<String>, &[Conversation])> = match data.eval_sets.as_slice() {
        [] => vec![(None, &data.eval)],
        sets => sets.iter().map(|set| (Some(set.name.clone()), &data.eval[set.rows.clone()])).collect(),
    };
    let (mut encoded_sets, mut all) = (Vec::new(), EncodeReport::default());
    for (name, rows) in sets {
        let (examples, encoded) = encoder.encode(rows);
        encoded.proof.require()?;
        if examples.is_empty() {
            return Err(nothing_left(&format!("evaluation{}", of(&name)), &encoded));
        }
        encoded_sets.push((name, examples));
        all.merge(encoded);
    }
    Ok((encoded_sets, all))
}

fn of(name: &Option<String>) -> String {
    name.as_ref().map_or(String::new(), |name| format!(" ({name})"))
}

/// Refuses a `cutoff_len` that leaves no prompt whole: every row would teach the model to answer a part of its question.
pub fn check_prompts(encoded: &EncodeReport, cutoff_len: usize) -> Result<(), TrainError> {
    match encoded.shortest_prompt {
        Some(shortest) if shortest >= cutoff_len => Err(TrainError::NothingToTrain {
            what: format!(
                "cutoff_len: {cutoff_len} leaves no prompt whole: the shortest has {shortest} tokens"
            ),
            help: format!("raise cutoff_len above {shortest}, or take a shorter template or system message"),
        }),
        _ => Ok(()),
    }
}

fn nothing_left(kind: &str, encoded: &EncodeReport) -> TrainError {
    let first = encoded.refused.iter().chain(&encoded.untrained).next();
    let example = first.map_or(String::new(), |problem| format!("; the first: {problem}"));
    TrainError::NothingToTrain {
        what: format!(
            "none of {} {kind} rows is left: {} were refused by the template, {} have no supervised token{example}",
            encoded.rows,
            encoded.refused.len(),
            encoded.untrained.len()
        ),
        help: "raise cutoff_len if it is shorter than the prompts; look at the rows with `sft data show`"
            .into(),
    }
}
