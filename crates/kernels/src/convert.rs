//! Between element types, on the card.

use std::sync::Arc;

use crate::cuda::Cuda;
use crate::{View, ViewMut};

/// to = from, rounded to nearest even where `to` is narrower.
pub(crate) fn on_cuda(_cuda: &Arc<Cuda>, _from: View<'_>, _to: ViewMut<'_>) {
    unimplemented!("convert.cu")
}
