//! Weights on disk: safetensors files of a model folder, read by name without a second copy, and written in shards.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::View as _;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::json;
use sft_kernels::halves::Halves;
use sft_kernels::{DType, Device, MappedFile, Tensor, View, map_file};
use sft_runs::disk;
use sha2::{Digest, Sha256};

use crate::ModelError;
use crate::method::outside_modules;
use crate::parameter::Stored;
use crate::spec::{DecoderSpec, Moved};

/// Name of the index of a sharded model.
const INDEX: &str = "model.safetensors.index.json";

/// One tensor in a file.
#[derive(Debug)]
struct Entry {
    file: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Whether anybody asked for its values.
    read: AtomicBool,
}

/// The safetensors files of a folder, opened and indexed by tensor name.
#[derive(Debug)]
pub struct WeightFiles {
    folder: PathBuf,
    files: Vec<MappedFile>,
    entries: HashMap<String, Entry>,
}

impl WeightFiles {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// No weights, missing shards, names in the index that lead out of the folder, malformed files.
    pub fn open_model(folder: &Path) -> Result<Self, ModelError> {
        let index = folder.join(INDEX);
        if !index.exists() {
            let single = folder.join("model.safetensors");
            if !single.exists() {
                let other = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
                let help = if other.iter().any(|name| folder.join(name).exists()) {
                    "only pytorch_model.bin is here; it can run code when read. Convert it to safetensors first"
                } else {
                    "download the weights, or set `train_from_scratch: true` to begin with random ones"
                };
                return Err(ModelError::Missing {
                    folder: folder.to_owned(),
                    what: "model.safetensors".into(),
                    help: help.into(),
                });
            }
            return Self::open(folder, &[single]);
        }
        let text =
            fs::read_to_string(&index).map_err(|source| ModelError::File { path: index.clone(), source })?;
        let map: serde_json::Value =
            serde_json::from_str(&text).map_err(|source| ModelError::Json { path: index.clone(), source })?;
        let names = map["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
        let names: BTreeSet<&str> = names.collect();
        let invalid = |reason: String| ModelError::Safetensors { path: index.clone(), reason };
        if names.is_empty() {
            return Err(invalid("its `weight_map` is empty or missing".into()));
        }
        for name in &names {
            let plain = Path::new(name).file_name().is_some_and(|file| file == std::ffi::OsStr::new(name));
            if !plain {
                return Err(invalid(format!("it names `{name}`, which is no file of this folder")));
            }
            if !folder.join(name).exists() {
                return Err(ModelError::Missing {
                    folder: folder.to_owned(),
                    what: (*name).to_owned(),
                    help: format!("{INDEX} lists it: the download is incomplete"),
                });
            }
        }
        let files: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        Self::open(folder, &files)
    }

    /// Opens the given files.
    ///
    /// # Errors
    /// Unreadable or malformed files.
    pub fn open(folder: &Path, paths: &[PathBuf]) -> Result<Self, ModelError> {
        let mut weights = Self { folder: folder.to_owned(), files: Vec::new(), entries: HashMap::new() };
        for path in paths {
            let file = map_file(path).map_err(|source| ModelError::File { path: path.clone(), source })?;
            let invalid = |reason: String| ModelError::Safetensors { path: path.clone(), reason };
            if file.starts_with(b"version https://git-lfs") {
                let reason = "it is a pointer of Git LFS, and `git lfs pull` fetches what it points to";
                return Err(invalid(reason.into()));
            }
            // `deserialize` checks offsets, sizes and overlaps against the length of the file.
            let tensors = SafeTensors::deserialize(&file).map_err(|e| invalid(e.to_string()))?;
            for (name, tensor) in tensors.iter() {
                let start = tensor.data().as_ptr().addr() - file.as_ptr().addr();
                let entry = Entry {
                    file: weights.files.len(),
                    bytes: start..start + tensor.data().len(),
                    dtype: tensor.dtype(),
                    shape: tensor.shape().to_vec(),
                    read: AtomicBool::new(false),
                };
                weights.entries.insert(name.to_owned(), entry);
            }
            weights.files.push(file);
        }
        Ok(weights)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Tells other weights from these, without reading them all: SHA-256 of every tensor's name, shape and first, middle and
    /// last values.
    pub fn fingerprint(&self) -> String {
        /// Bytes at each of the three places.
        const SAMPLE: usize = 256;
        let mut hash = Sha256::new();
        let mut names: Vec<_> = self.entries.iter().collect();
        names.sort_by_key(|(name, _)| name.as_str());
        for (name, entry) in names {
            hash.update(format!("{name} {:?} {:?}\n", entry.dtype, entry.shape));
            let bytes = &self.files[entry.file][entry.bytes.clone()];
            let last = bytes.len().saturating_sub(SAMPLE);
            for start in [0, last / 2, last] {
                hash.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// How many tensors are of other parts of a model than this text part of it, and are left aside; of a model that is
    /// a decoder alone none are.
    pub fn of_other_parts(&self, spec: &DecoderSpec) -> usize {
        self.entries.keys().filter(|name| !is_of_text_part(spec, name)).count()
    }

    /// What to say of weights that a model loaded from these files does not have, if there are any: its configuration may be
    /// that of another one.
    pub fn note_of_unread(&self, spec: &DecoderSpec) -> Option<String> {
        /// Names that are told.
        const TOLD: usize = 3;
        let tied = spec.tie_word_embeddings.then(|| spec.names.head());
        // Masks and frequencies that old files hold are no weights.
        let is_weight = |name: &str, entry: &Entry| {
            let ends = name.ends_with(".weight") || name.ends_with(".bias");
            ends && entry.shape.len() < 4 && matches!(entry.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
        };
        let is_unread = |(name, entry): &(&String, &Entry)| {
            !entry.read.load(Ordering::Relaxed)
                && is_weight(name, entry)
                && tied.as_ref() != Some(*name)
                && is_of_text_part(spec, name)
        };
        let mut names: Vec<&str> =
            self.entries.iter().filter(is_unread).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let more = if names.len() > TOLD { ", …" } else { "" };
        let told = names.iter().take(TOLD).copied().collect::<Vec<_>>().join(", ");
        let count = names.len();
        (count > 0).then(|| {
            format!("{count} weights of the files are in no place of the model that config.json describes, and are not used: {told}{more}")
        })
    }
}

/// Whether a tensor is of the text part of a larger model, or the model is nothing else.
fn is_of_text_part(spec: &DecoderSpec, name: &str) -> bool {
    if spec.moved.is_empty() {
        return true;
    }
    let modules = [vec![spec.names.layers], outside_modules(spec)].concat();
    let is_ours = |name: &str| {
        let is_in = |module: &&str| name.strip_prefix(*module).is_some_and(|rest| rest.starts_with('.'));
        modules.iter().any(is_in)
    };
    let own = |moved: &Moved| name.strip_prefix(moved.files).map(|rest| format!("{}{rest}", moved.own));
    is_ours(name) || spec.moved.iter().filter_map(own).any(|name| is_ours(&name))
}

impl WeightFiles {
    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Whether there is a weight of this name, or codes of GPTQ or AWQ for it.
    pub(crate) fn has_weight(&self, name: &str) -> bool {
        let codes = || Some(format!("{}.qweight", name.strip_suffix(".weight")?));
        self.contains(name) || codes().is_some_and(|codes| self.contains(&codes))
    }

    /// A tensor that is going to be read.
    fn entry(&self, name: &str) -> Option<&Entry> {
        let found = self.find(name);
        found.inspect(|entry| entry.read.store(true, Ordering::Relaxed))
    }

    /// A tensor by its name, or by that without its first part: files that hold the body of a model alone, without
    /// its head, leave out the body's own name (`transformer.h.0.…` is `h.0.…`).
    fn find(&self, name: &str) -> Option<&Entry> {
        let inside = || name.split_once('.').and_then(|(_, rest)| self.entries.get(rest));
        self.entries.get(name).or_else(inside)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// A tensor in its own element type, in the file where it is aligned, else copied.
    ///
    /// # Errors
    /// One line that says what is wrong: missing, another shape, no floating-point type.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, String> {
        let Some(entry) = self.entry(name) else {
            return Err(format!("{name}: missing, expected shape {shape:?}"));
        };
        if entry.shape != shape {
            return Err(format!("{name}: found shape {:?}, expected {shape:?}", entry.shape));
        }
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            other => {
                return Err(format!("{name}: found type {other:?}, expected float32, bfloat16 or float16"));
            }
        };
        let file = &self.files[entry.file];
        if let Some(tensor) = Tensor::mapped(MappedFile::clone(file), entry.bytes.clone(), dtype, shape) {
            return Ok(tensor);
        }
        let bytes = &file[entry.bytes.clone()];
        Ok(match dtype {
            DType::F32 => copy(bytes, shape, |b: [u8; 4]| f32::from_le_bytes(b)),
            DType::BF16 => copy(bytes, shape, half::bf16::from_le_bytes),
            DType::F16 => copy(bytes, shape, half::f16::from_le_bytes),
        })
    }
}

impl WeightFiles {
    /// The bytes of a tensor of this element type, and its shape.
    ///
    /// # Errors
    /// One line that says what is wrong: missing, or of another type.
    pub(crate) fn raw(&self, name: &str, dtype: Dtype) -> Result<(&[u8], &[usize]), String> {
        let Some(entry) = self.entry(name) else { return Err(format!("{name}: missing")) };
        if entry.dtype != dtype {
            return Err(format!("{name}: found type {:?}, expected {dtype:?}", entry.dtype));
        }
        Ok((&self.files[entry.file][entry.bytes.clone()], &entry.shape))
    }

    /// A vector of f32, of any alignment.
    ///
    /// # Errors
    /// As [`WeightFiles::raw`].
    pub(crate) fn floats(&self, name: &str) -> Result<Tensor, String> {
        let (bytes, _) = self.raw(name, Dtype::F32)?;
        Ok(copy(bytes, &[bytes.len() / 4], f32::from_le_bytes))
    }

    /// A weight of this shape, put together from the tensors that it is here, in their element type.
    ///
    /// # Errors
    /// A line for each of them that does not fit, as [`WeightFiles::tensor`] says it.
    pub fn weight(&self, name: &str, shape: &[usize], stored: Stored) -> Result<Tensor, Vec<String>> {
        put_together(name, shape, stored, |name, shape| self.tensor(name, shape))
    }
}

/// A weight of this shape from the tensors that it is in files, each read by `read`, in the element type of the first.
///
/// # Errors
/// A line for each of them that `read` refuses.
pub(crate) fn put_together(
    name: &str,
    shape: &[usize],
    stored: Stored,
    read: impl Fn(&str, &[usize]) -> Result<Tensor, String>,
) -> Result<Tensor, Vec<String>> {
    let parts = stored.shapes(name, shape);
    if let [(name, part)] = &parts[..] {
        let whole = read(name, part).map_err(|problem| vec![problem])?;
        let whole = stored.turned(shape).map(|turned| turned.inverse().apply(&whole)).unwrap_or(whole);
        return Ok(whole.reshape(shape));
    }
    let (mut whole, mut problems) = (None, Vec::new());
    for (i, (name, part)) in parts.iter().enumerate() {
        let tensor = match read(name, part) {
            Ok(tensor) => tensor,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let whole = whole.get_or_insert_with(|| Tensor::zeros(tensor.dtype(), shape));
        let rows = [parts.len(), whole.elements() / parts.len()];
        let tensor = if tensor.dtype() == whole.dtype() { tensor } else { tensor.to_dtype(whole.dtype()) };
        whole.view_mut().reshape(&rows).into_rows(i..i + 1).copy_from(tensor.view());
        // The copy is what is used: both at once would be twice the model.
        tensor.release_pages();
    }
    if problems.is_empty() {
        Ok(whole.unwrap_or_else(|| Tensor::zeros(DType::F32, shape)))
    } else {
        Err(problems)
    }
}

/// A tensor from bytes of any alignment.
fn copy<const B: usize, E: sft_kernels::Element>(
    bytes: &[u8],
    shape: &[usize],
    read: fn([u8; B]) -> E,
) -> Tensor {
    let (values, _) = bytes.as_chunks::<B>();
    Tensor::from_slice(&values.iter().map(|b| read(*b)).collect::<Vec<E>>(), shape)
}

/// The first element of a tensor that is NaN or infinite.
pub fn first_non_finite(dev: &Device, tensor: View<'_>) -> Option<usize> {
    const CHUNK: usize = 1 << 16;
    let moved = (!tensor.is_on_host()).then(|| tensor.to_host());
    let tensor = moved.as_ref().map_or(tensor, Tensor::view);
    let chunks = tensor.elements().div_ceil(CHUNK);
    let mut found = vec![usize::MAX; chunks];
    let tensor = tensor.reshape(&[tensor.elements(), 1]);
    dev.for_each_chunk(&mut found, 1, |i, found| {
        let range = i * CHUNK..tensor.elements().min((i + 1) * CHUNK);
        let chunk = tensor.rows(range);
        let bad = match tensor.dtype() {
            DType::F32 => first_of(chunk.as_slice(), |x: f32| !x.is_finite()),
            DType::BF16 => first_of(chunk.as_slice(), |x: half::bf16| !x.is_finite()),
            DType::F16 => first_of(chunk.as_slice(), |x: half::f16| !x.is_finite()),
        };
        found[0] = bad.map_or(usize::MAX, |bad| i * CHUNK + bad);
    });
    found.into_iter().find(|found| *found != usize::MAX)
}

/// Where the first value is that `is_it`. Blocks are looked through without leaving early: those are loops that
/// vectorise.
fn first_of<E: Copy>(values: &[E], is_it: impl Fn(E) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let any = |block: &[E]| block.iter().fold(false, |any, x| any | is_it(*x));
    let start = BLOCK * values.chunks(BLOCK).position(any)?;
    values[start..].iter().position(|x| is_it(*x)).map(|i| start + i)
}

/// Writes tensors as `model.safetensors`, or in shards of at most `shard_bytes` with an index, as transformers does.
/// They are converted to their types and to the form that files have them in, one after the other as they are written.
/// Returns the names of the files.
///
/// # Errors
/// What the file system says.
pub fn write_model(
    folder: &Path,
    tensors: &[(String, StoredTensor<'_>)],
    shard_bytes: usize,
) -> Result<Vec<String>, ModelError> {
    let size = StoredTensor::byte_len;
    let mut shards: Vec<Vec<&(String, StoredTensor<'_>)>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let last = shards.len() - 1;
        if filled + size(&tensor.1) > shard_bytes && !shards[last].is_empty() {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size(&tensor.1);
        let last = shards.len() - 1;
        shards[last].push(tensor);
    }
    if let [only] = shards.as_slice() {
        let name = "model.safetensors".to_owned();
        write_shard(&folder.join(&name), only)?;
        return Ok(vec![name]);
    }
    let mut weight_map = BTreeMap::new();
    let mut names = Vec::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_shard(&folder.join(&file), shard)?;
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
        names.push(file);
    }
    let total: usize = tensors.iter().map(|(_, tensor)| size(tensor)).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let path = folder.join(INDEX);
    let text = serde_json::to_string_pretty(&index).unwrap_or_default();
    disk::write(&path, text.as_bytes()).map_err(|source| ModelError::File { path, source })?;
    names.push(INDEX.to_owned());
    Ok(names)
}

fn write_shard(path: &Path, shard: &[&(String, StoredTensor<'_>)]) -> Result<(), ModelError> {
    write(path, shard.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())))
}

/// Writes one safetensors file.
///
/// # Errors
/// What the file system says.
pub fn write_file<'a, T: Into<StoredTensor<'a>>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, T)>,
) -> Result<(), ModelError> {
    write(path, tensors.into_iter().map(|(name, tensor)| (name, tensor.into())))
}

/// Header and tensors, in the order in which the library writes them: by element type, the widest first, then by name.
fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, StoredTensor<'a>)>,
) -> Result<(), ModelError> {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by(|a, b| b.1.dtype().cmp(&a.1.dtype()).then(a.0.cmp(b.0)));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, tensor) in &tensors {
        let begin = end;
        end += tensor.data_len();
        let entry = json!({"dtype": tensor.dtype(), "shape": tensor.shape(), "data_offsets": [begin, end]});
        header.insert((*name).to_owned(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let content = |file: &mut dyn Write| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, tensor)| tensor.try_for_each_piece(|bytes| file.write_all(bytes)))
    };
    disk::replace(path, |file| content(file))
        .map_err(|source| ModelError::File { path: path.to_owned(), source })
}

/// A tensor, or one of the equal parts that follow each other in it, in the type and the form that a file has it in.
#[derive(Debug, Clone)]
pub struct StoredTensor<'a> {
    whole: Whole<'a>,
    dtype: DType,
    shape: Vec<usize>,
    /// Its number, and how many there are.
    part: Option<(usize, usize)>,
    /// How its axes are in the file, if in another order.
    turned: Option<Turned>,
}

#[derive(Debug, Clone)]
enum Whole<'a> {
    Tensor(&'a Tensor),
    Halves(&'a Halves),
    /// Bytes of a type that nothing here computes with.
    Raw(Dtype, Cow<'a, [u8]>),
}

impl<'a> From<&'a Tensor> for StoredTensor<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        let (whole, dtype, shape) = (Whole::Tensor(tensor), tensor.dtype(), tensor.shape().to_vec());
        Self { whole, dtype, shape, part: None, turned: None }
    }
}

impl<'a> From<&'a Halves> for StoredTensor<'a> {
    fn from(halves: &'a Halves) -> Self {
        let (whole, dtype, shape) = (Whole::Halves(halves), DType::F32, halves.shape().to_vec());
        Self { whole, dtype, shape, part: None, turned: None }
    }
}

impl<'a> StoredTensor<'a> {
    /// Bytes that are written as they are.
    pub(crate) fn raw(dtype: Dtype, shape: Vec<usize>, bytes: Cow<'a, [u8]>) -> Self {
        Self { whole: Whole::Raw(dtype, bytes), dtype: DType::F32, shape, part: None, turned: None }
    }

    /// The same in another floating-point type, if it is of one.
    pub(crate) fn in_type(self, dtype: Option<DType>) -> Self {
        Self { dtype: dtype.unwrap_or(self.dtype), ..self }
    }

    /// Bytes in the file.
    fn byte_len(&self) -> usize {
        match &self.whole {
            Whole::Raw(_, bytes) => bytes.len(),
            Whole::Tensor(_) | Whole::Halves(_) => self.elements() * self.dtype.bytes(),
        }
    }

    /// It or a part of it, straight or with its axes in another order.
    pub(crate) fn part(
        self,
        shape: Vec<usize>,
        part: Option<(usize, usize)>,
        turned: Option<Turned>,
    ) -> Self {
        Self { shape, part, turned, ..self }
    }

    /// The dimensions in the file.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The type that it is kept in.
    pub(crate) fn dtype_in_memory(&self) -> DType {
        self.dtype
    }

    /// It as a tensor of its own.
    ///
    /// # Panics
    /// If it is of no floating-point type.
    pub fn to_tensor(&self) -> Tensor {
        let copy = self.piece(0..self.elements());
        match self.turned {
            Some(turned) => turned.apply(&copy).reshape(&self.shape),
            None => copy.reshape(&self.shape),
        }
    }

    /// Some of its elements, in the order before they are turned round.
    fn piece(&self, elements: Range<usize>) -> Tensor {
        let (i, _) = self.part.unwrap_or((0, 1));
        let first = i * self.elements();
        let rows = first + elements.start..first + elements.end;
        let of = |whole: View<'_>| whole.reshape(&[whole.elements(), 1]).rows(rows.clone()).to_host();
        // Moved as it is, since a full card has no room for a copy.
        let copy = match &self.whole {
            Whole::Tensor(tensor) => of(tensor.view()),
            Whole::Halves(halves) => halves.to_host_by(of),
            Whole::Raw(dtype, _) => panic!("codes in {dtype:?} are no tensor to compute with"),
        };
        if copy.dtype() == self.dtype { copy } else { copy.to_dtype(self.dtype) }
    }

    /// Calls `f` with its bytes, a piece at a time: of a large tensor there is no copy in memory.
    ///
    /// # Errors
    /// The first of `f`.
    pub fn try_for_each_piece<E>(&self, mut f: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const PIECE: usize = 1 << 20;
        if self.turned.is_some() || matches!(self.whole, Whole::Raw(..)) {
            return f(&self.data());
        }
        let elements = self.elements();
        (0..elements)
            .step_by(PIECE)
            .try_for_each(|start| f(self.piece(start..elements.min(start + PIECE)).view().bytes()))
    }
}

/// The axes of a tensor of three in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turned {
    /// The dimensions before.
    dims: [usize; 3],
    /// The axes that follow each other after it.
    axes: [usize; 3],
}

impl Turned {
    pub(crate) fn new(dims: [usize; 3], axes: [usize; 3]) -> Self {
        Self { dims, axes }
    }

    /// Rows of a matrix for its columns.
    pub(crate) fn transposed([rows, columns]: [usize; 2]) -> Self {
        Self::new([1, rows, columns], [0, 2, 1])
    }

    /// What undoes it.
    pub(crate) fn inverse(self) -> Self {
        let axes = [0, 1, 2].map(|axis| self.axes.iter().position(|a| *a == axis).unwrap_or(axis));
        Self { dims: self.shape(), axes }
    }

    /// The dimensions after it.
    pub(crate) fn shape(self) -> [usize; 3] {
        self.axes.map(|axis| self.dims[axis])
    }

    /// The tensor turned.
    ///
    /// # Panics
    /// If it has another number of elements; on a GPU.
    pub(crate) fn apply(self, tensor: &Tensor) -> Tensor {
        match tensor.dtype() {
            DType::F32 => self.turn::<f32>(tensor),
            DType::BF16 => self.turn::<half::bf16>(tensor),
            DType::F16 => self.turn::<half::f16>(tensor),
        }
    }

    fn turn<E: sft_kernels::Element>(self, tensor: &Tensor) -> Tensor {
        let strides = [self.dims[1] * self.dims[2], self.dims[2], 1];
        let ([a, b, c], [of_a, of_b, of_c]) = (self.shape(), self.axes.map(|axis| strides[axis]));
        let from = tensor.view().as_slice::<E>();
        assert_eq!(from.len(), a * b * c, "turned: {:?}", tensor.shape());
        let mut to = Tensor::zeros(tensor.dtype(), &[a, b, c]);
        for (row, to) in to.view_mut().as_mut_slice::<E>().chunks_mut(c.max(1)).enumerate() {
            let start = (row / b) * of_a + (row % b) * of_b;
            to.iter_mut().enumerate().for_each(|(k, to)| *to = from[start + k * of_c]);
        }
        to
    }
}

impl safetensors::View for StoredTensor<'_> {
    fn dtype(&self) -> Dtype {
        if let Whole::Raw(dtype, _) = self.whole {
            return dtype;
        }
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        if let Whole::Raw(_, bytes) = &self.whole {
            return bytes.as_ref().into();
        }
        if let (Whole::Tensor(tensor), None, None) = (&self.whole, self.part, self.turned)
            && tensor.is_on_host()
            && tensor.dtype() == self.dtype
        {
            return tensor.view().bytes().into();
        }
        self.to_tensor().view().bytes().to_vec().into()
    }
    fn data_len(&self) -> usize {
        self.byte_len()
    }
}
