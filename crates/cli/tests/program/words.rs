//! What commands say and how they end: figures of runs without steps, questions that cannot be asked, readers that go
//! away, words that are no command.

use std::fs;
use std::process::Stdio;

use crate::place::{Place, QUICKSTART, text};

const EVALUATES: &str = "eval_dataset: quickstart_heldout\n";

#[test]
fn an_evaluation_alone_speaks_of_no_step_and_no_trained_weights() {
    let place = Place::new("eval_dataset: quickstart_heldout\n");
    let keys = ["do_train=false", "do_eval=true", "train_from_scratch=false"];
    let run = place.train("out", &keys).output().unwrap();
    let said = text(&run);
    assert!(run.status.success() && said.contains("eval_loss"), "{said}");
    assert!(!said.contains("0 steps") && !said.contains("digest of the trained weights"), "{said}");
}

#[test]
fn a_resume_that_has_no_step_left_says_so() {
    let place = Place::new("save_steps: 1\n");
    assert!(place.train("out", &["max_steps=2"]).output().unwrap().status.success());
    let run = place.train("out", &["max_steps=1"]).output().unwrap();
    let said = text(&run);
    assert!(said.contains("nothing was left to train after step 2") && !said.contains("2 steps"), "{said}");
}

#[test]
fn another_ledger_is_no_change_of_the_run() {
    let place = Place::new("save_steps: 1\nmax_steps: 2\n");
    assert!(place.train("out", &["ledger=one.sqlite"]).output().unwrap().status.success());
    let run = place.train("out", &["ledger=two.sqlite"]).output().unwrap();
    assert!(!text(&run).contains("changed since last time"), "{}", text(&run));
}

#[test]
fn a_question_that_leaves_no_room_is_counted_and_ends_no_run() {
    let place = Place::new(&format!("{EVALUATES}max_steps: 1\nsave_strategy: 'no'\n"));
    let rows: Vec<_> = ["hat", &"hat ".repeat(600)]
        .map(|asked| serde_json::json!({"instruction": asked, "input": "", "output": "cap"}))
        .into();
    fs::write(place.path("asked.json"), serde_json::to_string(&rows).unwrap()).unwrap();
    let asked = format!("eval_dataset={}", place.path("asked.json").display());
    let keys = [asked.as_str(), "show_answers=2", "max_new_tokens=2"];
    let run = place.train("out", &keys).output().unwrap();
    let said = text(&run);
    assert!(run.status.success(), "{said}");
    assert!(
        said.contains("of 1 questions") && said.contains("not asked: 1 more, the first because "),
        "{said}"
    );
    let lines = fs::read_to_string(place.path("out/held_out_answers.jsonl")).unwrap();
    assert!(lines.lines().count() == 2 && lines.contains("\"problem\":"), "{lines}");
}

#[test]
fn nothing_is_asked_of_a_model_that_is_trained_on_texts() {
    let place = Place::new("stage: pt\nmax_steps: 1\nsave_strategy: 'no'\n");
    fs::write(place.path("texts.json"), r#"[{"text": "A hat is a cap."}, {"text": "A cap is a hat."}]"#)
        .unwrap();
    let texts = place.path("texts.json").display().to_string();
    let keys = [format!("dataset={texts}"), format!("eval_dataset={texts}")];
    let run = place.train("out", &[&keys[0], &keys[1], "show_answers=2"]).output().unwrap();
    let said = text(&run);
    assert!(run.status.success() && said.contains("nothing is asked with `stage: pt`"), "{said}");
    assert!(!place.path("out/held_out_answers.jsonl").exists());
}

#[test]
fn a_recipe_that_evaluates_alone_is_timed_and_one_without_rows_to_train_on_is_told_what_lacks() {
    let place = Place::new(&format!("{EVALUATES}do_train: false\ndo_eval: true\noutput_dir: out\n"));
    let bench = place.sft(&["bench", "config.yaml", "--steps", "1", "--warm-up", "0"]).output().unwrap();
    assert!(bench.status.success() && text(&bench).contains("tokens_per_s"), "{}", text(&bench));
    let config = fs::read_to_string(place.path("config.yaml")).unwrap();
    fs::write(place.path("config.yaml"), config.replace("dataset: quickstart_train\n", "")).unwrap();
    let bench = place.sft(&["bench", "config.yaml"]).output().unwrap();
    assert!(!bench.status.success() && text(&bench).contains("`dataset` is missing"), "{}", text(&bench));
}

#[test]
fn an_answer_is_not_timed_with_options_of_training() {
    let place = Place::new("");
    for option in [&["--steps", "2"][..], &["--warm-up", "2"], &["--random-weights"], &["--profile"]] {
        let bench =
            place.sft(&[&["bench", "config.yaml", "--decode", "2"], option].concat()).output().unwrap();
        assert_eq!(bench.status.code(), Some(2), "{option:?}: {}", text(&bench));
        assert!(text(&bench).contains("cannot be used with"), "{}", text(&bench));
    }
}

#[test]
fn a_recipe_of_a_training_answers_its_rows_by_a_command() {
    let place = Place::new(&format!(
        "{EVALUATES}output_dir: out\nmax_new_tokens: 4\neval_strategy: epoch\nsave_strategy: epoch\n\
         load_best_model_at_end: true\nearly_stopping_steps: 2\nresume_from_checkpoint: true\nshow_answers: 2\n"
    ));
    let run = place.sft(&["predict", "config.yaml"]).output().unwrap();
    let said = text(&run);
    assert!(run.status.success() && said.contains("steps: none, answers alone"), "{said}");
    assert!(said.contains("predict_rouge-l") && said.contains("generated_predictions.jsonl"), "{said}");
    let lines = fs::read_to_string(place.path("out/generated_predictions.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 24);
    assert!(!place.path("out/model.safetensors").exists());
    // What a command line asks beside it is refused, and so are answers of another model than the folder's adapter.
    let refused = place.sft(&["predict", "config.yaml", "do_train=true"]).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("trains nothing"), "{}", text(&refused));
    fs::write(place.path("out/adapter_config.json"), "{}").unwrap();
    let refused = place.sft(&["predict", "config.yaml", "finetuning_type=lora"]).output().unwrap();
    assert!(
        !refused.status.success() && text(&refused).contains("`adapter_name_or_path=out`"),
        "{}",
        text(&refused)
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new("output_dir: out\n");
    let chat = [&format!("model_name_or_path={QUICKSTART}/base")[..], "device=cpu", "max_new_tokens=3"];
    fs::write(place.path("questions"), "hat\n".repeat(3)).unwrap();
    for words in [
        &["data", "show", "config.yaml", "--rows", "0..20"][..],
        &["data", "check", "config.yaml"],
        &[&["chat"], &chat[..]].concat(),
    ] {
        let mut command = place.sft(words);
        command.stdin(fs::File::open(place.path("questions")).unwrap());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && !said.contains("error"), "{words:?}: {said}");
    }
}

#[test]
fn commands_of_llama_factory_that_are_others_here_are_named() {
    let place = Place::new("");
    for (word, instead) in [
        ("api", "`sft serve`"),
        ("webchat", "`sft serve` has a page"),
        ("eval", "`do_eval: true`"),
        ("version", "`sft --version`"),
        ("env", "`sft doctor`"),
    ] {
        let refused = place.sft(&[word]).output().unwrap();
        let said = text(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(instead) && !said.contains("tip:"), "{said}");
    }
    // Any other word is clap's matter.
    let refused = place.sft(&["tran"]).output().unwrap();
    assert!(refused.status.code() == Some(2) && text(&refused).contains("'train'"), "{}", text(&refused));
}
