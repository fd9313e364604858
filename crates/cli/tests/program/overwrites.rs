//! What a run that begins in an occupied folder leaves of the one before, and what is refused there.

use std::fs;

use crate::place::{Place, text};

#[test]
fn an_occupied_folder_is_told_before_questions_are_answered() {
    let place =
        Place::new("max_steps: 1\neval_dataset: quickstart_heldout\nshow_answers: 2\nmax_new_tokens: 1\n");
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/model.safetensors"), "w").unwrap();
    let refused = place.train("out", &[]).output().unwrap();
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("already holds a trained model"), "{said}");
    assert!(!said.contains("held-out questions"), "{said}");
}
