//! The registry as a page: what `sft models` prints and `docs/models.md` holds.

use std::fmt::Write;

use sft_kernels::DType;

use super::figures;
use super::registry::{FAMILIES, Family};
use super::wrappers::{refused, wrapped};

const HEAD: &str = "\
# Models

This page is what `sft models` prints. The `model_type` of a folder's `config.json` says which family a model is of. Released models are
examples: any checkpoint of the family is read. Templates are those that LLaMA-Factory has for some of them; `template: auto` takes the
model's own. All families generate with a cache of their kind, and compute in float32 and bfloat16.

**Methods.** *All*: full, freeze, LoRA on all linear layers and its variants (DoRA, PiSSA), OFT (unless linear layers are stored as
[in, out]), QLoRA and QOFT. *All, experts plain*: full, freeze and LoRA (`lora_target_parameters`, [experts.md](experts.md)) train the
experts; LoRA's variants and OFT are for the linear layers beside them, as with PEFT, and QLoRA leaves experts in 16 bits. *No DoRA on
routers*: LoRA adapts the router too, which has no magnitudes. A head whose rows are divided by their length is not trained; LoRA beside
it is. `crates/model/tests/methods.rs` trains a small model of every family with each.

**Figures.** The largest differences from transformers and PEFT by `sft parity`, over the cases of a family: logits (relative to the largest
logit) · loss · gradient of any weight (relative, L2) · losses of six steps of training, full and LoRA. Both dtypes are compared with
transformers' float32; what transformers' own bfloat16 is off by, and how to repeat it: [parity.md](parity.md). Where transformers has no
class, the family named there is computed with the same weights in both layouts, and gives the same logits.
";

const WRAPPERS: &str = "
## Text parts of larger models

Of models that read images, sound or video too, the text part is trained, on text. Weights of the other parts are left aside. What is
written is a text model: its `config.json` is that of the text part, and an adapter's names are those of the text part alone.

| `model_type` | text part | its weights begin with |
|---|---|---|
";

const REFUSED: &str = "
## Known and refused

| `model_type` | why |
|---|---|
";

/// The page, in Markdown.
pub fn page() -> String {
    let mut page = format!(
        "{HEAD}\n| `model_type` | what it is | released | templates | methods | float32 | bfloat16 |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for family in FAMILIES {
        let templates =
            family.templates.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let [float32, bfloat16] = [DType::F32, DType::BF16].map(|dtype| match family.twin {
            Some(twin) => format!("as `{twin}`"),
            None => figures::of(family.model_type, dtype).map_or_else(String::new, |all| all.to_string()),
        });
        let cells = [family.about, family.released, &templates, methods(family), &float32, &bfloat16];
        put(&mut page, format_args!("| `{}` | {} |", family.model_type, cells.map(in_cell).join(" | ")));
    }
    page.push_str(WRAPPERS);
    for (name, family, moved) in wrapped() {
        put(&mut page, format_args!("| `{name}` | {family} | {moved} |"));
    }
    page.push_str(REFUSED);
    for (name, reason) in refused() {
        put(&mut page, format_args!("| `{name}` | {reason} |"));
    }
    page
}

/// Which methods work; the head of the page says what the words are.
fn methods(family: &Family) -> &'static str {
    match (family.experts().is_some(), family.adapts_routers()) {
        (false, _) => "all",
        (true, false) => "all, experts plain",
        (true, true) => "all, experts plain, no DoRA on routers",
    }
}

/// Text in a cell of a table; a dash where there is none.
fn in_cell(text: &str) -> &str {
    if text.is_empty() { "—" } else { text }
}

fn put(page: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "{line}");
}
