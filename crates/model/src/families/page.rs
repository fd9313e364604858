//! The registry as a page: what `sft models` prints and `docs/models.md` holds.

use std::fmt::Write;

use super::registry::FAMILIES;
use super::wrappers::{refused, wrapped};

const HEAD: &str = "\
# Models

This page is what `sft models` prints. The `model_type` of a folder's `config.json` says which family a model is of. With every family all methods work: full, freeze and
LoRA (on all linear layers, experts included), in float32 and bfloat16, and generation with a cache of its kind. A head whose rows are
divided by their length is not trained; LoRA beside it is.

Released models are examples: any checkpoint of the family is read. Templates are those that LLaMA-Factory has for some of them;
`template: auto` takes the model's own. A family is compared with transformers by `sft parity` (logits, loss, gradients, training),
or, where transformers has no class, with the family named here: the same weights in both layouts give the same logits.
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
        "{HEAD}\n| `model_type` | what it is | released | templates | compared with |\n|---|---|---|---|---|\n"
    );
    for family in FAMILIES {
        let templates =
            family.templates.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let compared = family.twin.map_or("transformers".to_owned(), |twin| format!("`{twin}`"));
        let cells = [family.about, family.released, &templates, &compared].map(in_cell).join(" | ");
        put(&mut page, format_args!("| `{}` | {cells} |", family.model_type));
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

/// Text in a cell of a table; a dash where there is none.
fn in_cell(text: &str) -> &str {
    if text.is_empty() { "—" } else { text }
}

fn put(page: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "{line}");
}
