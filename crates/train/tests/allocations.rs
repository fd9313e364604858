//! A step works in the memory that was planned: after the first one nothing more is asked of the allocator but lists of
//! pointers.

use std::alloc::System;

use sft_config::{Purpose, load_text};
use sft_train::trainer::Trainer;
use sft_train::{Job, setup};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

/// Bytes and calls of the allocator during the third step of a run with these keys. On one thread: of several, one may
/// get its first task, and with it its buffers, in any step.
fn of_a_step(keys: &[&str]) -> (usize, usize) {
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\n\
         max_samples: 24\ncutoff_len: 64\noutput_dir: unused\nper_device_train_batch_size: 4\nmax_steps: 9\n\
         device: cpu\nthreads: 1\n"
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    let config = load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap();
    let mut job = Job::prepare(config).unwrap();
    let dev = setup::device(&job.config).unwrap();
    dev.install(|| {
        let mut trainer = Trainer::new(&dev, &job).unwrap();
        let batches: Vec<_> = (0..3).map(|_| job.train.next_step().unwrap()).collect();
        for step in 0..2 {
            trainer.step(&job, step, &batches[step as usize]).unwrap();
        }
        let region = Region::new(ALLOCATOR);
        trainer.step(&job, 2, &batches[2]).unwrap();
        let change = region.change();
        (change.bytes_allocated, change.allocations)
    })
}

#[test]
fn a_step_allocates_no_tensor() {
    for keys in [
        &["finetuning_type=full"][..],
        &["finetuning_type=lora", "lora_dropout=0.1", "bf16=true"],
        &["finetuning_type=lora", "disable_gradient_checkpointing=false"],
        &["finetuning_type=oft", "module_dropout=0.3", "bf16=true"],
    ] {
        let (bytes, calls) = of_a_step(keys);
        println!("{keys:?}: {bytes} bytes in {calls} calls");
        // A [64, 192] tensor in bf16, the smallest of a block, is 24 KiB.
        assert!(bytes < 16 << 10, "{keys:?}: {bytes} bytes in {calls} calls");
    }
}
