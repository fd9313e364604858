//! `sft chat`: a conversation with a model, on a terminal or through a pipe.
//!
//! On a terminal lines are edited, answers stream, Ctrl-C ends an answer and Ctrl-D the conversation. Through a pipe
//! each line is a turn and standard output holds the answers alone.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};

use rustyline::error::ReadlineError;
use sft_config::{Purpose, RunConfig};
use sft_data::pipeline::Pipeline;
use sft_infer::{Answer, ChatSession, GenerationOptions, Generator, InferError, StopReason};
use sft_kernels::Device;
use sft_model::Decoder;
use sft_model::adapter::Last;
use sft_train::setup;

use crate::recipe::Recipe;

/// Talks to a model, with or without an adapter: `model_name_or_path=…`, `adapter_name_or_path=…`, `template=…`,
/// `temperature=…` and the like stand in a file or on the command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, model) = args.recipe.read(Purpose::Chat)?;
    let dev = setup::device(&config)?;
    // The small files first: a wrong path is told at once.
    let spec = setup::spec(&config)?;
    let pipeline = setup::pipeline(&config)?;
    model.fetch_weights()?;
    let (decoder, notes) = setup::decoder(&config, &dev, &spec, Last::Attached)?;
    notes.iter().for_each(|note| eprintln!("{note}"));
    setup::check_tokenizer(&config, pipeline.tokenizer(), &decoder)?;
    print_start(&config, &dev, &decoder, &pipeline);
    let options = GenerationOptions::from_config(&config, pipeline.stop_ids());
    // `default_system` is the pipeline's: it stands in training rows without a system prompt too.
    let session = ChatSession::new(Generator::new(&dev, &decoder), &pipeline, options, None);
    match std::io::stdin().is_terminal() {
        true => Talk { session, config: &config }.on_terminal()?,
        false => return Talk { session, config: &config }.through_pipe(),
    }
    Ok(ExitCode::SUCCESS)
}

/// What runs and how, on standard error: standard output is for answers.
pub fn print_start(config: &RunConfig, dev: &Device, decoder: &Decoder, pipeline: &Pipeline) {
    for key in &config.no_effect {
        eprintln!("without effect: {key}");
    }
    setup::idle_rope_scaling(config).iter().for_each(|note| eprintln!("{note}"));
    let spec = &decoder.spec;
    let adapters = match config.adapter_name_or_path.as_slice() {
        [] => "none".to_owned(),
        folders => folders.join(", "),
    };
    let sampling = match config.do_sample && config.temperature > 0.0 {
        false => "the most likely token".to_owned(),
        true => format!(
            "drawn: temperature {}, top_k {}, top_p {}, seed {}",
            config.temperature, config.top_k, config.top_p, config.seed
        ),
    };
    let millions = decoder.parameters() as f64 / 1e6;
    eprintln!("model     {} ({}, {millions:.1} M parameters)", config.model_name_or_path, spec.model_type);
    eprintln!("adapter   {adapters}");
    eprintln!("template  {}", pipeline.template().name());
    let quantization = setup::quantization(config).ok().flatten();
    let quantized = quantization.map_or(String::new(), |way| format!(", linear layers in {way}"));
    eprintln!("compute   {}{quantized}, {} threads, {}", decoder.compute.name(), dev.threads(), dev.isa());
    eprintln!("answers   {sampling}; at most {}", longest_answer(config));
}

fn longest_answer(config: &RunConfig) -> String {
    match config.max_new_tokens {
        0 => format!("{} tokens with the prompt (`max_length`)", config.max_length),
        tokens => format!("{tokens} tokens (`max_new_tokens`)"),
    }
}

/// What a line asks for.
enum Line<'a> {
    Nothing,
    Clear,
    Exit,
    Question(&'a str),
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        match line.trim() {
            "" => Line::Nothing,
            "clear" => Line::Clear,
            "exit" => Line::Exit,
            // Spaces are tokens, too.
            _ => Line::Question(line.trim_end_matches(['\r', '\n'])),
        }
    }
}

struct Talk<'a> {
    session: ChatSession<'a>,
    config: &'a RunConfig,
}

impl Talk<'_> {
    fn on_terminal(mut self) -> anyhow::Result<()> {
        interrupt::listen()?;
        let mut editor = rustyline::DefaultEditor::new()?;
        println!("Use `clear` to remove the history, use `exit` to exit the application.");
        loop {
            println!();
            let line = match editor.readline("User: ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    println!("(`exit` or Ctrl-D ends the conversation)");
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            match Line::of(&line) {
                Line::Nothing => continue,
                Line::Exit => return Ok(()),
                Line::Clear => {
                    self.session.clear();
                    println!("History has been removed.");
                }
                Line::Question(question) => {
                    // A history that is full or refuses a line is no reason to stop.
                    let _ = editor.add_history_entry(question);
                    print!("Assistant: ");
                    interrupt::begin();
                    let answer = self.ask(question);
                    interrupt::end();
                    match answer {
                        Ok(answer) => self.explain_end(&answer),
                        Err(error) => match error.downcast::<InferError>() {
                            Ok(refused) => eprintln!("\nerror: {refused}"),
                            Err(fatal) => return Err(fatal),
                        },
                    }
                }
            }
        }
    }

    /// A question that is refused leaves an empty line in the place of its answer, and a failure at the end.
    fn through_pipe(mut self) -> anyhow::Result<ExitCode> {
        let mut end = ExitCode::SUCCESS;
        for (number, line) in (1..).zip(std::io::stdin().lock().split(b'\n')) {
            let line = line?;
            let mut refuse = |reason: &dyn std::fmt::Display| {
                end = ExitCode::FAILURE;
                println!();
                eprintln!("line {number}: error: {reason}");
            };
            let Ok(line) = std::str::from_utf8(&line) else {
                refuse(&"it is not UTF-8\nhelp: convert the text, for example with iconv");
                continue;
            };
            match Line::of(line) {
                Line::Nothing => {}
                Line::Exit => break,
                Line::Clear => self.session.clear(),
                Line::Question(question) => match self.ask(question) {
                    Ok(answer) => self.explain_end(&answer),
                    Err(error) => refuse(&error.downcast::<InferError>()?),
                },
            }
        }
        Ok(end)
    }

    /// Prints the answer as it comes, and a line break.
    fn ask(&mut self, question: &str) -> anyhow::Result<Answer> {
        let mut out = std::io::stdout().lock();
        let mut written = out.flush();
        let answer = self.session.ask(question, |piece| {
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            match written.is_err() || interrupt::asked() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        written.and_then(|()| writeln!(out))?;
        Ok(answer)
    }

    fn explain_end(&self, answer: &Answer) {
        match answer.reason {
            StopReason::Stop => {}
            StopReason::Cancelled => eprintln!("(interrupted)"),
            StopReason::Length => eprintln!("(cut: at most {})", longest_answer(self.config)),
            StopReason::Context => eprintln!(
                "(cut: {} tokens fill the model's context; `clear` begins anew)",
                answer.prompt_tokens + answer.tokens
            ),
        }
    }
}

/// Ctrl-C during an answer ends the answer; a second one, and any signal at other times, the program.
mod interrupt {
    use super::{AtomicU8, Ordering};
    use crate::signals;

    const IDLE: u8 = 0;
    const ANSWERING: u8 = 1;
    const ASKED: u8 = 2;

    static STATE: AtomicU8 = AtomicU8::new(IDLE);

    pub fn listen() -> anyhow::Result<()> {
        signals::on_end(|| {
            let begun = STATE.compare_exchange(ANSWERING, ASKED, Ordering::Relaxed, Ordering::Relaxed);
            if begun.is_err() {
                std::process::exit(130);
            }
        })?;
        Ok(())
    }

    pub fn begin() {
        STATE.store(ANSWERING, Ordering::Relaxed);
    }

    pub fn end() {
        STATE.store(IDLE, Ordering::Relaxed);
    }

    pub fn asked() -> bool {
        STATE.load(Ordering::Relaxed) == ASKED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clear_and_exit_are_words_only_when_they_stand_alone() {
        assert!(matches!(Line::of(" clear \n"), Line::Clear));
        assert!(matches!(Line::of("exit"), Line::Exit));
        assert!(matches!(Line::of("  \n"), Line::Nothing));
        assert!(matches!(Line::of("exit the room\n"), Line::Question("exit the room")));
    }
}
