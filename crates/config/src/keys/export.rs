//! Keys about export: the merged model that `sft export` writes.

macro_rules! export_keys {
    ($next:ident $($rest:ident)* ; $($rows:tt)*) => { $next! { $($rest)* ; $($rows)* group "Export" {
        /// Folder for the merged model.
        export_dir: PathBuf { required: [Export], read_by: "export" }
        /// Largest file of weights in GB (10⁹ bytes).
        export_size: u64 { default: 5, range: Range::at_least(1.0), read_by: "export" }
        /// The device that merges: the CPU, or with `auto` the one that `device` says.
        export_device: ExportDevice { read_by: "export" }
    } } };
}

pub(super) const NO_EFFECT: &[super::NoEffectKeys] = &[(
    &["export_quantization_dataset", "export_quantization_nsamples", "export_quantization_maxlen"],
    "read only with `export_quantization_bit`, which is not built: `quantization_bit` of `sft export` needs no data",
)];

pub(super) const NOT_YET: &[super::NotYetKey] = &[
    (
        "export_quantization_bit",
        "null",
        "use `quantization_bit: 4` or 8 with `sft export`, which writes bitsandbytes' formats; GPTQ and AWQ take another tool",
    ),
    ("export_legacy_format", "false", "leave it out: weights are written as safetensors, never as pickles"),
    ("export_hub_model_id", "null", "leave it out and upload `export_dir` afterwards"),
];
