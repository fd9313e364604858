//! A request for an answer: JSON → [`Ask`].
//!
//! Names and meanings are those of OpenAI's API reference (chat completions), with `top_k`, `repetition_penalty` and
//! `do_sample` beside. What cannot be done is refused by name; what changes no answer is taken and does nothing.

use serde_json::{Value, json};
use sft_data::conversation::Message;
use sft_data::formats::openai;
use sft_infer::GenerationOptions;

use crate::fields::{Fields, Problem};

/// Answers to one request at most.
const MOST_ANSWERS: u64 = 128;
/// Texts that end an answer at most, and bytes of one.
const MOST_STOPS: (usize, usize) = (16, 1000);

/// What changes no answer.
const WITHOUT_EFFECT: [&str; 9] = [
    // This model answers, whatever it is called.
    "model",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
];

/// A request that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// What was said so far.
    pub messages: Vec<Message>,
    /// The tools that are offered.
    pub tools: Option<Value>,
    /// How answers are made; without [`Ask::seed`] its seed is the service's.
    pub options: GenerationOptions,
    /// The seed that was asked for.
    pub seed: Option<u64>,
    /// How many answers.
    pub answers: usize,
    /// Texts that end an answer.
    pub stops: Vec<String>,
    /// Whether it wants pieces as they come.
    pub stream: bool,
    /// Whether the last piece says how many tokens there were.
    pub include_usage: bool,
    /// Whether an answer may call several tools at once.
    pub parallel_calls: bool,
}

impl Ask {
    /// Reads a request; `defaults` is what holds where it says nothing.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(body: &[u8], defaults: &GenerationOptions) -> Result<Self, Vec<Problem>> {
        let whole = |reason: String| vec![Problem { field: String::new(), reason }];
        let request = match serde_json::from_slice(body) {
            Ok(Value::Object(request)) => request,
            Ok(_) => return Err(whole("the request is not a JSON object".to_owned())),
            Err(error) => return Err(whole(format!("the request is not JSON: {error}"))),
        };
        let mut fields = Fields::new(request);
        let messages = openai::asked(fields.rest()).unwrap_or_else(|reason| {
            fields.refuse("messages", reason);
            Vec::new()
        });
        let tools = openai::offered(fields.rest()).unwrap_or_else(|reason| {
            fields.refuse("tools", reason);
            None
        });
        let ask = Self {
            messages,
            tools: if offers_tools(&mut fields) { tools } else { None },
            options: options(&mut fields, defaults),
            seed: fields.whole("seed").map(|seed| seed as u64),
            answers: fields.count("n", 1..=MOST_ANSWERS).unwrap_or(1) as usize,
            stops: fields.texts("stop", MOST_STOPS),
            stream: fields.switch("stream").unwrap_or(false),
            include_usage: includes_usage(&mut fields),
            parallel_calls: fields.switch("parallel_tool_calls").unwrap_or(true),
        };
        WITHOUT_EFFECT.iter().for_each(|field| drop(fields.take(field)));
        refuse_what_cannot_be_done(&mut fields);
        match fields.finish() {
            problems if problems.is_empty() => Ok(ask),
            problems => Err(problems),
        }
    }
}

fn options(fields: &mut Fields, defaults: &GenerationOptions) -> GenerationOptions {
    let mut options = defaults.clone();
    let sampling = &mut options.sampling;
    let temperature = fields.number("temperature", 0.0..=100.0);
    sampling.temperature = temperature.unwrap_or(sampling.temperature);
    // A temperature is asked for to draw.
    let draws = sampling.do_sample || temperature.is_some();
    sampling.do_sample = fields.switch("do_sample").unwrap_or(draws);
    let mut number = |field, range, to: &mut f64| *to = fields.number(field, range).unwrap_or(*to);
    number("top_p", 0.0..=1.0, &mut sampling.top_p);
    number("presence_penalty", -2.0..=2.0, &mut sampling.presence_penalty);
    number("frequency_penalty", -2.0..=2.0, &mut sampling.frequency_penalty);
    number("repetition_penalty", 0.01..=100.0, &mut sampling.repetition_penalty);
    sampling.top_k = fields.limit("top_k").map_or(sampling.top_k, |k| k.unwrap_or(0));
    for field in ["max_tokens", "max_completion_tokens"] {
        match fields.limit(field) {
            Some(Some(0)) => fields.refuse(field, "is 0: an answer has a token at least"),
            // The context ends an answer that nothing else does.
            Some(most) => options.max_new_tokens = most.unwrap_or(usize::MAX),
            None => {}
        }
    }
    options
}

fn offers_tools(fields: &mut Fields) -> bool {
    let choice = fields.take("tool_choice");
    match choice.as_ref().and_then(Value::as_str) {
        Some("none") => return false,
        Some("auto") => {}
        _ if choice.is_none() => {}
        _ => fields
            .refuse("tool_choice", "is neither `auto` nor `none`: the model decides whether it calls a tool"),
    }
    true
}

fn includes_usage(fields: &mut Fields) -> bool {
    match fields.take("stream_options") {
        None => false,
        Some(Value::Object(options)) => {
            let mut options = Fields::new(options);
            let includes = options.switch("include_usage").unwrap_or(false);
            // Chunks have no padding that hides their length.
            options.only("include_obfuscation", |value| value == false, "chunks are not padded");
            for Problem { field, reason } in options.finish() {
                fields.refuse(&format!("stream_options.{field}"), reason);
            }
            includes
        }
        Some(_) => {
            fields.refuse("stream_options", "is not an object");
            false
        }
    }
}

fn refuse_what_cannot_be_done(fields: &mut Fields) {
    let is_empty = |value: &Value| value.as_object().is_some_and(|object| object.is_empty());
    fields.only("logit_bias", is_empty, "single tokens cannot be made more or less likely");
    fields.only("logprobs", |value| value == false, "probabilities of tokens are not told");
    fields.only("top_logprobs", |value| value == 0, "probabilities of tokens are not told");
    let is_text = |value: &Value| *value == json!({"type": "text"});
    fields.only("response_format", is_text, "answers cannot be forced into a form; ask for it in a message");
    let is_text = |value: &Value| *value == json!(["text"]);
    fields.only("modalities", is_text, "answers are texts");
    fields.only(
        "reasoning_effort",
        |_| false,
        "thoughts are switched by `enable_thinking` of the configuration",
    );
    fields.only(
        "chat_template_kwargs",
        is_empty,
        "the template is set by the configuration (`enable_thinking`, `default_system`)",
    );
    for replaced in ["functions", "function_call"] {
        fields.only(replaced, |_| false, "use `tools` and `tool_choice`");
    }
}
