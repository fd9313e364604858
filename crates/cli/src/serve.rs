//! `sft serve`: a model behind OpenAI's chat interface.

use std::net::{TcpListener, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use sft_config::{Purpose, RunConfig};
use sft_infer::slots::Slots;
use sft_infer::{Context, GenerationOptions};
use sft_model::adapter::Last;
use sft_model::spec::DecoderSpec;
use sft_model::workspace::{self, Workspace};
use sft_serve::{Served, Service, Stop};
use sft_train::setup::{self, AnsweringPlan};

use crate::chat;
use crate::recipe::Recipe;
use crate::signals;

/// Tokens of a request, prompt and answer, where nothing else is said and the model takes as many.
const CONTEXT: usize = 8192;

/// Answers requests over HTTP as OpenAI's API does: `POST /v1/chat/completions`. The recipe is that of `sft chat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, env = "API_HOST", default_value = "127.0.0.1", hide_env_values = true)]
    host: String,
    /// Port to listen on; 0 takes one that is free
    #[arg(long, env = "API_PORT", default_value = "8000", value_parser = port::<8000>, hide_env_values = true)]
    port: u16,
    /// Answers in work at a time, which share each reading of the weights
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    rows: u16,
    /// Tokens of a request at most, prompt and answer [default: 8192, or what the model takes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    /// Name of the model [default: that of its folder, or of the adapter's]
    #[arg(long, env = "API_MODEL_NAME", hide_env_values = true)]
    name: Option<String>,
    /// Key that requests have to show
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, model) = args.recipe.read(Purpose::Chat)?;
    let dev = setup::device(&config)?;
    // The small files first, then the port: what is wrong with them is told before anything is loaded.
    let spec = setup::spec(&config)?;
    let pipeline = setup::pipeline(&config)?;
    let (rows, context) = (usize::from(args.rows), context(&spec, args.context)?);
    let plan = AnsweringPlan::new(&config, &spec, rows, context.tokens)?;
    let api_key = key("--api-key", args.api_key)?;
    let listener = listen(&args.host, args.port)?;
    model.fetch_weights()?;
    let (decoder, notes) = setup::decoder(&config, &dev, &spec, Last::Attached)?;
    notes.iter().for_each(|note| eprintln!("{note}"));
    setup::check_tokenizer(&config, pipeline.tokenizer(), &decoder)?;
    chat::print_start(&config, &dev, &decoder, &pipeline);
    let service = Service {
        name: args.name.filter(|name| !name.is_empty()).unwrap_or_else(|| name(&config)),
        options: GenerationOptions::from_config(&config, pipeline.stop_ids()),
        pipeline,
        context,
        // An adapter may have brought rows of new tokens.
        vocab_size: decoder.spec.vocab_size,
        api_key,
    };
    let (of_rows, of_all) = (plan.rows.div_ceil(1 << 20), plan.total().div_ceil(1 << 20));
    let each = context.tokens;
    eprintln!(
        "requests  {rows} at a time of up to {each} tokens: {of_rows} MiB, {of_all} with weights and workspace"
    );
    if !service.offers_tools() {
        eprintln!("tools     are refused: the template does not write them");
    }
    if service.api_key.is_none() && !listener.local_addr()?.ip().is_loopback() {
        eprintln!("anybody who reaches this machine may ask: `--api-key` lets in who has the key alone");
    }
    let keyed = if service.api_key.is_some() { ", with a key" } else { "" };
    eprintln!(
        "serving   {} at http://{}/v1{keyed}; / is a page to try it",
        service.name,
        listener.local_addr()?
    );
    let stop = stop_at_signals()?;
    let (tokens, purpose) = (Slots::tokens(rows, context.tokens), workspace::Purpose::Forward);
    let mut work = Workspace::new(&dev, &decoder.spec, decoder.adapters(), decoder.compute, tokens, purpose);
    let rows = Slots::new(&dev, &decoder, &mut work, (rows, context.tokens)).keeping_conversations();
    sft_serve::serve(listener, service, rows, &stop, print)?;
    Ok(ExitCode::SUCCESS)
}

/// How long a request may be: what was asked for, if the model takes it.
fn context(spec: &DecoderSpec, asked: Option<u32>) -> anyhow::Result<Context> {
    let most = Context::alike(spec);
    let tokens = match asked.map(|tokens| tokens as usize) {
        Some(tokens) if tokens > most.tokens => {
            bail!(
                "--context: {tokens} tokens, and rows of this model have {} at most\nhelp: ask for fewer",
                most.tokens
            )
        }
        Some(tokens) => tokens,
        None => most.tokens.min(CONTEXT),
    };
    let help = match tokens < most.tokens {
        true => "shorten the conversation, or start the server with a larger `--context`",
        false => "shorten the conversation: the model takes no more",
    };
    Ok(Context { name: "--context", tokens, help })
}

/// A port; a variable that is set to nothing says nothing.
pub fn port<const DEFAULT: u16>(text: &str) -> Result<u16, std::num::ParseIntError> {
    if text.is_empty() { Ok(DEFAULT) } else { text.parse() }
}

/// A key that a header can hold.
pub fn key(option: &str, asked: Option<String>) -> anyhow::Result<Option<String>> {
    let key = asked.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
    if key.as_ref().is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        bail!("{option}: a key has letters, digits and marks of ASCII alone\nhelp: choose another");
    }
    Ok(key)
}

/// Listens on the first address of a host that can be listened on.
pub fn listen(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let addresses = (host, port).to_socket_addrs().with_context(|| {
        format!("--host: {host} is no address of this machine\nhelp: 127.0.0.1 for this machine alone, 0.0.0.0 for others, too")
    })?;
    let mut refused = None;
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = Some(error),
        }
    }
    let why = refused.map_or_else(String::new, |error| format!(": {error}"));
    bail!("{host}:{port} cannot be listened on{why}\nhelp: another `--port`, or 0 for one that is free")
}

/// The last part of the folder's name: the adapter's, if there is one.
fn name(config: &RunConfig) -> String {
    let folder = config.adapter_name_or_path.last().unwrap_or(&config.model_name_or_path);
    let whole = Path::new(folder).canonicalize().unwrap_or_else(|_| folder.into());
    let of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    of(Path::new(folder)).or_else(|| of(&whole)).unwrap_or_else(|| folder.clone())
}

/// The first signal lets answers in work come to their end, the second ends the program.
fn stop_at_signals() -> anyhow::Result<Stop> {
    let (stop, asked) = (Stop::default(), AtomicBool::new(false));
    let handle = stop.clone();
    signals::on_end(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!(
            "ending: answers in work come to their end, waiting ones are sent away; once more ends at once"
        );
        handle.stop();
    })?;
    Ok(stop)
}

/// A line for each request.
fn print(served: &Served) {
    let Served { prompt_tokens, cached_tokens, tokens, .. } = *served;
    let took = served.took.as_secs_f64();
    let finish = served.finish.map_or("broken off", |finish| finish.name());
    let speed = match served.to_first_token.map(|first| took - first.as_secs_f64()) {
        Some(answering) if tokens > 1 && answering > 0.0 => {
            format!(", {:.1} tokens/s", (tokens - 1) as f64 / answering)
        }
        _ => String::new(),
    };
    eprintln!("{prompt_tokens} tokens ({cached_tokens} kept) + {tokens} in {took:.1} s{speed}: {finish}");
}
