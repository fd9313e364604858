//! Frozen weights in a few bits each: codes, and a scale for every block of elements (stage 9 of the walk, QLoRA).
//!
//! Formula, for element i in row-major order, in block b = ⌊i / 64⌋ (bitsandbytes; Dettmers et al., 2022 and 2023):
//!
//! > nf4, fp4: w\[i\] = table\[code\[i\]\]·scale\[b\] &emsp; int8: w\[i\] = code\[i\]·scale\[row\] / 127
//!
//! Other tools' checkpoints (GPTQ, AWQ; FP8) have codes that are numbers themselves:
//!
//! > int4: w\[i\] = (code\[i\] − zero\[b\])·scale\[b\] &emsp; fp8: w\[r, c\] = e4m3(code\[r, c\])·scale\[⌊r / rows⌋, ⌊c / columns⌋\]
//!
//! In the first, a scale is the largest magnitude of its block or row. With double quantisation it is in 8 bits itself, in blocks of
//! 256 scales:
//!
//! > scale\[b\] = map\[code\[b\]\]·absmax\[⌊b / 256⌋\] + offset
//!
//! An element takes 4.5 bits, 4.13 with double quantisation; 8 in int8. There is no gradient: such a weight is frozen.
//! Products decode it a panel at a time (`matmul`), and no decoded copy of it is kept.

mod decode;
pub(crate) mod on_cuda;
mod quantize;
mod tables;
#[cfg(test)]
mod tests;

use decode::Kind;
use std::fmt;

pub(crate) use decode::{Decoder, decode_rows};
pub use tables::dynamic_map;
use tables::{FP4, INT4, NF4};

use crate::matmul::decode_all;
use crate::{DType, Device, Isa, Tensor, View, with_dtype};

/// Elements of a block in 4 bits, unless a file says otherwise.
const BLOCK: usize = 64;
/// Elements of a block at least, in a file.
const LEAST_BLOCK: usize = 8;
/// Scales of a block with double quantisation.
const NESTED_BLOCK: usize = 256;

/// A type of 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FourBit {
    /// Quantiles of the normal distribution.
    Nf4,
    /// A small float.
    Fp4,
    /// The number itself, less the zero of its block.
    Int4,
}

impl FourBit {
    /// Those that weights are quantised to here.
    pub const ALL: [FourBit; 2] = [FourBit::Nf4, FourBit::Fp4];

    /// The name in configurations and in checkpoints.
    pub const fn name(self) -> &'static str {
        match self {
            FourBit::Nf4 => "nf4",
            FourBit::Fp4 => "fp4",
            FourBit::Int4 => "int4",
        }
    }

    /// What its codes stand for.
    pub const fn table(self) -> &'static [f32; 16] {
        match self {
            FourBit::Nf4 => &NF4,
            FourBit::Fp4 => &FP4,
            FourBit::Int4 => &INT4,
        }
    }
}

/// How a weight is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// 4 bits an element.
    FourBit {
        /// The type.
        kind: FourBit,
        /// Whether the scales are quantised too.
        double: bool,
    },
    /// 8 bits an element.
    Int8,
}

impl Scheme {
    /// The name that people read.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::FourBit { kind, .. } => kind.name(),
            Scheme::Int8 => "int8",
        }
    }

    /// Bytes of a weight [out, in].
    pub const fn bytes(self, [outputs, inputs]: [usize; 2]) -> usize {
        let elements = outputs.saturating_mul(inputs);
        match self {
            Scheme::Int8 => elements.saturating_add(outputs.saturating_mul(4)),
            Scheme::FourBit { double, .. } => {
                let blocks = elements.div_ceil(BLOCK);
                let scales = if double { blocks + 4 * blocks.div_ceil(NESTED_BLOCK) } else { 4 * blocks };
                elements.div_ceil(2) + scales
            }
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Scheme::FourBit { double: true, .. } => f.write_str(" with quantised scales"),
            _ => Ok(()),
        }
    }
}

/// A weight [out, in] of a linear layer, quantised.
#[derive(Debug)]
pub struct QuantizedWeight {
    shape: [usize; 2],
    dtype: DType,
    codes: Codes,
}

/// Codes with their scales.
#[derive(Debug)]
pub enum Codes {
    /// Two of a byte, the first in its upper half.
    FourBit {
        /// The type.
        kind: FourBit,
        /// Bytes.
        bytes: Bytes,
        /// Elements of a block, a power of two.
        block: usize,
        /// For each block.
        scales: Scales,
        /// f32 [blocks]: the code that stands for 0.
        zeros: Option<Tensor>,
    },
    /// Floats of 8 bits (e4m3).
    Fp8 {
        /// Bytes.
        bytes: Bytes,
        /// f32: of tiles, row by row.
        scales: Tensor,
        /// Rows and columns of a tile.
        tile: [usize; 2],
    },
    /// Signed bytes.
    Int8 {
        /// Bytes.
        bytes: Bytes,
        /// f32 [out]: the largest magnitude of each row.
        scales: Tensor,
    },
}

/// Scales of blocks.
#[derive(Debug)]
pub enum Scales {
    /// f32 [blocks].
    Plain(Tensor),
    /// In 8 bits.
    Nested(Box<Nested>),
}

/// Quantised scales.
#[derive(Debug)]
pub struct Nested {
    /// One for each block.
    pub codes: Bytes,
    /// f32 [256]: what codes stand for.
    pub map: Tensor,
    /// f32: one for each 256 codes.
    pub absmax: Tensor,
    /// Added to every scale.
    pub offset: f32,
}

/// Bytes in a tensor, of which bf16 says only how wide two of them are.
#[derive(Debug)]
pub struct Bytes {
    tensor: Tensor,
    len: usize,
}

impl Bytes {
    fn zeros(len: usize) -> Self {
        Self { tensor: Tensor::zeros(DType::BF16, &[len.div_ceil(2)]), len }
    }

    /// A copy of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut copy = Self::zeros(bytes.len());
        copy.as_mut_slice().copy_from_slice(bytes);
        copy
    }

    /// The bytes.
    ///
    /// # Panics
    /// If they are in a GPU's memory.
    pub fn as_slice(&self) -> &[u8] {
        &self.tensor.view().bytes()[..self.len]
    }

    fn on(self, dev: &Device) -> Self {
        Self { tensor: self.tensor.on(dev), ..self }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.tensor.view_mut().into_bytes()[..self.len]
    }
}

impl QuantizedWeight {
    /// Quantises `weight` [out, in], f32, bf16 or f16 in the host's memory. Products round its values to `dtype`.
    ///
    /// # Panics
    /// If it is no matrix.
    pub fn quantize(dev: &Device, weight: View<'_>, scheme: Scheme, dtype: DType) -> Self {
        let shape = [weight.dim(0), weight.dim(1)];
        assert_eq!(weight.shape(), shape, "a weight of a linear layer is a matrix");
        Self { shape, dtype, codes: quantize::codes(dev, weight, scheme) }
    }

    /// What a checkpoint holds.
    ///
    /// # Errors
    /// Says what has another size than a weight of this shape has, or which scale is no number.
    pub fn from_codes(shape: [usize; 2], codes: Codes, dtype: DType) -> Result<Self, String> {
        let [outputs, inputs] = shape;
        let expect = |what: &str, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => Err(format!("{found} {what}, and a weight of {outputs} × {inputs} has {expected}")),
        };
        let finite = |scales: &Tensor| {
            let found = scales.view().as_slice::<f32>().iter().position(|x| !x.is_finite());
            found.map_or(Ok(()), |at| Err(format!("scale {at} is NaN or infinite: the file is damaged")))
        };
        match &codes {
            Codes::Int8 { bytes, scales } => {
                expect("codes", bytes.len, outputs * inputs)?;
                expect("scales", scales.elements(), outputs)?;
                finite(scales)?;
            }
            Codes::Fp8 { bytes, scales, tile: [rows, columns] } => {
                expect("codes", bytes.len, outputs * inputs)?;
                if *rows == 0 || *columns == 0 {
                    return Err("tiles of no rows or no columns".into());
                }
                expect("scales", scales.elements(), outputs.div_ceil(*rows) * inputs.div_ceil(*columns))?;
                finite(scales)?;
            }
            Codes::FourBit { bytes, block, scales, zeros, .. } => {
                if !block.is_power_of_two() || *block < LEAST_BLOCK {
                    return Err(format!(
                        "blocks of {block} elements: a power of two from {LEAST_BLOCK} on is expected"
                    ));
                }
                let blocks = (outputs * inputs).div_ceil(*block);
                if let Some(zeros) = zeros {
                    expect("zeros", zeros.elements(), blocks)?;
                }
                expect("bytes of codes", bytes.len, (outputs * inputs).div_ceil(2))?;
                match scales {
                    Scales::Plain(scales) => {
                        expect("scales", scales.elements(), blocks)?;
                        finite(scales)?;
                    }
                    Scales::Nested(nested) => {
                        expect("values of codes of scales", nested.map.elements(), 256)?;
                        expect("codes of scales", nested.codes.len, blocks)?;
                        let of_scales = blocks.div_ceil(NESTED_BLOCK);
                        expect("scales of scales", nested.absmax.elements(), of_scales)?;
                        finite(&nested.absmax)?;
                    }
                }
            }
        }
        Ok(Self { shape, dtype, codes })
    }

    /// The weight where `dev` runs.
    pub fn on(self, dev: &Device) -> Self {
        let codes = match self.codes {
            Codes::Int8 { bytes, scales } => Codes::Int8 { bytes: bytes.on(dev), scales: scales.on(dev) },
            Codes::Fp8 { bytes, scales, tile } => {
                Codes::Fp8 { bytes: bytes.on(dev), scales: scales.on(dev), tile }
            }
            Codes::FourBit { kind, bytes, block, scales, zeros } => {
                let scales = match scales {
                    Scales::Plain(scales) => Scales::Plain(scales.on(dev)),
                    Scales::Nested(nested) => Scales::Nested(Box::new(Nested {
                        codes: nested.codes.on(dev),
                        map: nested.map.on(dev),
                        absmax: nested.absmax.on(dev),
                        offset: nested.offset,
                    })),
                };
                let zeros = zeros.map(|zeros| zeros.on(dev));
                Codes::FourBit { kind, bytes: bytes.on(dev), block, scales, zeros }
            }
        };
        Self { codes, ..self }
    }

    /// [out, in].
    pub fn shape(&self) -> &[usize; 2] {
        &self.shape
    }

    /// What products round its values to.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Codes and scales.
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// Bytes that it takes.
    pub fn byte_len(&self) -> usize {
        match &self.codes {
            Codes::Int8 { bytes, scales } | Codes::Fp8 { bytes, scales, .. } => {
                bytes.len + scales.view().byte_len()
            }
            Codes::FourBit { bytes, scales, zeros, .. } => {
                bytes.len
                    + zeros.as_ref().map_or(0, |zeros| zeros.view().byte_len())
                    + match scales {
                        Scales::Plain(scales) => scales.view().byte_len(),
                        Scales::Nested(nested) => nested.codes.len + nested.absmax.view().byte_len(),
                    }
            }
        }
    }

    /// All values [out, in], in the type that products round them to, in the host's memory.
    pub fn to_tensor(&self) -> Tensor {
        let (Codes::FourBit { bytes, .. } | Codes::Fp8 { bytes, .. } | Codes::Int8 { bytes, .. }) =
            &self.codes;
        if !bytes.tensor.is_on_host() {
            let mut decoded = bytes.tensor.zeros_beside(self.dtype, &self.shape);
            let to = decoded.view_mut().device();
            on_cuda::decode(bytes.tensor.view().cuda(), self, self.dtype, to);
            return decoded.to_host();
        }
        let mut tensor = Tensor::zeros(self.dtype, &self.shape);
        if tensor.elements() > 0 {
            with_dtype!(self.dtype, E => {
                decode_all(Isa::best(), self.decoder(), tensor.view_mut().as_mut_slice::<E>());
            });
        }
        tensor
    }

    /// For products on a CPU.
    pub(crate) fn decoder(&self) -> Decoder<'_> {
        Decoder { columns: self.shape[1], kind: Kind::of(&self.codes) }
    }
}
