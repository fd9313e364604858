//! SentencePiece's `tokenizer.model` → the JSON of the tokenizers library, for models that ship nothing else.
//!
//! The file is a protobuf message (`sentencepiece_model.proto`): pieces with scores, how the model was trained, how text
//! is normalised. It becomes a Unigram model, or a BPE model whose merges are all ways to put a piece together of two
//! others, best score first, as transformers converts it. Fields that decide nothing here are passed over.

use std::collections::HashMap;

use serde_json::{Value, json};

/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";

/// What a model file says.
#[derive(Debug, Default)]
struct Model {
    pieces: Vec<Piece>,
    is_bpe: bool,
    byte_fallback: bool,
    precompiled: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

#[derive(Debug)]
struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The tokenizer that a model file describes, in the form of `tokenizer.json`.
///
/// # Errors
/// What is wrong with the file, or what of it is not supported.
pub(super) fn convert(bytes: &[u8]) -> Result<Value, String> {
    let model = read(bytes)?;
    let unknown = model.pieces.iter().position(|piece| piece.kind == UNKNOWN);
    let unknown = unknown.ok_or("it has no piece for what is unknown")?;
    let added: Vec<Value> = model
        .pieces
        .iter()
        .enumerate()
        .filter(|(_, piece)| matches!(piece.kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(id, piece)| {
            json!({"id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": piece.kind != USER_DEFINED})
        })
        .collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer(&model),
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": decoder(&model),
        "model": if model.is_bpe { bpe(&model, unknown) } else { unigram(&model, unknown) },
    }))
}

fn unigram(model: &Model, unknown: usize) -> Value {
    let vocab: Vec<Value> =
        model.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)])).collect();
    json!({"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": model.byte_fallback})
}

fn bpe(model: &Model, unknown: usize) -> Value {
    let ids: HashMap<&str, usize> =
        model.pieces.iter().enumerate().map(|(id, piece)| (piece.text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for piece in &model.pieces {
        let mut ways: Vec<(&str, &str)> =
            piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at)).collect();
        ways.retain(|(left, right)| ids.contains_key(left) && ids.contains_key(right));
        ways.sort_by_key(|(left, right)| (ids[left], ids[right]));
        merges.extend(ways.into_iter().map(|way| (piece.score, way)));
    }
    // Stable, so that pieces of one score keep their order, as in Python; longer parts first among them.
    let length = |text: &str| text.chars().count();
    merges.sort_by(|(a, (al, ar)), (b, (bl, br))| {
        b.total_cmp(a).then(length(bl).cmp(&length(al))).then(length(br).cmp(&length(ar)))
    });
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(_, (left, right))| [left, right]).collect();
    json!({
        "type": "BPE", "dropout": null, "unk_token": model.pieces[unknown].text, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": model.byte_fallback, "ignore_merges": false,
        "vocab": ids, "merges": merges,
    })
}

fn normalizer(model: &Model) -> Value {
    let replace =
        |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let mut steps = Vec::new();
    if !model.precompiled.is_empty() {
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64(&model.precompiled)}));
    }
    if model.remove_extra_whitespaces {
        // Of spaces alone: SentencePiece leaves other white space where it is.
        steps.push(replace(json!({"Regex": r"\A +| +\z"}), ""));
        steps.push(replace(json!({"Regex": " {2,}"}), " "));
    }
    let space = if model.escape_whitespaces { SPACE } else { " " };
    if model.add_dummy_prefix {
        steps.push(json!({"type": "Prepend", "prepend": space}));
    }
    if model.escape_whitespaces {
        steps.push(replace(json!({"String": " "}), SPACE));
    }
    json!({"type": "Sequence", "normalizers": steps})
}

fn decoder(model: &Model) -> Value {
    let mut steps = vec![json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})];
    if model.byte_fallback {
        steps.push(json!({"type": "ByteFallback"}));
    }
    steps.push(json!({"type": "Fuse"}));
    if model.add_dummy_prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

fn read(bytes: &[u8]) -> Result<Model, String> {
    let mut model = Model {
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        escape_whitespaces: true,
        ..Model::default()
    };
    for field in Fields::of(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => model.pieces.push(read_piece(piece)?),
            (2, Field::Bytes(trainer)) => read_trainer(trainer, &mut model)?,
            (3, Field::Bytes(normalizer)) => read_normalizer(normalizer, &mut model)?,
            _ => {}
        }
    }
    match model.pieces.is_empty() {
        true => Err("it has no pieces".to_owned()),
        false => Ok(model),
    }
}

fn read_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for field in Fields::of(bytes) {
        match field? {
            (1, Field::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece is not UTF-8")?;
            }
            (2, Field::Word(score)) => piece.score = f32::from_bits(score),
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Ok(piece)
}

fn read_trainer(bytes: &[u8], model: &mut Model) -> Result<(), String> {
    for field in Fields::of(bytes) {
        match field? {
            (3, Field::Number(1)) => model.is_bpe = false,
            (3, Field::Number(2)) => model.is_bpe = true,
            (3, Field::Number(other)) => {
                let kind = if other == 3 { "words" } else { "characters" };
                return Err(format!("it is a model of {kind}; those of unigrams and of byte pairs are read"));
            }
            (24, Field::Number(1)) => {
                return Err("it writes spaces behind words, which is not supported".to_owned());
            }
            (35, Field::Number(on)) => model.byte_fallback = on != 0,
            _ => {}
        }
    }
    Ok(())
}

fn read_normalizer(bytes: &[u8], model: &mut Model) -> Result<(), String> {
    for field in Fields::of(bytes) {
        match field? {
            (2, Field::Bytes(precompiled)) => model.precompiled = precompiled.to_vec(),
            (3, Field::Number(on)) => model.add_dummy_prefix = on != 0,
            (4, Field::Number(on)) => model.remove_extra_whitespaces = on != 0,
            (5, Field::Number(on)) => model.escape_whitespaces = on != 0,
            _ => {}
        }
    }
    Ok(())
}

/// A field of a protobuf message.
#[derive(Debug, Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// 32 bits: what a float is written in.
    Word(u32),
    Other,
}

/// The fields of a message, each with its number.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8], String> {
        let taken = usize::try_from(bytes).ok().and_then(|bytes| self.rest.split_at_checked(bytes));
        let (taken, rest) = taken.ok_or("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number in it is longer than 64 bits".to_owned())
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), String> {
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = self.number()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes: [u8; 4] = self.take(4)?.try_into().expect("four bytes were taken");
                Field::Word(u32::from_le_bytes(bytes))
            }
            kind => return Err(format!("it has a field of kind {kind}, which protobuf does not know")),
        };
        Ok((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Base 64 with padding (RFC 4648), as `tokenizer.json` holds bytes.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn no_bytes_are_taken_for_a_model_by_mistake() {
        for bytes in [
            &b""[..],
            b"\x0a",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x07",
            b"\x0a\x02\x0a\x05",
        ] {
            assert!(convert(bytes).is_err(), "{bytes:?}");
        }
    }
}
