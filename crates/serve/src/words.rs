//! Tokens of an answer → its text, piece by piece, up to one of the texts that end it.

use sft_data::tokenize::DecodeStream;

/// The text of an answer as it comes. What may be the beginning of a text that ends it is held back.
#[derive(Debug)]
pub struct Words<'a> {
    stream: DecodeStream<'a>,
    stops: &'a [String],
    held: String,
}

/// A piece of text, and whether it is the last.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text; it may be empty.
    pub text: String,
    /// A text that ends the answer came behind it.
    pub stopped: bool,
}

impl<'a> Words<'a> {
    /// `stops` end the answer and are no part of it.
    pub fn new(stream: DecodeStream<'a>, stops: &'a [String]) -> Self {
        Self { stream, stops, held: String::new() }
    }

    /// The text that is certain with this token.
    pub fn push(&mut self, id: u32) -> Piece {
        let more = self.stream.push(id).unwrap_or_default();
        let (piece, held) = release(std::mem::take(&mut self.held) + &more, self.stops, false);
        self.held = held;
        piece
    }

    /// All that is left.
    pub fn finish(self) -> Piece {
        release(self.held + &self.stream.finish(), self.stops, true).0
    }
}

/// What of a text can be given out, and what is held back because more may come.
fn release(mut text: String, stops: &[String], all: bool) -> (Piece, String) {
    let first = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
    if let Some(at) = first {
        text.truncate(at);
        return (Piece { text, stopped: true }, String::new());
    }
    let begins_stop = |at: usize| stops.iter().any(|stop| stop.starts_with(&text[at..]));
    let held = match all {
        true => None,
        false => text.char_indices().map(|(at, _)| at).find(|&at| begins_stop(at)),
    };
    let held = held.map_or_else(String::new, |at| text.split_off(at));
    (Piece { text, stopped: false }, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a text that comes in pieces, and whether it was stopped.
    fn given_out(pieces: &[&str], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let (mut held, mut given) = (String::new(), Vec::new());
        for (at, piece) in pieces.iter().enumerate() {
            let (out, rest) = release(held + piece, &stops, at + 1 == pieces.len());
            given.push(out.text);
            if out.stopped {
                return (given, true);
            }
            held = rest;
        }
        (given, false)
    }

    #[test]
    fn a_text_that_ends_the_answer_is_found_across_pieces_and_is_no_part_of_it() {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(given_out(&["one E", "N", "D two"], &["END"]), (owned(&["one ", "", ""]), true));
        assert_eq!(given_out(&["one END"], &["D", "END"]), (owned(&["one "]), true), "the first of them");
        assert_eq!(given_out(&["one E", "xit"], &["END"]), (owned(&["one ", "Exit"]), false));
        assert_eq!(given_out(&["aab", "c"], &["abd"]), (owned(&["a", "abc"]), false));
        assert_eq!(given_out(&["über", "ü"], &["üx"]), (owned(&["über", "ü"]), false), "the end gives all");
    }

    #[test]
    fn without_such_texts_nothing_is_held_back() {
        assert_eq!(given_out(&["a", "b"], &[]).0, ["a", "b"]);
    }
}
