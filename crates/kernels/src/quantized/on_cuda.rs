//! Decodes a whole weight on a GPU, into memory that the product which reads it has for itself.

use super::{Codes, QuantizedWeight, Scales};
use crate::DType;
use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};

pub(crate) static SOURCE: Source = Source::new("quantized", include_str!("quantized.cu"));

/// Elements of a thread.
const TOGETHER: usize = 8;
/// Threads of a block.
const THREADS: usize = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Decode {
    codes: DevicePtr,
    scales: DevicePtr,
    nested: DevicePtr,
    map: DevicePtr,
    to: DevicePtr,
    elements: u64,
    columns: u64,
    offset: f32,
    block_bits: u32,
    table: [f32; 16],
    zeros: DevicePtr,
    tile_rows: u64,
    tile_columns: u64,
}

// SAFETY: `Decode` of quantized.cu; sizes were compared when the weight was made.
unsafe impl Params for Decode {}

/// Writes all values, as `dtype`, to memory for as many.
pub(crate) fn decode(cuda: &Cuda, weight: &QuantizedWeight, dtype: DType, to: DevicePtr) {
    let [outputs, inputs] = weight.shape;
    let elements = outputs * inputs;
    if elements == 0 {
        return;
    }
    let mut params = Decode {
        codes: DevicePtr::NULL,
        scales: DevicePtr::NULL,
        nested: DevicePtr::NULL,
        map: DevicePtr::NULL,
        to,
        elements: elements as u64,
        columns: inputs as u64,
        offset: 0.0,
        block_bits: 0,
        table: [0.0; 16],
        zeros: DevicePtr::NULL,
        tile_rows: 1,
        tile_columns: 1,
    };
    let kernel = match &weight.codes {
        Codes::Int8 { bytes, scales } => {
            params.codes = bytes.tensor.view().device();
            params.scales = scales.view().device();
            "decode_eight_bits"
        }
        Codes::Fp8 { bytes, scales, tile } => {
            params.codes = bytes.tensor.view().device();
            params.scales = scales.view().device();
            [params.tile_rows, params.tile_columns] = tile.map(|side| side as u64);
            "decode_fp8"
        }
        Codes::FourBit { kind, bytes, block, scales, zeros } => {
            params.codes = bytes.tensor.view().device();
            params.table = *kind.table();
            params.block_bits = block.trailing_zeros();
            params.zeros = zeros.as_ref().map_or(DevicePtr::NULL, |zeros| zeros.view().device());
            match scales {
                Scales::Plain(scales) => params.scales = scales.view().device(),
                Scales::Nested(nested) => {
                    params.scales = nested.absmax.view().device();
                    params.nested = nested.codes.tensor.view().device();
                    params.map = nested.map.view().device();
                    params.offset = nested.offset;
                }
            }
            "decode_four_bits"
        }
    };
    let grid = Grid::new(elements.div_ceil(TOGETHER * THREADS), THREADS);
    cuda.launch(&SOURCE, kernel, &[dtype], grid, params);
}
