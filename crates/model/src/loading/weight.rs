//! One weight of a decoder: from its source, in the type and the place that it is used in.

use sft_kernels::quantized::QuantizedWeight;
use sft_kernels::{DType, Tensor, random};

use super::{Loading, Source, Start, elements};
use crate::parameter::{Outline, Parameter, Stored};
use crate::quantization::{self, Quantization, Read};
use crate::spec::DecoderSpec;
use crate::weights::{WeightFiles, first_non_finite, put_together};

impl Loading<'_> {
    pub(super) fn parameter(&mut self, name: &str, shape: &[usize], start: Start) -> Parameter {
        self.stored_as(name, name, shape, start)
    }

    pub(super) fn stored_as(&mut self, name: &str, stored: &str, shape: &[usize], start: Start) -> Parameter {
        self.read(name, (stored, Stored::Plain), shape, start)
    }

    /// A matrix, or a bias, with a row for each token: with rows for new ones.
    pub(super) fn of_vocabulary(
        &mut self,
        spec: &DecoderSpec,
        name: &str,
        stored: &str,
        shape: &[usize],
    ) -> Parameter {
        let start = if shape.len() == 1 { Start::All(0.0) } else { Start::Normal };
        let (rows, from_files) = (shape[0], matches!(self.source, Source::Files(_)));
        let Some(new) = spec.new_rows.as_ref().filter(|new| from_files && new.change(rows)) else {
            return self.stored_as(name, stored, shape, start);
        };
        let in_files = [&[new.stored], &shape[1..]].concat();
        self.read_with((name, shape, Stored::Plain), |loading, dtype| {
            let stored = loading.in_files(stored, Stored::Plain, &in_files);
            let value = loading.value(&stored, Stored::Plain, &in_files, (dtype, start))?;
            Some(match value.shape() {
                [found] if *found == new.stored => new.add_to_bias(&value, rows),
                [found, _] if *found == new.stored => new.add(name, &value, rows),
                // What is wrong was told.
                _ => value,
            })
        })
    }

    pub(super) fn parameter_in(
        &mut self,
        name: &str,
        stored: Stored,
        shape: &[usize],
        start: Start,
    ) -> Parameter {
        self.read(name, (name, stored), shape, start)
    }

    /// The matrix of a linear layer, if it is to be quantised or is so in the files; pages in a file are released.
    pub(super) fn quantized(&mut self, name: &str, form: Stored, shape: [usize; 2]) -> Option<Parameter> {
        let (quantization, trained) = (self.quantization?, self.method.trains(name));
        let stored = self.in_files(name, form, &shape);
        let weight = match (quantization, self.source) {
            (Quantization::Found(found), Source::Files(files)) => {
                let weight = quantization::read(files, found, (&stored, shape), self.compute)?;
                weight.and_then(|weight| match trained {
                    true => Err(format!("{name}: its codes cannot be trained; use `finetuning_type: lora`")),
                    false => Ok(weight),
                })
            }
            // A method that trains it is refused once the files are there.
            (Quantization::Found(_), _) => Err(String::new()),
            (Quantization::Made(_), _) if trained => return None,
            (Quantization::Made(scheme), _) => {
                let value = self.value(&stored, form, &shape, (self.compute, Start::Normal));
                let (value, dev) = (value.filter(|value| value.shape() == shape), self.dev);
                value.zip(dev).map_or(Err(String::new()), |(value, dev)| {
                    // Drawn where the model runs.
                    let value = if value.is_on_host() { value } else { value.to_host() };
                    let weight = QuantizedWeight::quantize(dev, value.view(), scheme, self.compute);
                    value.release_pages();
                    Ok(Read::Codes(Box::new(weight)))
                })
            }
        };
        let (elements, bytes) = (elements(&shape), quantization.bytes(shape));
        if !quantization.is_decoded() {
            self.counts.quantized = self.counts.quantized.saturating_add(elements);
            self.counts.quantized_bytes = self.counts.quantized_bytes.saturating_add(bytes);
            self.counts.largest_quantized = self.counts.largest_quantized.max(elements);
        }
        self.counts.frozen = self.counts.frozen.saturating_add(elements);
        Some(match (weight, self.dev) {
            (Ok(Read::Codes(weight)), Some(dev)) => Parameter::quantized(name, weight.on(dev)),
            (Ok(Read::Codes(weight)), None) => Parameter::quantized(name, *weight),
            (Ok(Read::Decoded(weight)), _) => {
                Parameter::frozen(name, self.placed(weight.to_dtype(self.compute)))
            }
            // Empty: sizes are counted, or what is wrong was told already.
            (Err(problem), _) => {
                self.problems.extend(Some(problem).filter(|problem| !problem.is_empty()));
                Parameter::frozen(name, Tensor::zeros(self.compute, &[0, 0]))
            }
        })
    }

    /// A weight, from the source's of the name and in the form given last.
    pub(super) fn read(
        &mut self,
        name: &str,
        (stored, form): (&str, Stored),
        shape: &[usize],
        start: Start,
    ) -> Parameter {
        self.read_with((name, shape, form), |loading, dtype| {
            let stored = loading.in_files(stored, form, shape);
            loading.value(&stored, form, shape, (dtype, start))
        })
    }

    /// A weight of a value that is asked for with the element type to draw it in.
    pub(super) fn read_with(
        &mut self,
        (name, shape, form): (&str, &[usize], Stored),
        value: impl FnOnce(&mut Self, DType) -> Option<Tensor>,
    ) -> Parameter {
        let trained = self.method.trains(name);
        let count = if trained { &mut self.counts.trained } else { &mut self.counts.frozen };
        *count = count.saturating_add(elements(shape));
        if trained {
            self.trained.push(Outline { name: name.to_owned(), shape: shape.to_vec(), stored: form });
        }
        let Some(value) = value(self, if trained { DType::F32 } else { self.compute }) else {
            return Parameter::frozen(name, Tensor::zeros(self.compute, &[0, 0]));
        };
        let parameter = match trained {
            true => self.trained_of(name, copied(value, DType::F32)),
            false if value.dtype() == self.compute => Parameter::frozen(name, self.placed(value)),
            false => Parameter::frozen(name, self.placed(copied(value, self.compute))),
        };
        parameter.stored(form)
    }

    /// What the source has under a name, or what is drawn; nothing where sizes are counted.
    pub(super) fn value(
        &mut self,
        stored: &str,
        form: Stored,
        shape: &[usize],
        (dtype, start): (DType, Start),
    ) -> Option<Tensor> {
        let files = match self.source {
            Source::Counting => return None,
            Source::Random { seed } => return Some(self.draw(*seed, stored, (dtype, shape), start)),
            Source::Files(files) => files,
        };
        let decoded = quantization::mxfp4::read(self.dev, files, stored, shape);
        let read = match decoded {
            Some(decoded) => decoded.map_err(|problem| vec![problem]),
            None => put_together(stored, shape, form, |name, shape| self.part(files, name, shape)),
        };
        let value = read.unwrap_or_else(|problems| {
            self.problems.extend(problems);
            Tensor::zeros(self.compute, &[0])
        });
        if let (None, Some(dev)) = (&self.non_finite, self.dev) {
            let found = first_non_finite(dev, value.view());
            self.non_finite = found.map(|element| (stored.to_owned(), element));
        }
        Some(value)
    }

    /// A tensor of the files, or what codes that are there for it stand for.
    fn part(&self, files: &WeightFiles, name: &str, shape: &[usize]) -> Result<Tensor, String> {
        let matrix = <[usize; 2]>::try_from(shape).ok();
        let read = match (self.quantization, matrix) {
            (Some(Quantization::Found(found)), Some(shape)) => {
                quantization::read(files, found, (name, shape), self.compute)
            }
            _ => None,
        };
        match read {
            Some(read) => read.map(|read| match read {
                Read::Codes(weight) => weight.to_tensor(),
                Read::Decoded(value) => value.to_dtype(self.compute),
            }),
            None => files.tensor(name, shape),
        }
    }

    pub(super) fn trained_of(&self, name: impl Into<String>, value: Tensor) -> Parameter {
        Parameter::trained(name, self.placed(value), self.compute)
    }

    /// The value where the model runs.
    pub(super) fn placed(&self, value: Tensor) -> Tensor {
        match self.dev {
            Some(dev) => value.on(dev),
            None => value,
        }
    }

    pub(super) fn draw(
        &self,
        seed: u64,
        name: &str,
        (dtype, shape): (DType, &[usize]),
        start: Start,
    ) -> Tensor {
        let Some(dev) = self.dev else { return Tensor::zeros(dtype, shape) };
        match start {
            Start::All(value) => {
                let values = vec![value; shape.iter().product()];
                Tensor::from_slice(&values, shape).to_dtype(dtype).on(dev)
            }
            Start::Normal => {
                let mut tensor = dev.zeros(dtype, shape);
                let key = random::key(seed, &[random::name_part(name)]);
                random::fill_normal(dev, key, self.initializer_range, tensor.view_mut());
                tensor
            }
        }
    }
}

/// A value of its own in a type; the pages of one in a file, which have been read for it, are given back.
fn copied(value: Tensor, dtype: DType) -> Tensor {
    if value.dtype() == dtype && value.owned_bytes() > 0 {
        return value;
    }
    let copy = value.to_dtype(dtype);
    value.release_pages();
    copy
}
