//! The program as a process: how it is killed and ended, and what it keeps of its runs.
#![cfg(unix)]

mod chat;
mod digests;
mod ends;
mod hub;
mod kills;
mod ledger;
mod overwrites;
mod place;
mod serve;
mod webui;
mod words;
