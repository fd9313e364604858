//! Writes a named template as Jinja, for the folder of a model that was trained with it.
//!
//! In: the slots of a template with the options of a run → out: a chat template that renders a whole conversation as
//! training did and, with `add_generation_prompt`, what inference asks. transformers, vLLM and the like read it from
//! `tokenizer_config.json`; they know nothing of LLaMA-Factory's templates.
//!
//! One thing cannot be written: slots are tokenised one by one, and Jinja gives a text that is tokenised as a whole. Ids
//! are the same for byte-level tokenizers (Qwen, Llama 3, GPT-2). Those of SentencePiece (Llama 2, Phi 3) put a mark of a
//! word's beginning before each slot, which the whole text has not: an answer then begins without its space.

use super::{Kind, NamedTemplate, Slot};
use crate::template::tools::ToolFormat;

/// The conversation: roles in turn, results of several calls joined. `SYSTEM`, `USER`, … are filled in.
const CONVERSATION: &str = include_str!("written.jinja");

/// The system message is part of the first question.
const LEAD: &str = "    {%- if loop.first -%}
      {%- set content = ns.lead ~ content -%}
    {%- endif -%}
";

/// The end of the last answer, where turns share it.
const SHARED_END: &str = "{%- if not add_generation_prompt -%}
  {{- eos_token -}}
{%- endif -%}
";

/// What is asked begins with an empty thought, unless the model is to think.
const ASKED_THOUGHT: &str = "{%- if add_generation_prompt and thinking is not true -%}
  {{- «EMPTY_THOUGHT» -}}
{%- endif -%}
";

impl NamedTemplate {
    /// The template as Jinja; `last_turn_only` as in [`crate::template::Template::render`].
    pub(in crate::template) fn written(&self, last_turn_only: bool) -> String {
        let joined = self.kind == Kind::SystemInQuestion;
        let reasons = self.kind == Kind::Reasoning;
        let only_if = |wanted: bool, text: &str| if wanted { text.to_owned() } else { String::new() };
        let thinking = self.enable_thinking.map_or("none", |thinks| if thinks { "true" } else { "false" });
        let thinking = format!(
            "{{%- set thinking = enable_thinking if enable_thinking is defined else {thinking} -%}}\n"
        );
        let system = match joined {
            // Inside of the first question, text alone, as in training.
            true => format!(
                "{{%- set ns.lead = {} -%}}",
                slots(self.system.get(..1).unwrap_or_default(), "system")
            ),
            false => format!("{{{{- {} -}}}}", slots(&self.system, "system")),
        };
        let prefix = format!("{{{{- {} -}}}}\n", slots(&self.prefix, "''"));
        let (open, close) = &self.thought_words;
        // Sections first: they have places of their own.
        let parts = [
            ("THOUGHTS", only_if(reasons, include_str!("thoughts.jinja"))),
            ("ASKED_THOUGHT", only_if(reasons, ASKED_THOUGHT)),
            ("SHARED_END", only_if(self.shared_end.is_some(), SHARED_END)),
            ("THINKING", only_if(reasons, &thinking)),
            ("LEAD", only_if(joined, LEAD)),
            ("OFFER", offer(self.offer_format).to_owned()),
            ("CALLS", calls(self.call_format).to_owned()),
            ("PREFIX", only_if(!self.prefix.is_empty(), &prefix)),
            ("SYSTEM", system),
            ("DEFAULT_SYSTEM", quoted(&self.default_system)),
            ("USER", slots(&self.user, "content")),
            ("RESULTS", slots(&self.observation, "ns.results")),
            ("ASSISTANT", slots(&self.assistant, "content")),
            ("FUNCTION", slots(&self.function, "content")),
            ("FORGETS", (last_turn_only && !self.preserve_thinking).to_string()),
            ("EMPTY_THOUGHT", quoted(&self.empty_thought)),
            ("OPEN_WORD", quoted(open.trim())),
            ("CLOSE_WORD", quoted(close.trim())),
            ("BEHIND_THOUGHTS", quoted(self.behind_thoughts())),
            ("OPEN", quoted(open)),
            ("CLOSE", quoted(close)),
        ];
        parts
            .iter()
            .fold(CONVERSATION.to_owned(), |text, (name, value)| text.replace(&format!("«{name}»"), value))
    }
}

/// Slots as one Jinja expression; `content` is the expression that fills the hole.
fn slots(slots: &[Slot], content: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for slot in slots {
        match slot {
            Slot::Text(text) => match text.split_once("{{content}}") {
                Some((before, after)) => {
                    parts.extend([numbered(before), content.to_owned(), numbered(after)])
                }
                None => parts.push(numbered(text)),
            },
            Slot::Special { special } => parts.push(format!("({special} or '')")),
            Slot::Token { token } => parts.push(quoted(token)),
        }
    }
    parts.retain(|part| part != "''");
    match parts.is_empty() {
        true => "''".to_owned(),
        false => parts.join(" ~ "),
    }
}

/// Text with the number of the turn where it has a place for it.
fn numbered(text: &str) -> String {
    let pieces: Vec<String> = text.split("{{idx}}").map(quoted).collect();
    pieces.join(" ~ ns.turn ~ ")
}

/// A Jinja string.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n").replace('\t', "\\t");
    format!("'{escaped}'")
}

/// How tools are written, a format: statements that set `ns.offer` as [`ToolFormat::offer`] does, and statements that
/// set `ns.calls` from the list `calls` as [`ToolFormat::calls`] does.
const TOOLS: [(ToolFormat, &str, &str); 4] = [
    (ToolFormat::Default, include_str!("offer_default.jinja"), include_str!("calls_default.jinja")),
    (ToolFormat::Llama3, include_str!("offer_llama3.jinja"), include_str!("calls_llama3.jinja")),
    (ToolFormat::Mistral, include_str!("offer_mistral.jinja"), include_str!("calls_mistral.jinja")),
    (ToolFormat::Qwen, include_str!("offer_qwen.jinja"), include_str!("calls_qwen.jinja")),
];

/// Stands for a format that is not in [`TOOLS`]: tools are refused rather than written in another way.
const NO_TOOLS: &str = "{{- raise_exception('this template cannot write tools') -}}\n";

fn offer(format: ToolFormat) -> &'static str {
    TOOLS.iter().find(|(known, ..)| *known == format).map_or(NO_TOOLS, |(_, offer, _)| offer)
}

fn calls(format: ToolFormat) -> &'static str {
    TOOLS.iter().find(|(known, ..)| *known == format).map_or(NO_TOOLS, |(_, _, calls)| calls)
}
