//! The model's own chat template (`template: auto`): one text, tokenised once, with exact spans.
//!
//! Spans are found from outside, whatever the template does:
//! - an answer begins where the prompt that inference renders (the messages before it, with
//!   `add_generation_prompt`) ends. Where that prompt is no prefix of the whole text, because the
//!   template shows history otherwise, it begins where the text changes when the answer changes;
//! - it ends before the text that changes when the message after it changes, and there at the last
//!   end-of-turn token, which is learned with it. What stands between that token and the next message
//!   (a line break, a header) belongs to the next prompt.
//!
//! The end-of-turn token is the first special token after the answer of a short conversation. Where a
//! template writes none after the last answer, one is put there, so that the model learns to stop.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use minijinja::Value as JinjaValue;
use serde_json::{Map, Value, json};

use super::jinja::{JinjaTemplate, value_of};
use super::tools::wrapped;
use super::{Mark, Part, Rendered, Segment, TemplateOptions, Turn};
use crate::conversation::{Message, Role, ToolCall};
use crate::error::DataError;
use crate::tokenize::Tokenizer;

/// Stands in for a message to see where the text changes: a private character no text begins with.
const STAND_IN: &str = "\u{f8ff}\u{f8fe}";

/// The model's own chat template.
#[derive(Debug, Clone)]
pub struct AutoTemplate {
    templates: BTreeMap<String, JinjaTemplate>,
    /// Variables that every rendering has: special tokens, `enable_thinking`.
    variables: Vec<(String, JinjaValue)>,
    default_system: Option<String>,
    end: TurnEnd,
    stop_ids: Vec<u32>,
}

/// What ends an answer, as text.
#[derive(Debug, Clone, Default)]
struct TurnEnd {
    /// The end-of-turn token, if the template has one.
    token: Option<String>,
    /// Tokens at which generation stops: in a template without an end-of-turn token the mark of the
    /// next question may be one.
    stops: Vec<String>,
    /// All special tokens.
    special: Vec<String>,
}

impl AutoTemplate {
    /// The chat template of the tokenizer's model.
    ///
    /// # Errors
    /// There is none, or it does not parse.
    pub fn load(tokenizer: &Tokenizer, options: &TemplateOptions) -> Result<Self, DataError> {
        let error = |reason: String, help: &str| DataError::Template {
            name: "auto".into(),
            reason,
            help: help.into(),
        };
        if options.tool_format.is_some() {
            return Err(error(
                "`tool_format` changes named templates only; the model's own writes tools in its own way"
                    .into(),
                "take `tool_format` out, or set `template` to a name",
            ));
        }
        let mut templates = BTreeMap::new();
        for (name, source) in tokenizer.chat_templates() {
            let template = JinjaTemplate::new(source, options.clock).map_err(|reason| {
                error(
                    format!("chat template `{name}`: {reason}"),
                    "set `template` to the name of this model family",
                )
            })?;
            templates.insert(name.clone(), template);
        }
        if templates.is_empty() {
            return Err(error(
                format!("{} has no chat template", tokenizer.dir().display()),
                "set `template` to a name (a base model has none of its own: `template: chatml` or `default` will do)",
            ));
        }
        if templates.len() > 1 && !templates.contains_key("default") {
            let names: Vec<&str> = templates.keys().map(String::as_str).collect();
            return Err(error(
                format!("the model has the chat templates {} and none called `default`", names.join(", ")),
                "rename the wanted one in tokenizer_config.json",
            ));
        }
        let special = tokenizer.special_tokens().iter();
        let mut variables: Vec<(String, JinjaValue)> =
            special.map(|(name, text)| (name.clone(), JinjaValue::from(text.as_str()))).collect();
        if let Some(thinking) = options.enable_thinking {
            variables.push(("enable_thinking".into(), JinjaValue::from(thinking)));
        }
        if options.preserve_thinking {
            variables.push(("preserve_thinking".into(), JinjaValue::from(true)));
        }
        let mut template = Self {
            templates,
            variables,
            default_system: options.default_system.clone(),
            end: TurnEnd::default(),
            stop_ids: Vec::new(),
        };
        template.end = template.find_turn_end(tokenizer);
        let end = template.end.token.as_deref();
        template.stop_ids = end.and_then(|token| tokenizer.token_id(token)).into_iter().collect();
        Ok(template)
    }

    /// The end-of-turn token's id, if the template has one.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The whole conversation as text, nothing asked.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn text(&self, messages: &[Message], tools: Option<&Value>) -> Result<String, String> {
        Scene::new(self, messages, tools).all()
    }

    /// See [`super::Template::render_prompt`].
    pub(super) fn render_prompt(
        &self,
        (messages, has_borders): (&[Message], bool),
        tools: Option<&Value>,
    ) -> Result<Rendered, String> {
        let scene = Scene::new(self, messages, tools);
        let text = scene.prompt()?;
        // Where earlier prompts ended, answers began: no token lay across.
        let earlier =
            scene.answers().filter(|_| has_borders).filter_map(|place| scene.before(place).prompt().ok());
        let borders = earlier.filter(|prompt| text.starts_with(prompt.as_str())).map(|prompt| prompt.len());
        let borders = borders.collect();
        let mark = Mark { turn: 0, part: Part::Prompt };
        let spans = vec![(0..text.len(), mark)];
        let segments = vec![Segment::Text { text, spans, borders, typed: Vec::new() }];
        Ok(Rendered { segments, ..Rendered::default() })
    }

    /// The text of [`AutoTemplate::render`], nothing marked, of a conversation whose last answer is asked for with its
    /// beginning; `None` where it has to be found in another way.
    pub(super) fn render_unmarked(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&Value>,
    ) -> Option<Rendered> {
        let scene = Scene::new(self, messages, tools);
        let text = scene.all().ok()?;
        let last = scene.answers().next_back().filter(|last| last + 1 == scene.len())?;
        scene.before(last).prompt().ok().filter(|prompt| text.starts_with(prompt.as_str()))?;
        let found = self.find_answer(&scene, &text, last, 0).ok()?;
        let hidden = found.answer.is_empty() && !scene.is_empty(last);
        let end = self.closing(tokenizer, 0).filter(|_| found.answer.end == found.end && !hidden);
        let text = Segment::Text { text, spans: Vec::new(), borders: Vec::new(), typed: Vec::new() };
        let segments = std::iter::once(text).chain(end).collect();
        Some(Rendered { segments, ..Rendered::default() })
    }

    /// What is put behind a last answer that the template does not end.
    fn closing(&self, tokenizer: &Tokenizer, turn: u32) -> Option<Segment> {
        let id = self.stop_ids.first().copied().or(tokenizer.eos_id())?;
        Some(Segment::Token { id, mark: Mark { turn, part: Part::End } })
    }

    /// See [`super::Template::render`].
    pub(super) fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&Value>,
    ) -> Result<Rendered, String> {
        let scene = Scene::new(self, messages, tools);
        let text = scene.all()?;
        let mut spans = Vec::new();
        let mut borders = Vec::new();
        let mut turns = Vec::new();
        let mut done = 0;
        let mut open_end = false;
        for place in scene.answers() {
            let found = self.find_answer(&scene, &text, place, done)?;
            let turn = turns.len() as u32;
            let hidden = found.answer.is_empty() && !scene.is_empty(place);
            open_end = found.answer.end == found.end && !hidden && place + 1 == scene.len();
            let parts = [
                (done..found.answer.start, Part::Prompt),
                (found.answer.clone(), Part::Answer),
                (found.answer.end..found.end, Part::End),
            ];
            let parts = parts.into_iter().filter(|(range, _)| !range.is_empty());
            spans.extend(parts.map(|(range, part)| (range, Mark { turn, part })));
            borders.extend(found.is_asked.then_some(found.answer.start));
            let message = place.checked_sub(scene.len() - messages.len());
            let weight = scene.weight(place);
            turns.push(Turn { message, weight, rewritten: found.rewritten, hidden });
            done = found.end;
        }
        if turns.is_empty() {
            return Err("there is no answer to train".into());
        }
        let last = turns.len() as u32 - 1;
        let end = self.closing(tokenizer, last).filter(|_| open_end);
        if done < text.len() && end.is_some() {
            spans.push((done..text.len(), Mark { turn: last, part: Part::Border }));
        } else if done < text.len() {
            // What follows the last end token: a line break, or a question without an answer.
            spans.push((done..text.len(), Mark { turn: last + 1, part: Part::Prompt }));
            turns.push(Turn { message: None, weight: None, rewritten: false, hidden: false });
        }
        let mut segments = vec![Segment::Text { text, spans, borders, typed: Vec::new() }];
        segments.extend(end);
        Ok(Rendered { segments, turns, shared_end: None })
    }

    /// Finds the answer that is message `place`, not before byte `from`.
    fn find_answer(&self, scene: &Scene<'_>, text: &str, place: usize, from: usize) -> Result<Found, String> {
        let prompt = scene.before(place).prompt();
        let is_prefix = prompt.as_ref().is_ok_and(|prompt| text.starts_with(prompt.as_str()));
        let border = match prompt {
            Ok(prompt) if is_prefix => prompt.len(),
            _ => common_prefix(&scene.with_stand_in(place).all()?, text),
        };
        let start = border.max(from);
        let limit = scene.limit(place, text)?;
        let is_last = limit == text.len();
        if limit < start {
            return Err(format!(
                "the chat template does not show message {} where an answer belongs",
                place + 1
            ));
        }
        let region = &text[start..limit];
        let at = self.end.token.as_deref().and_then(|token| Some((region.rfind(token)?, token.len())));
        let (answer, end) = match at {
            Some((at, length)) => (at, at + length),
            None => self.end_without_mark(scene, text, place, start..limit),
        };
        // What the model itself wrote at this point, to compare with what the template shows now.
        let rewritten = !is_prefix
            || (!is_last
                && !scene.upto(place).all().is_ok_and(|written| {
                    written.get(start..).is_some_and(|written| written.starts_with(&region[..answer]))
                }));
        let is_asked = is_prefix && start == border;
        Ok(Found { answer: start..start + answer, end: start + end, rewritten, is_asked })
    }

    /// Where an answer ends that has no end-of-turn token: bytes of the answer, and with the stop token
    /// that may follow it. Its words end where the text no longer changes with them, and before the text
    /// goes on otherwise than if nothing had followed.
    fn end_without_mark(
        &self,
        scene: &Scene<'_>,
        text: &str,
        place: usize,
        region: Range<usize>,
    ) -> (usize, usize) {
        let changed = scene.with_stand_in(place).all().map(|other| text.len() - common_suffix(&other, text));
        let alone = scene
            .upto(place)
            .all()
            .map(|alone| self.end.before_split_token(text, common_prefix(&alone, text)));
        let ends = [changed, alone].into_iter().flatten().filter(|end| region.contains(end));
        let end = ends.min().unwrap_or(region.end);
        let stops = || self.end.stops.iter().map(String::as_str);
        let (answer, after) = (&text[region.start..end], &text[end..region.end]);
        if let Some(stop) = stops().find(|stop| after.starts_with(stop)) {
            (answer.len(), answer.len() + stop.len())
        } else if let Some(stop) = stops().find(|stop| answer.ends_with(stop)) {
            (answer.len() - stop.len(), answer.len())
        } else {
            (answer.len(), answer.len())
        }
    }

    /// Renders short conversations to see how an answer ends: with the first special token after the
    /// last answer; or else with the one that ends questions as well as earlier answers.
    fn find_turn_end(&self, tokenizer: &Tokenizer) -> TurnEnd {
        let special = |text: &str| -> Option<String> {
            let tokens = tokenizer.encode_with_ranges(text).ok()?;
            let first = tokens.into_iter().find(|token| tokenizer.is_special(token.id))?;
            tokenizer.token_text(first.id)
        };
        let turns = |texts: &[&str]| -> Option<String> {
            let roles = [Role::User, Role::Assistant].into_iter().cycle();
            let messages: Vec<Message> =
                roles.zip(texts).map(|(role, text)| Message::text(role, *text)).collect();
            let system = Message::text(Role::System, "rule");
            let with_system: Vec<Message> = std::iter::once(system).chain(messages.clone()).collect();
            self.text(&messages, None).or_else(|_| self.text(&with_system, None)).ok()
        };
        let part = |text: &Option<String>, from: &str, to: &str| -> Option<String> {
            let (_, after) = text.as_deref()?.split_once(from)?;
            special(if to.is_empty() { after } else { after.split_once(to)?.0 })
        };
        let one = turns(&["questionone", "answerone"]);
        let two = turns(&["questionone", "answerone", "questiontwo", "answertwo"]);
        let after_question = part(&two, "questionone", "answerone");
        let after_answer = part(&two, "answerone", "questiontwo");
        let of_both = after_answer.filter(|end| after_question.as_ref() == Some(end));
        let stops = tokenizer.eos_id().into_iter().chain(tokenizer.generation_stop_ids().iter().copied());
        TurnEnd {
            token: part(&one, "answerone", "").or(of_both),
            stops: stops.filter_map(|id| tokenizer.token_text(id)).collect(),
            special: tokenizer.special_texts(),
        }
    }
}

impl TurnEnd {
    /// The byte `at`, or the beginning of the special token that it would split.
    fn before_split_token(&self, text: &str, at: usize) -> usize {
        let splits = |token: &String| {
            let from = text.floor_char_boundary(at.saturating_sub(token.len() - 1));
            let to = text.ceil_char_boundary((at + token.len() - 1).min(text.len()));
            text[from..to].find(token.as_str()).map(|found| from + found).filter(|&found| found < at)
        };
        self.special.iter().filter(|token| !token.is_empty()).filter_map(splits).min().unwrap_or(at)
    }
}

/// Where an answer and its end token are.
struct Found {
    answer: Range<usize>,
    end: usize,
    rewritten: bool,
    /// The prompt of inference ends where it begins.
    is_asked: bool,
}

/// A conversation in front of a template.
#[derive(Clone)]
struct Scene<'a> {
    template: &'a AutoTemplate,
    messages: Vec<JinjaValue>,
    sources: Arc<[Message]>,
    tools: Option<JinjaValue>,
}

impl<'a> Scene<'a> {
    fn new(template: &'a AutoTemplate, messages: &[Message], tools: Option<&Value>) -> Self {
        let has_system = messages.first().is_some_and(|first| first.role == Role::System);
        let system = template.default_system.as_ref().filter(|_| !has_system);
        let system = system.map(|text| Message::text(Role::System, text));
        let sources: Arc<[Message]> = system.into_iter().chain(messages.iter().cloned()).collect();
        let tools = tools.map(|tools| match tools.as_array() {
            Some(tools) => value_of(&tools.iter().map(wrapped).collect()),
            None => value_of(tools),
        });
        Self {
            template,
            messages: sources.iter().map(|message| value_of(&message_json(message))).collect(),
            sources,
            tools,
        }
    }

    fn len(&self) -> usize {
        self.messages.len()
    }

    fn answers(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..self.len()).filter(|&i| self.sources[i].role == Role::Assistant)
    }

    fn weight(&self, place: usize) -> Option<f32> {
        self.sources[place].weight
    }

    fn is_empty(&self, place: usize) -> bool {
        let message = &self.sources[place];
        message.content.is_empty() && message.tool_calls.is_empty()
    }

    /// Where the words of the first message after `place` begin that the text shows.
    fn limit(&self, place: usize, text: &str) -> Result<usize, String> {
        for later in place + 1..self.len() {
            let other = self.with_stand_in(later).all()?;
            if other != text {
                return Ok(common_prefix(&other, text));
            }
        }
        Ok(text.len())
    }

    fn before(&self, place: usize) -> Self {
        let mut scene = self.clone();
        scene.messages.truncate(place);
        scene
    }

    fn upto(&self, place: usize) -> Self {
        self.before(place + 1)
    }

    /// The conversation with other words in one message.
    fn with_stand_in(&self, place: usize) -> Self {
        let mut scene = self.clone();
        let message = Message {
            content: STAND_IN.to_owned(),
            reasoning: None,
            tool_calls: Vec::new(),
            ..self.sources[place].clone()
        };
        scene.messages[place] = value_of(&message_json(&message));
        scene
    }

    fn all(&self) -> Result<String, String> {
        self.render(false)
    }

    fn prompt(&self) -> Result<String, String> {
        self.render(true)
    }

    fn render(&self, add_generation_prompt: bool) -> Result<String, String> {
        let templates = &self.template.templates;
        let for_tools = self.tools.as_ref().and_then(|_| templates.get("tool_use"));
        let template = for_tools.or_else(|| templates.get("default")).or_else(|| templates.values().next());
        let Some(template) = template else {
            return Err("the model has no chat template".into());
        };
        let none = || JinjaValue::from(());
        let own = [
            ("messages", JinjaValue::from(self.messages.clone())),
            ("tools", self.tools.clone().unwrap_or_else(none)),
            ("documents", none()),
            ("add_generation_prompt", JinjaValue::from(add_generation_prompt)),
        ];
        let shared = self.template.variables.iter().map(|(name, value)| (name.as_str(), value.clone()));
        template.render(JinjaValue::from_pairs(shared.chain(own)))
    }
}

/// A message as chat templates expect it.
fn message_json(message: &Message) -> Value {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let mut map = Map::new();
    map.insert("role".into(), role.into());
    map.insert("content".into(), message.content.as_str().into());
    if let Some(reasoning) = &message.reasoning {
        map.insert("reasoning_content".into(), reasoning.as_str().into());
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(call_json);
        map.insert("tool_calls".into(), calls.collect());
    }
    if let Some(name) = &message.name {
        map.insert("name".into(), name.as_str().into());
    }
    if let Some(id) = &message.tool_call_id {
        map.insert("tool_call_id".into(), id.as_str().into());
    }
    Value::Object(map)
}

fn call_json(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    match &call.id {
        Some(id) => json!({"id": id, "type": "function", "function": function}),
        None => json!({"type": "function", "function": function}),
    }
}

/// Bytes that two texts end with alike, whole characters only.
fn common_suffix(a: &str, b: &str) -> usize {
    let same = a.bytes().rev().zip(b.bytes().rev()).take_while(|(a, b)| a == b).count();
    b.len() - b.ceil_char_boundary(b.len() - same)
}

/// Bytes that two texts begin with alike, whole characters only.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    b.floor_char_boundary(same)
}
