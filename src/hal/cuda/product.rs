//! A matrix product as its operands, and what an algorithm for it depends on.

use crate::base::DType;

/// Alignment that is worth knowing, in bytes.
const MAX_ALIGN: u64 = 256;

/// Rows from which on products are added to the residual stream by the library: the norm behind them has less to read then, and norms of
/// fewer rows take as long as their launch. Their kernels with the addition are slower by half a percent at 8192 rows.
pub(super) const ADDED_ROWS: usize = 1024;

/// `out = x * w^T + bias`, or `out += x * w^T + bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// Rows of `x` and `out`, columns of `out`, columns of `x`.
    pub(super) shape: (usize, usize, usize),
    /// Of `x` and `w`, and of `out`.
    pub(super) dtypes: (DType, DType),
    pub(super) out: u64,
    pub(super) x: u64,
    pub(super) w: u64,
    /// One number for each column of `out`, in its dtype.
    pub(super) bias: Option<u64>,
    /// From a row of `out` to the next, in numbers.
    pub(super) out_stride: usize,
    /// It is added to what `out` holds. Both kinds share a plan.
    pub(super) adds: bool,
    pub(super) search: Search,
}

/// How an algorithm is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Search {
    /// Parts of a sum are added up in F32.
    Exact,
    /// With the limits that PyTorch sets, so that sums are mostly added up as it does.
    AsReference,
}

impl Product {
    pub(super) fn name(&self) -> String {
        let (m, n, k) = self.shape;
        format!("product of {m}x{k} with {n}x{k}")
    }
}

/// What a plan depends on. Its rows are the most of their bucket: numbers of rows that are near share an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) shape: (usize, usize, usize),
    pub(super) dtypes: (DType, DType),
    pub(super) has_bias: bool,
    pub(super) out_stride: usize,
    pub(super) search: Search,
    /// Of `out`, `x` and `w`.
    pub(super) align: [u64; 3],
}

impl Key {
    pub(super) fn of(p: &Product) -> Self {
        let (m, n, k) = p.shape;
        let rows = match p.search {
            Search::Exact => bucket(m),
            // The reference asks anew for every number of rows.
            Search::AsReference => m,
        };
        Self {
            shape: (rows, n, k),
            dtypes: p.dtypes,
            has_bias: p.bias.is_some(),
            out_stride: p.out_stride,
            search: p.search,
            align: [p.out, p.x, p.w].map(align),
        }
    }

    /// In a file of what was found.
    pub(super) fn name(&self) -> String {
        let ((m, n, k), (input, output), [out, x, w]) = (self.shape, self.dtypes, self.align);
        let bias = if self.has_bias { " with bias" } else { "" };
        format!("{m}x{n}x{k} {input} to {output}{bias}, aligned {out} {x} {w}")
    }
}

/// The largest number of rows that shares an algorithm with `rows`: eight of them between a power of two and the next.
pub(super) fn bucket(rows: usize) -> usize {
    match rows {
        0..=4 => rows.next_power_of_two(),
        _ => rows.next_multiple_of((rows.next_power_of_two() / 16).max(8)),
    }
}

/// All of them for up to `most` rows: powers of two first, as time may not suffice for all.
pub(super) fn all_buckets(most: usize) -> Vec<usize> {
    let rising = std::iter::successors(Some(1), |rows| Some(bucket(rows + 1)));
    let mut all: Vec<_> = rising.take_while(|rows| *rows <= bucket(most)).collect();
    all.sort_by_key(|rows| !rows.is_power_of_two());
    all
}

fn align(addr: u64) -> u64 {
    (1 << addr.trailing_zeros().min(63)).min(MAX_ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_few_near_and_cover_all_rows() {
        let all = all_buckets(1000);
        assert_eq!(all[..12], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 24]);
        assert_eq!(all.len(), 43);
        assert!(all_buckets(65_536).len() < 100);
        for rows in 1..5000 {
            let most = bucket(rows);
            assert!(most >= rows && most - rows < 8.max(rows / 8 + 1), "{rows}: {most}");
            assert!(bucket(most) == most && all_buckets(rows).contains(&most), "{rows}: {most}");
        }
    }
}
