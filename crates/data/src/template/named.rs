//! LLaMA-Factory's named templates: slots with holes, one data file a template under `named/`.
//!
//! Each message is written by the slots of its role, and each slot is tokenised by itself, so tokens
//! never merge across a slot's border. Turns are pairs: what the model is given (prefix, system and
//! tools before the first, then the question or a tool's result), and what it answers.

mod files;
mod writer;
mod written;

use serde::Deserialize;
use serde_json::Value;

use super::clock::Clock;
use super::tools::ToolFormat;
use super::{Part, Rendered, Segment, TemplateOptions, Turn};
use crate::conversation::{Message, Role};
use crate::error::{DataError, nearby};
use crate::tokenize::Tokenizer;
use files::FILES;
use writer::Writer;

/// The names of all named templates, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// A data file. Slots that are not given are `{{content}}`; of the assistant, `{{content}}` and the
/// end-of-sequence token; of a tool's result, the user's; of a call, the assistant's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    #[serde(default)]
    prefix: Vec<Slot>,
    system: Option<Vec<Slot>>,
    user: Option<Vec<Slot>>,
    assistant: Option<Vec<Slot>>,
    observation: Option<Vec<Slot>>,
    function: Option<Vec<Slot>>,
    /// How tools are offered, and called unless `function_format` says otherwise.
    tool_format: Option<String>,
    function_format: Option<String>,
    #[serde(default)]
    default_system: String,
    #[serde(default)]
    stop_words: Vec<String>,
    thought_words: Option<(String, String)>,
    /// What stands for a thought where there is none; otherwise both words.
    empty_thought: Option<String>,
    #[serde(default)]
    kind: Kind,
    /// The end-of-sequence token stands only after the last answer.
    #[serde(default)]
    efficient_eos: bool,
    /// The first stop word becomes the end-of-sequence token.
    #[serde(default)]
    replace_eos: bool,
}

/// A stretch that is tokenised by itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Slot {
    /// Text with at most one `{{content}}` (and `{{idx}}`, the number of the turn).
    Text(String),
    /// `bos_token` or `eos_token`, if the tokenizer has it.
    Special { special: String },
    /// A token of the vocabulary.
    Token { token: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Plain,
    /// The system message is part of the first question, inside its slot.
    SystemInQuestion,
    /// Answers hold thoughts; an answer without one gets an empty one.
    Reasoning,
}

/// A named template, ready for one tokenizer.
#[derive(Debug, Clone)]
pub struct NamedTemplate {
    name: String,
    prefix: Vec<Slot>,
    system: Vec<Slot>,
    user: Vec<Slot>,
    assistant: Vec<Slot>,
    observation: Vec<Slot>,
    function: Vec<Slot>,
    offer_format: ToolFormat,
    call_format: ToolFormat,
    default_system: String,
    thought_words: (String, String),
    empty_thought: String,
    kind: Kind,
    shared_end: Option<u32>,
    enable_thinking: Option<bool>,
    preserve_thinking: bool,
    clock: Clock,
    stop_ids: Vec<u32>,
}

impl NamedTemplate {
    /// The template `name`; the tokenizer may get another end-of-sequence token.
    ///
    /// # Errors
    /// An unknown name or tool format, an end token that the vocabulary lacks.
    pub fn load(name: &str, tokenizer: &mut Tokenizer, options: &TemplateOptions) -> Result<Self, DataError> {
        let Some((_, file)) = FILES.iter().find(|(known, _)| *known == name) else {
            return Err(unknown_template(name));
        };
        let definition: Definition = serde_json::from_str(file).map_err(|error| {
            template_error(
                name,
                format!("its data file is wrong: {error}"),
                "this is a defect of the program: report it",
            )
        })?;
        definition.ready(name, tokenizer, options)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The stop words' ids.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The end token that turns share (`efficient_eos`).
    pub fn shared_end(&self) -> Option<u32> {
        self.shared_end
    }

    /// The prompt without the empty thought that it ends with, where the model may also think: with
    /// `enable_thinking: null`.
    pub(crate) fn without_given_thought(&self, prompt: &Rendered) -> Option<Rendered> {
        if self.kind != Kind::Reasoning || self.enable_thinking.is_some() {
            return None;
        }
        let (last, before) = prompt.segments.split_last()?;
        let is_thought = matches!(last, Segment::Text { text, .. } if *text == self.empty_thought);
        is_thought.then(|| Rendered { segments: before.to_vec(), ..Rendered::default() })
    }

    /// See [`super::Template::render`].
    pub(super) fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&Value>,
        last_turn_only: bool,
    ) -> Result<Rendered, String> {
        let (system, pairs) = self.pairs(messages)?;
        let mut writer = Writer::new(self, tokenizer);
        for (i, pair) in self.shown(pairs, last_turn_only).iter().enumerate() {
            writer.question(i, system, tools, &pair.question)?;
            if let Some(part) = pair.empty_thought {
                writer.text(self.empty_thought.clone(), part, i);
            }
            writer.answer(i, &pair.answer)?;
        }
        let offset = usize::from(messages.first().is_some_and(|first| first.role == Role::System));
        let answers = (offset..messages.len()).filter(|&i| messages[i].role == Role::Assistant);
        let turns = answers.map(|i| Turn {
            message: Some(i),
            weight: messages[i].weight,
            rewritten: false,
            hidden: false,
        });
        Ok(Rendered { turns: turns.collect(), segments: writer.segments, shared_end: self.shared_end })
    }

    /// See [`super::Template::render_prompt`]. History is shown as [`NamedTemplate::render`] shows it, so
    /// what is asked is what was trained.
    pub(super) fn render_prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&Value>,
        last_turn_only: bool,
    ) -> Result<Rendered, String> {
        if messages.last().is_some_and(|last| last.role == Role::Assistant) {
            return Err("the last message is the assistant's: nothing is asked".into());
        }
        let mut messages = messages.to_vec();
        messages.push(Message::text(Role::Assistant, ""));
        let (system, pairs) = self.pairs(&messages)?;
        let pairs = self.shown(pairs, last_turn_only);
        let mut writer = Writer::new(self, tokenizer);
        for (i, pair) in pairs.iter().enumerate() {
            writer.question(i, system, tools, &pair.question)?;
            let is_asked = i + 1 == pairs.len();
            if let Some(part) = pair.empty_thought.filter(|part| !is_asked || *part == Part::Prompt) {
                writer.text(self.empty_thought.clone(), part, i);
            }
            if !is_asked {
                writer.answer(i, &pair.answer)?;
            }
        }
        Ok(Rendered { segments: writer.segments, turns: Vec::new(), shared_end: self.shared_end })
    }

    /// The turns with thoughts as they are shown: left out, kept, or empty ones added.
    fn shown(&self, mut pairs: Vec<Pair>, last_turn_only: bool) -> Vec<Pair> {
        if self.kind != Kind::Reasoning {
            return pairs;
        }
        let last = pairs.len() - 1;
        for (i, pair) in pairs.iter_mut().enumerate() {
            let is_forgotten = last_turn_only && !self.preserve_thinking && i < last;
            if self.enable_thinking == Some(false) || is_forgotten {
                pair.answer.content = self.without_thoughts(&pair.answer.content);
            }
            // Where thoughts of earlier turns are left out, their turns get no empty ones either.
            pair.empty_thought = match self.enable_thinking {
                _ if is_forgotten || !self.lacks_thought(&pair.answer.content) => None,
                Some(true) => Some(Part::Answer),
                _ => Some(Part::Prompt),
            };
        }
        pairs
    }

    /// The system message and the turns; results of several calls are joined as in LLaMA-Factory.
    fn pairs<'a>(&'a self, messages: &'a [Message]) -> Result<(&'a str, Vec<Pair>), String> {
        let (given, rest) = match messages.split_first() {
            Some((first, rest)) if first.role == Role::System => (first.content.as_str(), rest),
            _ => ("", messages),
        };
        let system = if given.is_empty() { &self.default_system } else { given };
        let mut pairs: Vec<Pair> = Vec::new();
        let mut question: Option<Message> = None;
        for message in rest {
            match (message.role, &mut question) {
                (Role::System, _) => {
                    return Err("a system message stands after the first message".into());
                }
                (Role::Tool, Some(open)) if open.role == Role::Tool => {
                    open.content.push_str("\n</tool_response>\n<tool_response>\n");
                    open.content.push_str(&message.content);
                }
                (Role::User | Role::Tool, Some(open)) => {
                    return Err(format!(
                        "{} is followed by {}: the template needs an answer between them",
                        speaker(open.role),
                        speaker(message.role)
                    ));
                }
                (Role::User | Role::Tool, open @ None) => *open = Some(message.clone()),
                (Role::Assistant, open) => {
                    let Some(question) = open.take() else {
                        return Err("an answer of the assistant follows nothing to answer: the template needs a user or tool message before it".into());
                    };
                    let mut answer = message.clone();
                    answer.content.push_str(self.before_calls(message));
                    if let (Kind::Reasoning, Some(reasoning)) = (self.kind, &answer.reasoning) {
                        let (open, close) = &self.thought_words;
                        answer.content = format!("{open}{reasoning}{close}{}", answer.content);
                    }
                    pairs.push(Pair { question, answer, empty_thought: None });
                }
            }
        }
        match question {
            Some(open) => {
                Err(format!("the last message is {}: there is no answer to train", speaker(open.role)))
            }
            None if pairs.is_empty() => Err("there is no answer to train".into()),
            None => Ok((system, pairs)),
        }
    }

    /// What an answer begins with, and the mark that stands before calls (`[TOOL_CALLS]`), if the template has one.
    fn mark_of_calls(&self) -> Option<(&str, &str)> {
        fn before_content(slots: &[Slot]) -> Option<&str> {
            slots.iter().find_map(|slot| match slot {
                Slot::Text(text) => Some(text.split_once("{{content}}")?.0),
                Slot::Special { .. } | Slot::Token { .. } => None,
            })
        }
        let beginning = before_content(&self.assistant)?;
        let of_calls = before_content(&self.function)?;
        let mark = of_calls.strip_prefix(beginning).unwrap_or(of_calls);
        (!mark.trim().is_empty()).then_some((beginning, mark))
    }

    /// What stands between the words of an answer and its calls: as the data has it; behind a thought what ends one in this
    /// template; else what Qwen writes.
    fn before_calls<'a>(&'a self, answer: &'a Message) -> &'a str {
        let words = answer.content.as_str();
        let ends_thought = words.ends_with(self.thought_words.1.trim());
        match &answer.gap {
            _ if answer.tool_calls.is_empty() || words.is_empty() => "",
            Some(gap) => gap,
            _ if self.mark_of_calls().is_some() => "",
            _ if words.ends_with(char::is_whitespace) => "",
            _ if ends_thought => self.behind_thoughts(),
            _ => "\n",
        }
    }

    /// The white space that ends a thought.
    fn behind_thoughts(&self) -> &str {
        let close = self.thought_words.1.as_str();
        &close[close.trim_end().len()..]
    }

    fn lacks_thought(&self, answer: &str) -> bool {
        let (open, close) = &self.thought_words;
        self.kind == Kind::Reasoning && !answer.contains(open.trim()) && !answer.contains(close.trim())
    }

    /// The answer without its thoughts, and without the line breaks that followed them.
    fn without_thoughts(&self, answer: &str) -> String {
        let (open, close) = &self.thought_words;
        let mut kept = String::new();
        let mut rest = answer;
        while let Some((before, inside)) = rest.split_once(open.as_str()) {
            let Some((_, after)) = inside.split_once(close.as_str()) else {
                break;
            };
            kept.push_str(before);
            rest = after;
        }
        kept.push_str(rest);
        kept.trim_start_matches('\n').to_owned()
    }
}

/// One turn.
struct Pair {
    question: Message,
    answer: Message,
    /// An empty thought stands before the answer, given or to be learned.
    empty_thought: Option<Part>,
}

impl Definition {
    fn ready(
        self,
        name: &str,
        tokenizer: &mut Tokenizer,
        options: &TemplateOptions,
    ) -> Result<NamedTemplate, DataError> {
        let mut stop_ids = Vec::new();
        for (i, word) in self.stop_words.iter().enumerate() {
            match i == 0 && self.replace_eos {
                true => tokenizer.replace_eos(word)?,
                false => tokenizer.mark_special(word)?,
            }
            stop_ids.extend(tokenizer.token_id(word));
        }
        let Some(eos) = tokenizer.eos_id() else {
            return Err(template_error(
                name,
                "the tokenizer has no end-of-sequence token".into(),
                "set `eos_token` in tokenizer_config.json",
            ));
        };
        let content = || Slot::Text("{{content}}".into());
        let default_answer = match self.efficient_eos {
            true => vec![content()],
            false => vec![content(), Slot::Special { special: "eos_token".into() }],
        };
        let format_by_name = |name: &str| ToolFormat::by_name(name).ok_or_else(|| unknown_tool_format(name));
        let own = format_by_name(self.tool_format.as_deref().unwrap_or("default"))?;
        let own_calls = match &self.function_format {
            Some(name) => format_by_name(name)?,
            None => own,
        };
        let user = self.user.unwrap_or_else(|| vec![content()]);
        let assistant = self.assistant.unwrap_or_else(|| default_answer.clone());
        let mut function = self.function.unwrap_or_else(|| assistant.clone());
        let (mut offer_format, mut call_format) = (own, own_calls);
        if let Some(asked) = &options.tool_format {
            (offer_format, call_format) = (format_by_name(asked)?, format_by_name(asked)?);
            function = default_answer;
        }
        let think = |word: &str| word.to_owned();
        let thought_words =
            self.thought_words.unwrap_or_else(|| (think("<think>\n"), think("\n</think>\n\n")));
        let empty_thought =
            self.empty_thought.unwrap_or_else(|| format!("{}{}", thought_words.0, thought_words.1));
        Ok(NamedTemplate {
            name: name.to_owned(),
            prefix: self.prefix,
            system: self.system.unwrap_or_else(|| vec![content()]),
            observation: self.observation.unwrap_or_else(|| user.clone()),
            user,
            assistant,
            function,
            offer_format,
            call_format,
            default_system: options.default_system.clone().unwrap_or(self.default_system),
            thought_words,
            empty_thought,
            kind: self.kind,
            shared_end: self.efficient_eos.then_some(eos),
            enable_thinking: options.enable_thinking,
            preserve_thinking: options.preserve_thinking,
            clock: options.clock,
            stop_ids,
        })
    }
}

fn speaker(role: Role) -> &'static str {
    match role {
        Role::System => "a system message",
        Role::User => "a user message",
        Role::Assistant => "an answer",
        Role::Tool => "a tool message",
    }
}

fn template_error(name: &str, reason: String, help: &str) -> DataError {
    DataError::Template { name: name.to_owned(), reason, help: help.to_owned() }
}

fn unknown_template(name: &str) -> DataError {
    let known: Vec<&str> = names().collect();
    let similar = nearby(name, known.iter().copied());
    let hint = match similar.first() {
        Some(similar) => format!("did you mean `{similar}`? "),
        None => String::new(),
    };
    let help = format!("{hint}named templates are {}; `auto` uses the model's own", known.join(", "));
    template_error(name, "there is no such template".into(), &help)
}

fn unknown_tool_format(name: &str) -> DataError {
    let known = ToolFormat::ALL.map(|(name, _)| name).join(", ");
    DataError::Option {
        key: "tool_format",
        reason: format!("there is no `{name}`"),
        help: format!("formats are {known}"),
    }
}
