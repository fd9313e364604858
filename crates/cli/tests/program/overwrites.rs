//! What a run that begins in an occupied folder leaves of the one before, and what is refused there.

use std::fs;

use crate::place::{Place, QUICKSTART, text};

/// The quick start's model itself, so that adapters have something to stand on.
fn with_base() -> Place {
    Place::new("max_steps: 1\nsave_strategy: 'no'\n")
}

const LORA: [&str; 2] = ["train_from_scratch=false", "finetuning_type=lora"];

#[test]
fn a_model_of_another_kind_leaves_nothing_of_the_one_before() {
    let place = with_base();
    let has = |name: &str| place.path("out").join(name).is_file();
    for (keys, there, gone) in [
        (&LORA[..], "adapter_model.safetensors", "model.safetensors"),
        (&["overwrite_output_dir=true"], "model.safetensors", "adapter_model.safetensors"),
        (&[&LORA[..], &["overwrite_output_dir=true"]].concat(), "adapter_config.json", "config.json"),
    ] {
        let run = place.train("out", keys).output().unwrap();
        assert!(run.status.success(), "{}", text(&run));
        assert!(has(there) && !has(gone), "{keys:?}");
    }
}

#[test]
fn a_run_that_fails_leaves_no_weights_of_the_one_before() {
    let place = with_base();
    assert!(place.train("out", &LORA).output().unwrap().status.success());
    let keys = [&LORA[..], &["overwrite_output_dir=true", "learning_rate=1e30", "max_steps=9"]].concat();
    let failed = place.train("out", &keys).output().unwrap();
    assert!(!failed.status.success(), "{}", text(&failed));
    assert!(!place.path("out/adapter_model.safetensors").exists());
}

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

#[test]
fn a_model_is_never_removed_by_a_run_into_its_own_folder() {
    let place = with_base();
    fs::create_dir(place.path("base")).unwrap();
    for entry in fs::read_dir(format!("{QUICKSTART}/base")).unwrap().flatten() {
        fs::copy(entry.path(), place.path("base").join(entry.file_name())).unwrap();
    }
    let keys = ["model_name_or_path=base", "overwrite_output_dir=true"];
    let refused = place.train("base", &keys).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("holds what `model_name_or_path` names"));
    assert!(place.path("base/model.safetensors").is_file());
}

#[test]
fn a_resume_that_is_refused_removes_nothing_of_the_run_that_was_there() {
    let place = Place::new("max_steps: 2\nsave_steps: 1\n");
    for output in ["a", "b"] {
        assert!(place.train(output, &[]).output().unwrap().status.success());
    }
    let keys = ["resume_from_checkpoint=b/checkpoint-1", "overwrite_output_dir=true", "optim=sgd"];
    let refused = place.train("a", &keys).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("`optim` was"), "{}", text(&refused));
    assert!(place.path("a/model.safetensors").is_file());
}
