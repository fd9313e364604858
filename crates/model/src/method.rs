//! Which weights are trained: all, some, or adapters beside frozen ones.

mod carried;
mod options;

use crate::ModelError;
use crate::loading;
use crate::spec::{DecoderSpec, LayerSpec, MoeSpec};

pub use carried::{Adapters, Carried, LayerAdapters, LowRank, Rotated};
pub use options::{AdapterOptions, LoraInit, LoraOptions, OftBlocks, OftOptions, Targets};

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Nothing: evaluation and generation.
    Inference,
    /// Every weight.
    Full,
    /// The weights whose names contain one of these parts (`.11.mlp`, `lm_head`).
    Freeze {
        /// Parts of names.
        trained: Vec<String>,
    },
    /// Adapters on linear layers, and whole modules beside them.
    Lora(LoraOptions),
    /// Rotations of what linear layers read, and whole modules beside them.
    Oft(OftOptions),
}

impl Method {
    /// Its name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Inference => "inference",
            Method::Full => "full",
            Method::Freeze { .. } => "freeze",
            Method::Lora(_) => "lora",
            Method::Oft(_) => "oft",
        }
    }

    /// Freeze as LLaMA-Factory has it: the last `layers` blocks (the first, if negative), in them all modules or those
    /// named, and modules outside of the blocks.
    ///
    /// # Errors
    /// More layers than there are; names of modules that the model lacks.
    pub fn freeze(
        spec: &DecoderSpec,
        layers: i64,
        modules: &[String],
        extra: &[String],
    ) -> Result<Self, ModelError> {
        let total = spec.layers.len();
        let count = usize::try_from(layers.unsigned_abs()).unwrap_or(usize::MAX);
        if count > total || (count == 0 && extra.is_empty()) {
            return Err(ModelError::Method {
                key: "freeze_trainable_layers",
                reason: format!("{layers} of {total} layers"),
                help: format!("choose 1 to {total}, or −{total} to −1 for the first ones"),
            });
        }
        let blocks = if layers >= 0 { total - count..total } else { 0..count };
        Self::freeze_all_but(spec, blocks, modules, extra)
    }

    /// As [`Method::freeze`], of these blocks.
    ///
    /// # Errors
    /// Names of modules that the model lacks.
    pub fn freeze_all_but(
        spec: &DecoderSpec,
        blocks: impl IntoIterator<Item = usize>,
        modules: &[String],
        extra: &[String],
    ) -> Result<Self, ModelError> {
        let inside: Vec<&str> = spec.layers.first().map(block_parts).unwrap_or_default();
        let around = outside_modules(spec);
        let outside: Vec<&str> = around.iter().map(|path| last_part(path)).collect();
        let unknown = |key, names: &[String], known: &[&str]| {
            let bad = names.iter().find(|name| !known.contains(&name.as_str()));
            bad.map(|name| ModelError::Method {
                key,
                reason: format!("the model has no module `{name}`"),
                help: format!("choose among {}", known.join(", ")),
            })
        };
        let all = modules.is_empty() || modules.iter().any(|name| name == "all");
        let named: &[String] = if all { &[] } else { modules };
        if let Some(error) = unknown("freeze_trainable_modules", named, &inside)
            .or_else(|| unknown("freeze_extra_modules", extra, &outside))
        {
            return Err(error);
        }
        let is_named = |path: &&&str| extra.iter().any(|name| name == last_part(path));
        let mut trained: Vec<String> =
            around.iter().filter(is_named).map(|path| format!("{path}.")).collect();
        for block in blocks {
            if all {
                trained.push(spec.names.in_block(block, ""));
            }
            trained.extend(named.iter().map(|name| spec.names.in_block(block, &format!("{name}."))));
        }
        Ok(Method::Freeze { trained })
    }

    /// Whether a weight of the base model is trained.
    pub fn trains(&self, name: &str) -> bool {
        match self {
            Method::Inference => false,
            Method::Full => true,
            Method::Freeze { trained } => trained.iter().any(|part| name.contains(part.as_str())),
            Method::Lora(LoraOptions { modules_to_save, .. })
            | Method::Oft(OftOptions { modules_to_save, .. }) => is_saved(modules_to_save, name),
        }
    }

    /// The settings of its adapters, if it puts any on a model.
    pub fn adapter_options(&self) -> Option<AdapterOptions> {
        match self {
            Method::Lora(options) => Some(AdapterOptions::Lora(options.clone())),
            Method::Oft(options) => Some(AdapterOptions::Oft(options.clone())),
            Method::Inference | Method::Full | Method::Freeze { .. } => None,
        }
    }

    /// The adapters that this method puts on a model.
    ///
    /// # Errors
    /// Names in `lora_target` or `oft_target` that fit no linear layer; layers that the adapters do not fit.
    pub fn adapters(&self, spec: &DecoderSpec) -> Result<Adapters, ModelError> {
        if spec.normalised_head && self.trains(&spec.names.head()) {
            return Err(ModelError::Method {
                key: "finetuning_type",
                reason: "the rows of this model's head are divided by their length, and such a head is not trained"
                    .into(),
                help: "train with lora or freeze, without `lm_head`".into(),
            });
        }
        let Some(options) = self.adapter_options() else { return Ok(Adapters::none(spec)) };
        let (targets, whole) = (options.targets(), options.modules_to_save());
        let mut linears = Named::new(targets.names());
        // As in PEFT: what is trained whole carries no adapter.
        let is_whole = |path: &str| whole.iter().any(|whole| has_part(path, whole));
        let widths = loading::linear_widths(spec);
        let width_of = |path: &str| widths.get(path).copied().unwrap_or_default();
        let mut carries = |path: &str| {
            let suits = || options.suits(spec, path) && !options.begins_above(width_of(path));
            let is_meant = linears.names(path) || *targets == Targets::All && suits();
            is_meant && !is_whole(path)
        };
        let mut adapters = Adapters::of(Adapters::none(spec).layers, options.dropout() > 0.0);
        let mut too_narrow = None;
        let mut carried = |path: &str| {
            let width = width_of(path);
            if options.begins_above(width) {
                too_narrow.get_or_insert((path.to_owned(), width[0].min(width[1])));
            }
            options.carried(width)
        };
        for (i, layer) in adapters.layers.iter_mut().enumerate() {
            for name in spec.layers[i].linear_names() {
                let path = spec.names.in_block(i, name);
                if carries(&path) {
                    layer.carried.insert(name.to_owned(), carried(&path));
                }
            }
        }
        let outside = outside_linears(spec).filter(|name| carries(name));
        adapters.outside.carried.extend(outside.map(|name| (name.to_owned(), carried(name))));
        let mut parameters = Named::new(options.target_parameters());
        for (i, layer) in adapters.layers.iter_mut().enumerate() {
            for (weight, carrier) in spec.layers[i].moe.iter().flat_map(MoeSpec::parameter_targets) {
                let path = spec.names.in_block(i, &weight);
                if parameters.names(&path) && !is_whole(&path) {
                    layer.carried.insert(carrier.to_owned(), options.carried([0, 0]));
                }
            }
        }
        if adapters.is_empty() {
            // `all` leaves narrow layers out; here it left nothing.
            let narrow = |path: &String| options.begins_above(width_of(path));
            too_narrow = linear_paths(spec).find(narrow).map(|path| {
                let [outputs, inputs] = width_of(&path);
                (path, outputs.min(inputs))
            });
        }
        if let Some((path, least)) = too_narrow {
            return Err(ModelError::Method {
                key: "pissa_init",
                reason: format!("{path} has {least} singular values, and `lora_rank` asks for more"),
                help: format!("take a `lora_rank` of at most {least}, or a `lora_target` without it"),
            });
        }
        options.check(spec, &adapters)?;
        if let Some(unused) = linears.unused() {
            let names = [spec.names.embedding(), spec.names.head()];
            if names.iter().any(|name| name.trim_end_matches(".weight").rsplit('.').next() == Some(unused)) {
                return Err(ModelError::Method {
                    key: options.target_key(),
                    reason: format!("`{unused}` carries no adapter here"),
                    help: format!("`additional_target: {unused}` trains it whole beside the adapters"),
                });
            }
            return Err(ModelError::Method {
                key: options.target_key(),
                reason: format!("no linear layer is called `{unused}`"),
                help: format!("choose `all`, or among {}", linear_modules(spec).join(", ")),
            });
        }
        if let Some(unused) = parameters.unused() {
            let known = parameter_targets(spec);
            return Err(ModelError::Method {
                key: "lora_target_parameters",
                reason: format!("no weight of experts or of a router is called `{unused}`"),
                help: match known.is_empty() {
                    true => "this model has no experts; name linear layers in `lora_target`".into(),
                    false => format!("choose `all`, or among {}", known.join(", ")),
                },
            });
        }
        check_whole_modules(spec, whole)?;
        Ok(adapters)
    }
}

/// Names that are to be found among others.
struct Named<'a> {
    names: &'a [String],
    used: Vec<bool>,
}

impl<'a> Named<'a> {
    fn new(names: &'a [String]) -> Self {
        Self { names, used: vec![false; names.len()] }
    }

    /// Whether a path ends with one of them.
    fn names(&mut self, path: &str) -> bool {
        let hit = self.names.iter().position(|name| has_ending(path, name));
        if let Some(hit) = hit {
            self.used[hit] = true;
        }
        hit.is_some()
    }

    /// The first that nothing ended with.
    fn unused(&self) -> Option<&'a str> {
        self.used.iter().position(|used| !used).map(|unused| self.names[unused].as_str())
    }
}

/// What `lora_target_parameters` can name of a model, in its order.
fn parameter_targets(spec: &DecoderSpec) -> Vec<String> {
    let weights = mixtures(spec).flat_map(MoeSpec::parameter_targets).map(|(weight, _)| weight);
    distinct(weights.map(|weight| last_two_parts(&weight).to_owned()))
}

/// The weights of all experts, by ends of their names that PEFT's `target_parameters` takes.
///
/// # Errors
/// A model without experts.
pub fn expert_targets(spec: &DecoderSpec) -> Result<Vec<String>, ModelError> {
    let names = distinct(mixtures(spec).flat_map(|moe| [moe.gate_up.weight, moe.down.weight]));
    if names.is_empty() {
        return Err(ModelError::Method {
            key: "lora_target_parameters",
            reason: "the model has no experts".into(),
            help: "leave it out; `lora_target` names linear layers".into(),
        });
    }
    Ok(names.into_iter().map(|name| last_two_parts(name).to_owned()).collect())
}

fn mixtures(spec: &DecoderSpec) -> impl Iterator<Item = &MoeSpec> {
    spec.layers.iter().filter_map(|layer| layer.moe.as_ref())
}

/// Each once, in their order.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

/// Refuses names in `additional_target` that fit no module.
fn check_whole_modules(spec: &DecoderSpec, named: &[String]) -> Result<(), ModelError> {
    let modules = modules(spec);
    let unknown = |name: &&String| !modules.iter().any(|path| path.ends_with(name.as_str()));
    let Some(unknown) = named.iter().find(unknown) else { return Ok(()) };
    Err(ModelError::Method {
        key: "additional_target",
        reason: format!("the model has no module `{unknown}`"),
        help: format!(
            "choose among {}, or name another module",
            outside_modules(spec).iter().map(|path| last_part(path)).collect::<Vec<_>>().join(", ")
        ),
    })
}

/// The blocks that LLaMA-Pro's expansion has put into a model, if there are so many: the last of every L / count.
///
/// # Errors
/// A number that does not divide that of the blocks.
pub fn expanded_blocks(spec: &DecoderSpec, count: i64) -> Result<Vec<usize>, ModelError> {
    let total = spec.layers.len();
    match usize::try_from(count).ok().filter(|count| *count > 0 && total.is_multiple_of(*count)) {
        Some(count) => Ok((0..count).map(|i| (i + 1) * (total / count) - 1).collect()),
        None => Err(ModelError::Method {
            key: "freeze_trainable_layers",
            reason: format!("{count} new blocks do not stand at even distances among {total}"),
            help: "give the number that the model was expanded by".into(),
        }),
    }
}

/// Full names of the linear layers of these blocks that are called so; all of them without a name.
///
/// # Errors
/// Names that fit no linear layer of the blocks.
pub fn linears_of_blocks(
    spec: &DecoderSpec,
    blocks: &[usize],
    targets: &[String],
) -> Result<Vec<String>, ModelError> {
    let of_block = |i: usize| spec.layers[i].linear_names().map(move |name| spec.names.in_block(i, name));
    let all: Vec<String> = blocks.iter().flat_map(|i| of_block(*i)).collect();
    let unused = targets.iter().find(|target| !all.iter().any(|path| has_ending(path, target)));
    if let Some(unused) = unused {
        return Err(ModelError::Method {
            key: "lora_target",
            reason: format!("no linear layer of the new blocks is called `{unused}`"),
            help: format!("choose `all`, or among {}", linear_modules(spec).join(", ")),
        });
    }
    let is_meant =
        |path: &String| targets.is_empty() || targets.iter().any(|target| has_ending(path, target));
    Ok(all.into_iter().filter(is_meant).collect())
}

/// Embedding and head by their last names: what new tokens need trained.
pub fn ends_of_vocabulary(spec: &DecoderSpec) -> Vec<String> {
    [spec.names.embed_tokens, spec.names.lm_head].map(|path| last_part(path).to_owned()).to_vec()
}

/// The last part of a module's name.
fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The last two parts of a weight's name: of experts the module and the weight.
pub(crate) fn last_two_parts(path: &str) -> &str {
    let from = path.rmatch_indices('.').nth(1).map_or(0, |(dot, _)| dot + 1);
    &path[from..]
}

/// Linear layers of all blocks by their last names, each once, in the model's order.
fn linear_modules(spec: &DecoderSpec) -> Vec<&'static str> {
    let blocks = spec.layers.iter().flat_map(LayerSpec::linear_names);
    distinct(blocks.chain(outside_linears(spec)).map(last_part))
}

/// Full names of all linear layers but the head.
pub fn linear_paths(spec: &DecoderSpec) -> impl Iterator<Item = String> {
    let layers = spec.layers.iter().enumerate();
    let blocks =
        layers.flat_map(move |(i, layer)| layer.linear_names().map(move |name| spec.names.in_block(i, name)));
    blocks.chain(outside_linears(spec).map(str::to_owned))
}

/// Full names of the other weights that can carry adapters.
pub(crate) fn weight_paths(spec: &DecoderSpec) -> impl Iterator<Item = String> {
    let layers = spec.layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer.moe.as_ref()?)));
    layers.flat_map(move |(i, moe)| {
        moe.parameter_targets().map(move |(weight, _)| spec.names.in_block(i, &weight))
    })
}

/// Full names of the linear layers outside of the blocks, but for the head.
fn outside_linears(spec: &DecoderSpec) -> impl Iterator<Item = &'static str> {
    let projections = spec.embedding_projection.map(|projection| [projection.into, projection.out_of]);
    let per_layer = spec.per_layer.map(|per_layer| per_layer.projection);
    projections.into_iter().flatten().chain(per_layer)
}

/// Full names of the modules outside of the blocks that hold weights.
pub(crate) fn outside_modules(spec: &DecoderSpec) -> Vec<&'static str> {
    let names = spec.names;
    let positions = spec.positions.map(|positions| positions.name);
    let entry = [names.embed_tokens].into_iter().chain(positions).chain(spec.embedding_norm);
    let per_layer = spec.per_layer.into_iter().flat_map(|layer| [layer.embedding, layer.norm]);
    entry.chain(per_layer).chain(names.norm).chain(outside_linears(spec)).chain([names.lm_head]).collect()
}

/// Modules right inside a block, as LLaMA-Factory names what it can freeze.
fn block_parts(layer: &LayerSpec) -> Vec<&'static str> {
    let per_layer = layer.per_layer.map(|layer| layer.output_norm);
    let norms = layer.attention_norms.iter().chain(layer.mlp_norms.iter()).chain(per_layer);
    let mut parts = Vec::new();
    let experts = layer.moe.iter().flat_map(|moe| [moe.router.name, moe.gate_up.weight]);
    for name in layer.linear_names().chain(experts).chain(norms) {
        let part = name.split('.').next().unwrap_or(name);
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts
}

/// Names of all modules that hold weights, and of those they lie in.
fn modules(spec: &DecoderSpec) -> Vec<String> {
    let mut all: Vec<String> = outside_modules(spec).into_iter().map(str::to_owned).collect();
    for (i, layer) in spec.layers.iter().enumerate() {
        let name = |part: &str| spec.names.in_block(i, part);
        all.push(format!("{}.{i}", spec.names.layers));
        all.extend(block_parts(layer).into_iter().chain(layer.linear_names()).map(name));
        let norms = layer.attends().and_then(|attention| attention.qk_norm).map(|norm| norm.names);
        let latent = layer.attends().and_then(|attention| attention.latent.as_ref());
        let latent = latent.into_iter().flat_map(|latent| latent.norm_names());
        all.extend(norms.into_iter().flatten().chain(latent).map(name));
        all.extend(layer.mixer.other_modules().map(name));
    }
    all
}

/// Whether a module's name is `target` or ends with it, whole parts compared: PEFT's rule for `target_modules`.
pub(crate) fn has_ending(path: &str, target: &str) -> bool {
    path.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a module is `module` or lies in it: PEFT keeps adapters off such.
pub(crate) fn has_part(path: &str, module: &str) -> bool {
    format!(".{path}.").contains(&format!(".{module}."))
}

/// Whether a weight belongs to one of PEFT's `modules_to_save`: the name of a module that it is in ends with one of
/// them (`norm` is every norm: PEFT compares letters here, not whole parts).
pub(crate) fn is_saved(modules: &[String], parameter: &str) -> bool {
    let mut within = parameter.match_indices('.').map(|(end, _)| &parameter[..end]);
    within.any(|path| modules.iter().any(|module| path.ends_with(module.as_str())))
}
