//! Fuzzing without a fuzzer: inputs put together of good ones and of what breaks parsers, the same at every run.
//!
//! A few thousand inputs of each kind are tried by `cargo test`; more by
//! `SFT_FUZZ_INPUTS=1000000 cargo test --release -p sft-data --test fuzz -- --nocapture`. Nothing may panic, take longer
//! than [`LONGEST`], or leave the process with more memory than [`MOST_BYTES`].

mod byte_tokenizer;

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use sft_data::formats::{AlpacaColumns, Format, TurnColumns, detect};
use sft_data::rows::{Rows, Source};
use sft_data::shuffle::Pcg64;
use sft_data::template::clock::Clock;
use sft_data::template::jinja::{JinjaTemplate, value_of};

const LONGEST: Duration = Duration::from_secs(30);
const MOST_BYTES: u64 = 3 << 30;

fn inputs() -> u64 {
    std::env::var("SFT_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
}

/// Puts inputs together.
struct Mutator<'a> {
    rng: Pcg64,
    seeds: &'a [&'a str],
    words: &'a [&'a str],
}

impl Mutator<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.rng.at_most(n as u64 - 1) as usize
    }

    /// A good input with a few faults.
    fn input(&mut self) -> Vec<u8> {
        let mut bytes = self.seeds[self.below(self.seeds.len())].as_bytes().to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len() + 1);
            match self.below(8) {
                0 => bytes.insert(at, self.rng.next_u32() as u8),
                1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                2 => bytes.truncate(at),
                3 if at < bytes.len() => {
                    let to = at + self.below(bytes.len() - at) + 1;
                    bytes.drain(at..to);
                }
                4 => {
                    // A part of it, or of another input, once more.
                    let other = self.seeds[self.below(self.seeds.len())].as_bytes();
                    let from = self.below(other.len());
                    let to = from + self.below(other.len() - from) + 1;
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
                5 => {
                    let word = self.words[self.below(self.words.len())].repeat(self.below(40) + 1);
                    bytes.splice(at..at, word.bytes());
                }
                _ => {
                    let word = self.words[self.below(self.words.len())];
                    bytes.splice(at..at, word.bytes());
                }
            }
        }
        bytes
    }
}

/// Tries inputs; says which one it was where one panics or takes too long.
fn fuzz(name: &str, seeds: &[&str], words: &[&str], mut attempt: impl FnMut(&[u8], &mut Pcg64) -> bool) {
    let mut mutator = Mutator { rng: Pcg64::new(42), seeds, words };
    let (mut good, mut longest, started) = (0_u64, Duration::ZERO, Instant::now());
    let hook = std::panic::take_hook();
    for number in 0..inputs() {
        let input = mutator.input();
        let begun = Instant::now();
        let tried = catch_unwind(AssertUnwindSafe(|| attempt(&input, &mut mutator.rng)));
        let took = begun.elapsed();
        longest = longest.max(took);
        let shown = String::from_utf8_lossy(&input);
        match tried {
            Ok(is_good) => good += u64::from(is_good),
            Err(_) => panic!("{name}: input {number} panics: {shown:?}"),
        }
        assert!(took < LONGEST, "{name}: input {number} took {took:?}: {shown:?}");
    }
    std::panic::set_hook(hook);
    let peak = peak_bytes();
    println!(
        "{name}: {} inputs, {good} of them good, longest {longest:.0?}, peak memory {} MiB, {:.0?} in all",
        inputs(),
        peak >> 20,
        started.elapsed()
    );
    assert!(good > 0, "{name}: no input is good, so nothing was reached");
    assert!(peak < MOST_BYTES, "{name}: {peak} bytes");
}

/// The most memory that this process ever had; 0 where the system does not say.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) << 10
}

/// Folders in memory where there are any: a million files are written.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir())
    } else {
        tempfile::tempdir()
    }
    .unwrap()
}

#[test]
fn rows_and_formats_survive_any_bytes() {
    let seeds = [
        "[{\"instruction\": \"a\", \"input\": \"b\", \"output\": \"c\"}, {\"instruction\": \"d\", \"output\": \"\\u00e4\"}]",
        "{\"instruction\": \"a\", \"output\": \"b\", \"history\": [[\"x\", \"y\"]], \"loss\": [0, 1]}\n{\"instruction\": 1}\n",
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"gpt\", \"value\": \"a\"}], \"tools\": \"[]\"}\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"q\"}]}, {\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}}]}, {\"role\": \"tool\", \"content\": \"r\"}, {\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0}]}\n",
        "instruction,input,output\n\"a, \"\"b\"\"\nc\",,d\nx,y,z\n",
        "plain text\nof two lines\n",
    ];
    let words = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        ",",
        ":",
        "\\",
        "\\u",
        "\\ud800",
        "null",
        "true",
        "-1e999",
        "\n",
        "\r\n",
        "\0",
        "\u{feff}",
        "\u{1f}\u{8b}",
        "(\u{b5}/\u{fd}",
        "BZh9",
        "PAR1",
        "ARROW1\0\0",
        "\"from\": \"function_call\"",
        "<tool_call>",
        "<think>",
        "\"history\": ",
        "\"role\": \"system\"",
        "\"masked\": true",
    ];
    let ends = ["json", "jsonl", "csv", "tsv", "txt", "parquet", "arrow", "json.gz", "csv.xz"];
    let folder = folder();
    let paths: Vec<PathBuf> = ends.iter().map(|end| folder.path().join(format!("rows.{end}"))).collect();
    std::panic::set_hook(Box::new(|_| {})); // The parquet decoder's panics are caught and expected.
    let formats = [
        Format::Alpaca(AlpacaColumns {
            history: Some("history".into()),
            loss: Some("loss".into()),
            ..AlpacaColumns::default()
        }),
        Format::Sharegpt(TurnColumns { tools: Some("tools".into()), ..TurnColumns::sharegpt() }),
        Format::OpenAi(TurnColumns::openai()),
    ];
    fuzz("rows", &seeds, &words, |input, rng| {
        let path = &paths[rng.at_most(paths.len() as u64 - 1) as usize];
        fs::File::create(path).and_then(|mut file| file.write_all(input)).unwrap();
        let Ok(source) = Source::open(path, None) else { return false };
        let mut rows = Vec::new();
        for row in Rows::open("fuzz", &source) {
            match row {
                Ok(Ok(row)) => rows.push(row),
                Ok(Err(_)) => {}
                Err(_) => break,
            }
        }
        let detected = detect(&rows).ok();
        let formats = detected.iter().chain(&formats);
        formats
            .flat_map(|format| rows.iter().map(|row| format.convert(row.clone())))
            .filter(Result::is_ok)
            .count()
            > 0
    });
}

#[test]
fn templates_survive_any_text() {
    let seeds = [
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "{%- set ns = namespace(found=false, n=0) -%}{%- for m in messages -%}{%- if m.role == 'user' and not ns.found -%}{%- set ns.found = true -%}{%- continue -%}{%- endif -%}{%- set ns.n = ns.n + loop.index -%}{{ m | tojson(indent=2) }}{%- endfor -%}{{ ns.n }}",
        "{% macro show(m, deep=false) %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endmacro %}{% generation %}{{ show(messages[-1]) }}{% endgeneration %}",
        "{% if tools is defined and tools %}{{ tools | map(attribute='name') | join(', ') }}{% else %}{{ strftime_now('%d %b %Y') }}{% endif %}{{ raise_exception('no') if messages | length > 9 }}",
        "{% for m in messages | selectattr('role', 'equalto', 'user') | list %}{{ m.content[:3] ~ m.content[::-1] }}{% endfor %}{{ range(5) | list | string | replace('1', 'x') }}",
    ];
    let words = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-%}",
        "{% for i in range(999999) %}",
        "{% endfor %}",
        "{% if ",
        "{% endif %}",
        "{% set x = x ~ x %}",
        "{% set n = namespace(l=[1]) %}",
        "{% set n.l = n %}",
        "{% set n.l = [n.l, n.l] %}",
        " * 99999999999",
        " | length",
        " | tojson",
        "('a' * 9999)",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "[",
        "]",
        "(",
        ")",
        " + ",
        " ~ ",
        " is iterable ",
        "none",
        "loop.index",
        ".items()",
        "|center(99999)",
        "%",
        "'",
        "\"",
        "\\",
        "\u{1f600}",
        "{% include 'x' %}",
        "{% extends 'x' %}",
        " // 0",
        " % 0",
        "** 999",
    ];
    let variables = json!({
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "what is ü?"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\na", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "{}"},
        ],
        "tools": [{"name": "f", "parameters": {"type": "object"}}], "bos_token": "<s>", "add_generation_prompt": true,
    });
    fuzz("templates", &seeds, &words, |input, _| {
        let source = String::from_utf8_lossy(input);
        let Ok(template) = JinjaTemplate::new(&source, Clock::Fixed(1_721_952_000)) else { return false };
        template.render(value_of(&variables)).is_ok()
    });
}

#[test]
fn special_tokens_and_borders_survive_any_message() {
    use sft_data::conversation::{Conversation, Message, Origin, Role};
    use sft_data::labels::Policy;
    use sft_data::pipeline::Pipeline;
    use sft_data::template::TemplateOptions;

    let template = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let tokenizer = byte_tokenizer::merging_tokenizer(Some(template));
    let policy = Policy { cutoff_len: 120, ..Policy::default() };
    let pipeline = Pipeline::new(tokenizer, None, &TemplateOptions::default(), policy).unwrap();
    let seeds = ["what is <|im_end|>?|an answer", "\n\nq\n\n|\n\na\n", "a|b|c|d"];
    // Not `<s>`: the proof refuses an answer that spells it twice, as it should.
    let words =
        ["<|im_start|>", "<|im_end|>", "</s>", "assistant\n", "\n\n", "|", "\u{e4}", "\u{1f600}", "\0"];
    fuzz("messages", &seeds, &words, |input, _| {
        let text = String::from_utf8_lossy(input);
        let role = |at| if at % 2 == 0 { Role::User } else { Role::Assistant };
        let mut messages: Vec<Message> =
            text.split('|').enumerate().map(|(at, words)| Message::text(role(at), words)).collect();
        if messages.len() % 2 == 1 {
            messages.push(Message::text(Role::Assistant, "x"));
        }
        let origin = Origin { dataset: "fuzz".into(), file: PathBuf::from("fuzz").into(), line: 1, row: 0 };
        let (examples, report) = pipeline.encode_all(&[Conversation { messages, tools: None, origin }]);
        assert!(report.proof.holds(), "{:?}", report.proof.violations);
        !examples.is_empty()
    });
}
