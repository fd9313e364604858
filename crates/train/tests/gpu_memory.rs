//! What a step takes of a GPU's memory: alone in its process, which is what counts. Needs a GPU, or the emulated one.

use sft_config::{Purpose, load_text};
use sft_kernels::{CpuOptions, Device};
use sft_train::Job;
use sft_train::trainer::Trainer;

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

#[test]
fn steps_take_no_memory_of_the_gpu() {
    if std::env::var_os("SFT_TEST_CUDA").is_none() {
        eprintln!("steps_take_no_memory_of_the_gpu: not run on a GPU: SFT_TEST_CUDA is not set");
        return;
    }
    let gpu = Device::gpu(0, CpuOptions::default()).unwrap();
    // With biases too.
    let model = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(format!("{QUICKSTART}/base")).unwrap().flatten() {
        std::fs::copy(file.path(), model.path().join(file.file_name())).unwrap();
    }
    let config = model.path().join("config.json");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace("\"attention_bias\": false", "\"attention_bias\": true");
    std::fs::write(&config, text).unwrap();
    let path = format!("model_name_or_path={}", model.path().display());
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\n\
         max_samples: 24\ncutoff_len: 64\noutput_dir: unused\nper_device_train_batch_size: 2\n\
         gradient_accumulation_steps: 2\nmax_steps: 10\nlearning_rate: 1e-3\ndevice: cpu\nbf16: true\n"
    );
    let with_biases = [path, "train_from_scratch=true".to_owned()];
    for (method, more) in [("full", &with_biases[..]), ("lora", &[]), ("freeze", &[])] {
        let keys = [&[format!("finetuning_type={method}")], more].concat();
        let config = load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap();
        let mut job = Job::prepare(config).unwrap();
        job.join(0).unwrap();
        let taken: Vec<usize> = gpu.install(|| {
            let mut trainer = Trainer::new(&gpu, &job).unwrap();
            let steps = 0..job.total_steps;
            let step = |step| {
                let batch = job.train.next_step().unwrap();
                trainer.step(&job, step, &batch).unwrap();
                gpu.cuda().unwrap().allocations()
            };
            steps.map(step).collect()
        });
        // By then there is an array for each that the ops of a micro-batch send.
        assert_eq!(taken[5], taken[9], "{method}: {taken:?}");
    }
}
