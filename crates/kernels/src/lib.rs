//! Tensors, threads and the differentiable operations of a decoder: forward and backward side by side.
//!
//! In: views of tensors on one [`Device`]. Out: tensors overwritten or accumulated, as each op says.
//! Stages 9–12 of the walk are made of these ops; this crate knows no model and no configuration:
//! an op's constants are its arguments.
//!
//! # Dimension letters
//!
//! | letter | meaning | letter | meaning |
//! |---|---|---|---|
//! | `N` | tokens of a micro-batch | `F` | feed-forward width |
//! | `C` | hidden width | `V` | vocabulary |
//! | `H` | attention heads | `R` | LoRA rank |
//! | `K` | key/value heads | `L` | layers |
//! | `D` | width of a head | `E` | experts |
//!
//! # Storage and arithmetic
//!
//! Storage is `f32` or `bf16`; arithmetic is `f32` always. Every reduction has a fixed order that depends on
//! shapes alone, so results do not depend on the number of threads.

pub mod activation;
pub mod adamw;
mod aligned;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod columns;
pub mod conv1d;
pub mod convert;
pub mod copies;
pub mod cross_entropy;
pub mod cuda;
pub mod decay;
pub mod device;
pub mod dora;
pub mod dropout;
pub mod dtype;
mod exp;
pub mod experts;
pub mod gated;
pub mod halves;
pub mod isa;
mod lanes;
pub mod latent;
pub mod layer_norm;
pub mod limits;
pub mod linear_attention;
pub mod lora;
pub mod mapped_file;
pub mod matmul;
mod norm_rows;
pub mod objective;
pub mod oft;
mod out_of_memory;
mod pages;
pub mod profile;
pub mod quantized;
pub mod random;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod registers;
pub mod rms_norm;
pub mod rope;
pub mod routing;
pub mod row_gate;
pub mod rows;
mod scratch;
mod simd;
pub mod sinks;
pub mod softcap;
pub mod tensor;
mod tensor_table;
#[cfg(test)]
mod testing;
pub mod update;
pub mod xielu;

pub use device::{CpuOptions, Device, DeviceError};
pub use dtype::{DType, Element};
pub use isa::Isa;
pub use mapped_file::{MappedFile, map_file};
pub use out_of_memory::OutOfMemory;
pub use pages::{Slab, give_back_freed};
pub use tensor::{Tensor, View, ViewMut};
