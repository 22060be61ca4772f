//! What a model's steps cost on a device, for the scheduler.

use crate::hal::Rates;
use crate::model::ModelInfo;
use crate::plan::StepCost;

const TOKENS: u128 = 1024;

/// The cost of steps of a model (of a rank's share of one) on a device with these rates. Layers with a window count as if every
/// row saw a full one.
pub fn step_cost(info: &ModelInfo, rates: &Rates) -> StepCost {
    let spec = &info.spec;
    let (layers, elements) = (spec.layers.len() as u128, spec.weight_elements().0 as u128);
    let table = (spec.vocab_size * spec.hidden_size) as u128;
    let tables = if spec.tied { 1 } else { 2 };
    let element = info.dtype.size() as u128;
    // One token of context: scores and weighted sums of every head, its keys and values.
    let (seen, kept) = (4 * spec.attention_size() as u128, 2 * (spec.kv_heads * spec.head_dim) as u128 * element);
    let full = spec.layers.iter().filter(|l| l.window.is_none()).count() as u128;
    let windows: u128 = spec.layers.iter().filter_map(|l| l.window).map(u128::from).sum();
    // Operations or bytes over what a microsecond does of them, in picoseconds.
    let time = |amount: u128, per_us: u64| {
        u64::try_from(amount.saturating_mul(1_000_000) / u128::from(per_us.max(1))).unwrap_or(u64::MAX)
    };
    let windowed = time(windows.min(layers * info.max_position as u128) * seen, rates.attention_per_us);
    StepCost {
        step: time(layers * u128::from(rates.layer_ns), 1000),
        // The head is read whole; of the embedding table next to nothing.
        weights: time((elements - (tables - 1) * table) * element, rates.bytes_per_us),
        row: time(2 * (elements - tables * table), rates.products_per_us).saturating_add(windowed),
        row_context: time(TOKENS * full * seen, rates.attention_per_us),
        context: time(TOKENS * full * kept, rates.bytes_per_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::inspect;

    /// Rates near those of a large GPU.
    const RATES: Rates = Rates {
        products_per_us: 740_000_000,
        attention_per_us: 400_000_000,
        bytes_per_us: 4_200_000,
        layer_ns: 25_000,
    };

    fn cost(more: &str) -> StepCost {
        let dir = tempfile::tempdir().unwrap();
        let text = r#""architectures": ["MistralForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": 128256,
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 131072"#;
        std::fs::write(dir.path().join("config.json"), format!("{{{text}, {more}}}")).unwrap();
        step_cost(&inspect(dir.path()).unwrap(), &RATES)
    }

    #[test]
    fn an_8b_model_costs_what_its_shape_says() {
        let c = cost(r#""sliding_window": null"#);
        // 15 GB of weights, 14 GFLOP a row, 0.52 MFLOP and 128 KiB a token of context.
        assert_eq!(c.step, 800_000_000);
        assert_eq!(c.weights / 1_000_000, 3573);
        assert_eq!(c.row / 1000, 18_863);
        assert_eq!((c.row_context / 1024, c.context / 1024), (1310, 31_207));
    }

    #[test]
    fn a_window_bounds_what_context_costs() {
        let (full, windowed) = (cost(r#""sliding_window": null"#), cost(r#""sliding_window": 4096"#));
        assert_eq!((windowed.row_context, windowed.context), (0, 0));
        assert_eq!((windowed.row - full.row) / 1000, 4 * full.row_context / 1000);
    }
}
