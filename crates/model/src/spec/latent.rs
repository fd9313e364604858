//! Multi-head latent attention as data.

use sft_kernels::latent::Columns;

/// Queries, keys and values from narrow ones (DeepSeek-V2, 2024).
///
/// > q = q_b(norm(q_a(x))), or one projection; c ‖ r = kv_a(x); keys and values of all heads = kv_b(norm(c)), and the
/// > rotated part of all keys is r
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentSpec {
    /// Columns of a head.
    pub columns: Columns,
    /// What makes queries.
    pub queries: LatentQueries,
    /// Width of what keys and values are made from.
    pub kv_rank: usize,
    /// From C to that and the rotated part of keys.
    pub kv_a: &'static str,
    /// The norm of it.
    pub kv_a_norm: &'static str,
    /// To keys and values of all heads.
    pub kv_b: &'static str,
    /// Whether the projections from C have biases.
    pub bias: bool,
}

/// What makes queries of multi-head latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatentQueries {
    /// One projection from C.
    Direct(&'static str),
    /// Through narrow ones.
    Narrow {
        /// Their width.
        rank: usize,
        /// From C to that.
        a: &'static str,
        /// The norm of it.
        norm: &'static str,
        /// To all heads.
        b: &'static str,
    },
}

impl LatentSpec {
    /// The linear layers by their names inside the block.
    pub fn linear_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        let queries = match self.queries {
            LatentQueries::Direct(name) => [Some(name), None],
            LatentQueries::Narrow { a, b, .. } => [Some(a), Some(b)],
        };
        queries.into_iter().flatten().chain([self.kv_a, self.kv_b])
    }

    /// Width of the widest input of its linear layers, but for C.
    pub fn widest_input(&self) -> usize {
        match self.queries {
            LatentQueries::Direct(_) => self.kv_rank,
            LatentQueries::Narrow { rank, .. } => self.kv_rank.max(rank),
        }
    }

    /// The norms by their names inside the block.
    pub fn norm_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        let queries = match self.queries {
            LatentQueries::Direct(_) => None,
            LatentQueries::Narrow { norm, .. } => Some(norm),
        };
        queries.into_iter().chain([self.kv_a_norm])
    }
}
