//! What a step costs, by a model of the device: a roof over the weights' bytes and the products' operations, attention on top.
//! Integers, so that plans repeat; picoseconds, but only ratios are used.

/// The model of one engine's steps. Sums of everything a step may hold stay far below `u64::MAX`; beyond it they saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepCost {
    /// What any step costs beside the rest: its kernels' launches and ends.
    pub step: u64,
    /// Reading the weights. Rows are free until their products cost as much.
    pub weights: u64,
    /// The products of one row (one token).
    pub row: u64,
    /// Attention of one row over 1024 tokens of context, by arithmetic.
    pub row_context: u64,
    /// Reading the KV of 1024 tokens of context, which an entry does once however many rows it has.
    pub context: u64,
}

/// What a step has taken on so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub rows: u64,
    /// Cost of the entries' attention.
    pub attention: u64,
}

impl StepCost {
    /// Attention of an entry that runs `len` tokens from position `start`.
    fn attention(&self, start: u32, len: u32) -> u64 {
        let (start, len) = (u64::from(start), u64::from(len));
        // Row i sees start + i + 1 tokens.
        let seen = len * start + len * (len + 1) / 2;
        let arithmetic = self.row_context.saturating_mul(seen) / 1024;
        arithmetic.max(self.context.saturating_mul(start + len) / 1024)
    }

    /// The load with an entry more.
    pub fn with(&self, load: Load, start: u32, len: u32) -> Load {
        Load { rows: load.rows + u64::from(len), attention: load.attention.saturating_add(self.attention(start, len)) }
    }

    /// Of a step with this load.
    pub fn of(&self, load: Load) -> u64 {
        let products = self.weights.max(self.row.saturating_mul(load.rows));
        self.step.saturating_add(products).saturating_add(load.attention)
    }

    /// Most tokens from `start`, at most `most`, with which a step of this load costs at most `limit`.
    pub fn fit(&self, load: Load, (start, most): (u32, u32), limit: u64) -> u32 {
        // More tokens never cost less, so the answer is found by halving.
        let (mut fits, mut beyond) = (0, most + 1);
        while beyond - fits > 1 {
            let middle = fits + (beyond - fits) / 2;
            if self.of(self.with(load, start, middle)) <= limit {
                fits = middle;
            } else {
                beyond = middle;
            }
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: StepCost = StepCost { step: 10, weights: 1000, row: 10, row_context: 1024, context: 20 * 1024 };

    #[test]
    fn rows_are_free_under_the_weights_and_context_is_not() {
        let cost = |entries: &[(u32, u32)]| {
            COST.of(entries.iter().fold(Load::default(), |load, &(start, len)| COST.with(load, start, len)))
        };
        assert_eq!(cost(&[(0, 1)]), 10 + 1000 + 20);
        assert_eq!(cost(&[(0, 1); 100]), 10 + 1000 + 100 * 20);
        assert_eq!(cost(&[(0, 1); 101]), 10 + 1010 + 101 * 20);
        // Few rows are bound by what they read, many by what they compute.
        assert_eq!(cost(&[(99, 1)]), 10 + 1000 + 2000);
        assert_eq!(cost(&[(100, 100)]), 10 + 1000 + 100 * 100 + 5050);
    }

    #[test]
    fn what_fits_costs_no_more_and_one_more_does() {
        let load = COST.with(Load::default(), 500, 1);
        for (start, most, limit) in [(0, 1000, 30_000), (700, 1000, 30_000), (5000, 64, 200_000), (7, 1, 40_000)] {
            let fits = COST.fit(load, (start, most), limit);
            assert!(fits > 0 && COST.of(COST.with(load, start, fits)) <= limit, "{fits} from {start}");
            assert!(fits == most || COST.of(COST.with(load, start, fits + 1)) > limit, "{fits} from {start}");
        }
        assert_eq!(COST.fit(load, (0, 100), COST.of(load)), 0);
    }

    #[test]
    fn the_largest_sizes_saturate() {
        let most = StepCost { step: u64::MAX, weights: 1, row: u64::MAX, row_context: u64::MAX, context: u64::MAX };
        let load = most.with(Load { rows: 1 << 20, attention: u64::MAX }, 1 << 30, 1 << 16);
        assert_eq!((most.of(load), most.fit(load, (1 << 30, 65_536), u64::MAX - 1)), (u64::MAX, 0));
    }
}
