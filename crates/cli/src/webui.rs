//! `sft webui`: a page to write a recipe, to start runs and to watch them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use sft_runs::ledger;
use sft_webui::{Options, Webui, kept_key};

use crate::{serve, signals};

/// Opens a page to write a recipe, see what it would do, start it, and watch runs. Paths are relative to the working folder.
/// Runs go on when the page is closed and when this program ends.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, env = "GRADIO_SERVER_NAME", default_value = "127.0.0.1", hide_env_values = true)]
    host: String,
    /// Port to listen on; 0 takes one that is free
    #[arg(long, env = "GRADIO_SERVER_PORT", default_value = "7860", value_parser = serve::port::<7860>, hide_env_values = true)]
    port: u16,
    /// Key that the page has to show [default: one that is made, kept, and printed as part of the address]
    #[arg(long, env = "SFT_WEBUI_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Folder in which commands that were started here are kept [default: webui beside the user's ledger of runs]
    #[arg(long)]
    jobs: Option<PathBuf>,
    /// The ledger of runs; else SFT_LEDGER, or the user's own
    #[arg(long)]
    ledger: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let variable = |name: &str| std::env::var(name).ok();
    let jobs = args.jobs.or_else(|| Some(ledger::data_folder(variable)?.join("webui")));
    let Some(jobs) = jobs else {
        bail!("there is no home folder to keep what is started\nhelp: `--jobs` names a folder for it");
    };
    let given = key(args.key)?;
    let folder = std::env::current_dir().context("the working folder cannot be used")?;
    // A job may work in another folder.
    let jobs = folder.join(jobs);
    let program = std::env::current_exe().context("this program cannot be found again")?;
    // The port first: another one on it is told before that of the same folder.
    let listener = serve::listen(&args.host, args.port)?;
    let address = listener.local_addr()?;
    let kept = || {
        kept_key(&jobs).with_context(|| {
            format!("{}: the key cannot be kept\nhelp: `--jobs` names another folder", jobs.display())
        })
    };
    let key = given.map_or_else(kept, Ok)?;
    // What is started elsewhere writes into the same one.
    let ledger = ledger::place(args.ledger.as_deref(), variable).map(|place| folder.join(place));
    let options = Options { program, folder: folder.clone(), jobs, ledger, key: key.clone() };
    let webui = Webui::new(options)?;
    let closer = webui.closer();
    signals::on_end(move || {
        closer.close();
        std::process::exit(0);
    })?;
    let mut shown = address;
    if address.ip().is_unspecified() {
        shown.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    eprintln!("folder  {}", folder.display());
    match webui.waiting() {
        0 => {}
        1 => eprintln!("jobs    one waits from earlier, and begins now"),
        waiting => eprintln!("jobs    {waiting} wait from earlier, and begin now, one after the other"),
    }
    eprintln!("page    http://{shown}/#key={key}");
    if !address.ip().is_loopback() {
        eprintln!(
            "who has this address can start programs here, and reads it where a network is not encrypted"
        );
    }
    webui.serve(listener)?;
    Ok(ExitCode::SUCCESS)
}

/// A key that an address can hold as it is, and that is not guessed.
fn key(asked: Option<String>) -> anyhow::Result<Option<String>> {
    const LEAST: usize = 8;
    let Some(key) = serve::key("--key", asked)? else { return Ok(None) };
    let is_plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte));
    if !is_plain || key.len() < LEAST {
        bail!(
            "--key: a key has {LEAST} or more letters, digits and marks of `-_.~`\nhelp: leave it out for one that is made"
        );
    }
    Ok(Some(key))
}
