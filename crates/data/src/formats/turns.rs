//! What sharegpt and OpenAI messages share: columns, tags, the system message, the order of turns.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::calls::take_tools;
use super::{Talk, missing, take_array, take_optional};
use crate::conversation::{Message, Role};
use crate::rows::kind_of;

/// Largest weight of a message, and the inverse of the smallest: more is taken for a mistake.
const MOST: f64 = 1e6;

/// The columns of a format whose rows hold a list of turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnColumns {
    /// The list of turns.
    pub messages: String,
    /// The system message, for rows whose first turn is not one.
    pub system: Option<String>,
    /// Descriptions of tools.
    pub tools: Option<String>,
    /// Names inside a turn.
    pub tags: Tags,
}

/// The keys of a turn, and the words that name who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// Key: who speaks.
    pub role: String,
    /// Key: the words.
    pub content: String,
    /// The person asking.
    pub user: String,
    /// The model.
    pub assistant: String,
    /// The result of a tool.
    pub observation: String,
    /// The model calling tools.
    pub function: String,
    /// Instructions for the whole conversation.
    pub system: String,
}

impl Tags {
    /// LLaMA-Factory's: `{"from": "human" | "gpt" | …, "value": …}`.
    pub fn sharegpt() -> Self {
        Self {
            role: "from".to_owned(),
            content: "value".to_owned(),
            user: "human".to_owned(),
            assistant: "gpt".to_owned(),
            observation: "observation".to_owned(),
            function: "function_call".to_owned(),
            system: "system".to_owned(),
        }
    }

    /// OpenAI's: `{"role": "user" | "assistant" | "tool" | …, "content": …}`.
    pub fn openai() -> Self {
        Self {
            role: "role".to_owned(),
            content: "content".to_owned(),
            user: "user".to_owned(),
            assistant: "assistant".to_owned(),
            observation: "tool".to_owned(),
            function: "function_call".to_owned(),
            system: "system".to_owned(),
        }
    }
}

impl TurnColumns {
    /// The defaults of `formatting: sharegpt`: the column `conversations`.
    pub fn sharegpt() -> Self {
        Self { messages: "conversations".to_owned(), system: None, tools: None, tags: Tags::sharegpt() }
    }

    /// The defaults of `formatting: openai`: the columns `messages` and `tools`.
    pub fn openai() -> Self {
        Self {
            messages: "messages".to_owned(),
            system: None,
            tools: Some("tools".to_owned()),
            tags: Tags::openai(),
        }
    }

    pub(super) fn read(&self) -> Vec<&str> {
        let optional = [&self.system, &self.tools].into_iter().flatten();
        std::iter::once(&self.messages).chain(optional).map(String::as_str).collect()
    }
}

/// Reads the turns of a row with `message_of`, and checks their order; an answer is the last.
pub(super) fn convert(
    names: &TurnColumns,
    columns: &mut Map<String, Value>,
    message_of: impl Fn(&Tags, Map<String, Value>) -> Result<Message, String>,
) -> Result<Talk, String> {
    let talk = read(names, columns, message_of)?;
    check_order(&talk.messages)?;
    match talk.messages.last() {
        Some(last) if last.role != Role::Assistant => {
            let whose = whose(last.role);
            Err(format!("the last message is {whose}, so there is no answer to train at the end"))
        }
        _ => Ok(talk),
    }
}

/// As [`convert`], in any order.
pub(super) fn read(
    names: &TurnColumns,
    columns: &mut Map<String, Value>,
    message_of: impl Fn(&Tags, Map<String, Value>) -> Result<Message, String>,
) -> Result<Talk, String> {
    if !columns.contains_key(&names.messages) {
        return Err(missing(columns, &names.messages));
    }
    let turns = take_array(columns, &names.messages)?.unwrap_or_default();
    let mut messages = Vec::with_capacity(turns.len() + 1);
    for (at, turn) in turns.into_iter().enumerate() {
        let message = match turn {
            Value::Object(turn) => message_of(&names.tags, turn),
            other => Err(format!("it is {}, not an object", kind_of(&other))),
        };
        messages.push(message.map_err(|reason| format!("turn {}: {reason}", at + 1))?);
    }
    if messages.first().is_none_or(|first| first.role != Role::System)
        && let Some(system) = take_optional(columns, names.system.as_deref())?
    {
        messages.insert(0, Message::text(Role::System, system));
    }
    let tools = take_tools(columns, names.tools.as_deref())?;
    Ok(Talk { messages, tools })
}

/// A system message first, if any; then in turn a question (the user's, or one or more results of
/// tools) and an answer; one message at least beside the system's.
fn check_order(messages: &[Message]) -> Result<(), String> {
    let first = usize::from(messages.first().is_some_and(|message| message.role == Role::System));
    let mut last: Option<Role> = None;
    for (at, message) in messages.iter().enumerate().skip(first) {
        let fits = match (last, message.role) {
            (_, Role::System) => {
                return Err(format!("message {}: a system message is only allowed as the first", at + 1));
            }
            (None | Some(Role::Assistant), Role::User | Role::Tool) => true,
            (Some(Role::Tool), Role::Tool) => true,
            (Some(Role::User | Role::Tool), Role::Assistant) => true,
            _ => false,
        };
        if !fits {
            let due = match last {
                None | Some(Role::Assistant) => "the user's or a tool's",
                _ => "the assistant's",
            };
            return Err(format!(
                "message {} is {}, where {due} must come (questions and answers take turns)",
                at + 1,
                whose(message.role)
            ));
        }
        last = Some(message.role);
    }
    last.map(|_| ()).ok_or_else(|| "there are no turns".to_owned())
}

fn whose(role: Role) -> &'static str {
    match role {
        Role::System => "the system's",
        Role::User => "the user's",
        Role::Assistant => "the assistant's",
        Role::Tool => "a tool's",
    }
}

/// How much a message counts, where it says so: OpenAI's `weight`, ms-swift's `loss`, `loss_weight`, Axolotl's `train` and
/// `training`, and torchtune's `masked`, which says the opposite.
pub(super) fn weight_of(turn: &Map<String, Value>) -> Result<Option<f32>, String> {
    for key in ["weight", "loss", "loss_weight", "train", "training"] {
        if let Some(weight) = turn.get(key).map_or(Ok(None), |value| weight(key, value))? {
            return Ok(Some(weight));
        }
    }
    match turn.get("masked") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(masked)) => Ok(Some(f32::from(u8::from(!masked)))),
        Some(other) => Err(format!("`masked` is {other}, not true or false")),
    }
}

/// A number of what each token counts, true for 1, false for 0, or nothing said.
pub(super) fn weight(key: &str, value: &Value) -> Result<Option<f32>, String> {
    let weight = match value {
        Value::Null => return Ok(None),
        Value::Bool(on) => Some(f64::from(u8::from(*on))),
        Value::Number(weight) => weight.as_f64(),
        _ => None,
    };
    // What becomes 0 or infinite in float32 would be another thing than it says.
    let fits = |weight: &f64| *weight == 0.0 || (MOST.recip()..=MOST).contains(weight);
    match weight.filter(fits) {
        Some(weight) => Ok(Some(weight as f32)),
        None => Err(format!(
            "`{key}` is {value}: a weight is 0, or from {} to {MOST}, or true or false",
            MOST.recip()
        )),
    }
}
