//! Files of a model, by the crates that fetch, read and copy them, none of which knows the others.

/// The texts in quotes between two marks of a source file.
fn quoted<'a>(source: &'a str, from: &str, to: &str) -> Vec<&'a str> {
    let begin = source.find(from).expect("the list is there") + from.len();
    let list = &source[begin..];
    let list = &list[..list.find(to).expect("the list ends")];
    list.split('"').skip(1).step_by(2).collect()
}

#[test]
fn every_file_that_is_read_or_copied_of_a_model_is_fetched_from_a_hub() {
    let copied = sft_model::saving::MODEL_FILES;
    let read = quoted(include_str!("../../../data/src/tokenize/model_file.rs"), "let named = [", "];");
    assert!(copied.contains(&"tokenizer.json") && read.contains(&"spiece.model"), "{copied:?} {read:?}");
    for name in copied.iter().chain(&read) {
        assert!(sft_hub::is_description(name), "{name}");
    }
}
