//! Writes the turns of a named template, slot by slot, as segments.

use serde_json::Value;

use super::{Kind, NamedTemplate, Slot};
use crate::conversation::{Message, Role};
use crate::template::{Mark, Part, Segment};
use crate::tokenize::Tokenizer;

/// Writes turns as segments.
pub(super) struct Writer<'a> {
    template: &'a NamedTemplate,
    tokenizer: &'a Tokenizer,
    pub(super) segments: Vec<Segment>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(template: &'a NamedTemplate, tokenizer: &'a Tokenizer) -> Self {
        Self { template, tokenizer, segments: Vec::new() }
    }

    pub(super) fn question(
        &mut self,
        turn: usize,
        system: &str,
        tools: Option<&Value>,
        question: &Message,
    ) -> Result<(), String> {
        let template = self.template;
        let mut content = question.content.clone();
        if turn == 0 {
            self.slots(&template.prefix, "", turn, Part::Prompt)?;
            if !system.is_empty() || tools.is_some() {
                let offer = match tools {
                    Some(tools) => template.offer_format.offer(tools, template.clock)?,
                    None => String::new(),
                };
                let system = format!("{system}{offer}");
                if template.kind != Kind::SystemInQuestion {
                    self.slots(&template.system, &system, turn, Part::Prompt)?;
                } else if let (Some(Slot::Text(slot)), Role::User) = (template.system.first(), question.role)
                {
                    content = slot.replacen("{{content}}", &system, 1) + &content;
                }
            }
        }
        let slots = match question.role {
            Role::Tool => &template.observation,
            _ => &template.user,
        };
        self.slots(slots, &content, turn, Part::Prompt)
    }

    pub(super) fn answer(&mut self, turn: usize, answer: &Message) -> Result<(), String> {
        let template = self.template;
        if answer.tool_calls.is_empty() {
            return self.slots(&template.assistant, &answer.content, turn, Part::Answer);
        }
        let calls = template.call_format.calls(&answer.tool_calls)?;
        let words = answer.content.as_str();
        let (ahead, content) = match template.mark_of_calls().filter(|_| !words.is_empty()) {
            // Words come before the mark: what follows it is read as calls.
            Some((beginning, mark)) => (Some(format!("{beginning}{words}{mark}")), calls),
            None => (None, format!("{words}{calls}")),
        };
        self.write(ahead.as_deref(), &template.function, &content, turn, Part::Answer)
    }

    /// Writes `slots` with `content`; of an answer, what follows its content is its end.
    fn slots(&mut self, slots: &[Slot], content: &str, turn: usize, part: Part) -> Result<(), String> {
        self.write(None, slots, content, turn, part)
    }

    /// The same, where there is something `ahead` of the content instead of what the slot has there.
    fn write(
        &mut self,
        ahead: Option<&str>,
        slots: &[Slot],
        content: &str,
        turn: usize,
        part: Part,
    ) -> Result<(), String> {
        let ended = if part == Part::Answer { Part::End } else { part };
        let mut now = part;
        for slot in slots {
            match slot {
                Slot::Text(text) => {
                    let text = text.replacen("{{idx}}", &turn.to_string(), 1);
                    match text.split_once("{{content}}") {
                        Some((before, after)) => {
                            let before = ahead.unwrap_or(before);
                            let whole = format!("{before}{content}{after}");
                            self.marked(whole, before.len() + content.len(), now, ended, turn);
                            now = ended;
                        }
                        None => self.text(text, now, turn),
                    }
                }
                Slot::Special { special } => {
                    let id = match special.as_str() {
                        "bos_token" => self.tokenizer.bos_id(),
                        _ => self.tokenizer.eos_id(),
                    };
                    if let Some(id) = id {
                        self.token(id, now, turn);
                    }
                }
                Slot::Token { token } => {
                    let Some(id) = self.tokenizer.token_id(token) else {
                        return Err(format!("the vocabulary has no `{token}`"));
                    };
                    self.token(id, now, turn);
                }
            }
        }
        Ok(())
    }

    fn token(&mut self, id: u32, part: Part, turn: usize) {
        let mark = Mark { turn: turn as u32, part };
        self.segments.push(Segment::Token { id, mark });
    }

    pub(super) fn text(&mut self, text: String, part: Part, turn: usize) {
        let end = text.len();
        self.marked(text, end, part, part, turn);
    }

    /// Text that is `first` up to the byte `border`, and `second` from there.
    fn marked(&mut self, text: String, border: usize, first: Part, second: Part, turn: usize) {
        let turn = turn as u32;
        let border = if first == second { text.len() } else { border };
        let parts = [(0..border, first), (border..text.len(), second)];
        let spans = parts.into_iter().filter(|(range, _)| !range.is_empty());
        let spans: Vec<_> = spans.map(|(range, part)| (range, Mark { turn, part })).collect();
        if !spans.is_empty() {
            self.segments.push(Segment::Text { text, spans, borders: Vec::new(), typed: Vec::new() });
        }
    }
}
