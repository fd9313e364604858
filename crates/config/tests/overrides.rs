//! `key=value` on the command line.

use sft_config::{Amount, Purpose, RunConfig, Targets, load, load_text};

const GOOD: &str = "model_name_or_path: m\ndataset: d\noutput_dir: o\n";

fn with(overrides: &[&str]) -> Result<RunConfig, String> {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    load_text(GOOD, "c.yaml", &overrides, Purpose::Train).map_err(|errors| errors.to_string())
}

#[test]
fn an_override_replaces_the_files_value_and_the_last_one_wins() {
    let c = with(&["dataset=a,b", "learning_rate=1e-4", "learning_rate=2e-4"]).unwrap();
    assert_eq!((c.dataset.len(), c.learning_rate), (2, 2e-4));
}

#[test]
fn an_override_may_be_a_flag_with_dashes() {
    assert_eq!(with(&["--lora_rank=4"]).unwrap().lora_rank, 4);
}

#[test]
fn an_override_may_be_a_list_or_a_mapping() {
    let c = with(&[
        "lora_target=[q_proj, v_proj]",
        "lr_scheduler_type=cosine_with_min_lr",
        "lr_scheduler_kwargs={min_lr: 1e-6}",
    ]);
    let c = c.unwrap();
    assert_eq!(c.lora_target, Targets::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(c.lr_scheduler_kwargs.min_lr, Some(1e-6));
}

#[test]
fn a_dotted_override_reaches_into_a_mapping() {
    let text =
        format!("{GOOD}lr_scheduler_type: polynomial\nlr_scheduler_kwargs:\n  power: 2\n  lr_end: 1e-7\n");
    let overrides = ["lr_scheduler_kwargs.power=3".to_string()];
    let c = load_text(&text, "c.yaml", &overrides, Purpose::Train).unwrap();
    assert_eq!((c.lr_scheduler_kwargs.power, c.lr_scheduler_kwargs.lr_end), (Some(3.0), Some(1e-7)));
}

#[test]
fn the_text_of_an_override_is_taken_literally() {
    let c = with(&["default_system=You are: kind # really = yes", "run_name='null'"]).unwrap();
    assert_eq!(c.default_system.as_deref(), Some("You are: kind # really = yes"));
    assert_eq!(c.run_name.as_deref(), Some("null"));
}

#[test]
fn quotes_go_only_where_they_are_around_one_text() {
    let system = |text: &str| with(&[&format!("default_system={text}")]).unwrap().default_system;
    assert_eq!(system("'[INST] hi'").as_deref(), Some("[INST] hi"));
    assert_eq!(system("'Yes' or 'No'").as_deref(), Some("'Yes' or 'No'"));
}

#[test]
fn an_empty_override_is_null() {
    assert_eq!(with(&["max_samples="]).unwrap().max_samples, None);
}

#[test]
fn an_argument_without_an_equals_sign_is_refused() {
    let errors = with(&["lora_rank", "=3"]).unwrap_err();
    assert!(errors.contains("command line: lora_rank: `lora_rank` is not of the form key=value"), "{errors}");
    assert!(errors.contains("2 problems"), "{errors}");
}

#[test]
fn a_wrong_override_is_reported_with_its_text() {
    let errors = with(&["lora_rnak=8", "val_size=often"]).unwrap_err();
    assert!(errors.contains("command line: lora_rnak=8: unknown key"), "{errors}");
    assert!(errors.contains("command line: val_size=often: `val_size` takes a count"), "{errors}");
    assert!(with(&["lora_target=[q_proj"]).unwrap_err().contains("command line"));
}

#[test]
fn a_token_on_the_command_line_is_never_shown() {
    let c = with(&["hf_hub_token=hf_abc"]).unwrap();
    assert_eq!(c.hf_hub_token.reveal(), Some("hf_abc"));
    assert!(!format!("{c:?}").contains("hf_abc"));
    assert!(!c.resolved_yaml().contains("hf_abc"));
    assert!(!with(&["HF_TOKEN=hf_abc"]).unwrap_err().contains("hf_abc"));
}

#[test]
fn overrides_alone_make_a_configuration() {
    let overrides = ["model_name_or_path=m".to_string()];
    assert_eq!(load(None, &overrides, Purpose::Chat).unwrap().model_name_or_path, "m");
    let missing = load(None, &[], Purpose::Chat).unwrap_err().to_string();
    assert!(missing.contains("configuration: `model_name_or_path` is missing"), "{missing}");
}

#[test]
fn an_amount_of_a_whole_is_rounded_up() {
    assert_eq!(with(&["warmup_steps=0.1"]).unwrap().warmup_steps.of(95), 10);
    assert_eq!(with(&["warmup_steps=7"]).unwrap().warmup_steps, Amount::Count(7));
    assert_eq!(with(&["warmup_ratio=1"]).unwrap().warmup_steps.of(95), 95);
}

#[test]
fn a_mapping_may_be_a_json_text() {
    let text = format!("{GOOD}lr_scheduler_type: polynomial\nlr_scheduler_kwargs: '{{\"power\": 2}}'\n");
    let c = load_text(&text, "c.yaml", &[], Purpose::Train).unwrap();
    assert_eq!(c.lr_scheduler_kwargs.power, Some(2.0));
}
