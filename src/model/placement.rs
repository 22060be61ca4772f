//! An embedding table in host memory: which models can have one, and what it frees.

use crate::base::config::Placement;
use crate::base::{Error, Result};
use crate::hal::Caps;
use crate::model::ModelInfo;

/// Whether the model's table can be at `placement`: a table that is the output head too is multiplied with, whole, in every
/// step. `Invalid`, on any device, so that a config means the same everywhere.
pub(super) fn check(info: &ModelInfo, placement: Placement) -> Result<()> {
    if placement == Placement::Host && info.spec.tied {
        return Err(Error::invalid(
            "config key \"embedding_placement\" is \"host\"; the model's output head is its embedding table \
             (tie_word_embeddings), which every step reads whole, so it stays on the device: leave the key out",
        ));
    }
    Ok(())
}

/// Bytes of a rank's embedding table that lie in host memory instead of the device's: none where both are the same memory.
pub fn host_embedding_bytes(info: &ModelInfo, placement: Placement, caps: &Caps) -> Result<usize> {
    check(info, placement)?;
    let spec = &info.spec;
    Ok(match (placement, caps.own_memory) {
        (Placement::Host, true) => spec.vocab_size * spec.hidden_size * info.dtype.size(),
        _ => 0,
    })
}

/// Matrices on the device of a rank that holds `local`: numbers of them, and bytes of each.
pub fn device_matrices(local: &ModelInfo, embedding: Placement) -> Vec<(usize, usize)> {
    let spec = &local.spec;
    let (layers, hidden, inner) = (spec.layers.len(), spec.hidden_size * local.dtype.size(), spec.intermediate_size);
    let tables = if spec.tied || embedding == Placement::Host { 1 } else { 2 };
    vec![
        (layers, spec.qkv_size() * hidden),
        (layers, spec.attention_size() * hidden),
        (layers, 2 * inner * hidden),
        (layers, inner * hidden),
        (tables, spec.vocab_size * hidden),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;
    use crate::hal::registry::{DeviceOptions, open};
    use crate::model::inspect;

    #[test]
    fn a_table_frees_its_bytes_where_memories_differ_and_a_tied_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let info = |tied: bool| {
            let config = format!(
                r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": 500, "hidden_size": 24, "intermediate_size": 40,
                    "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "torch_dtype": "bfloat16",
                    "head_dim": 8, "max_position_embeddings": 100, "tie_word_embeddings": {tied}}}"#
            );
            std::fs::write(dir.path().join("config.json"), config).unwrap();
            inspect(dir.path()).unwrap()
        };
        let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
        let same = device.caps().clone();
        let own = Caps { own_memory: true, ..same.clone() };
        let (untied, tied) = (info(false), info(true));
        let on_device =
            |info, placement| device_matrices(info, placement).iter().map(|(n, bytes)| n * bytes).sum::<usize>();
        for info in [&untied, &tied] {
            assert_eq!(on_device(info, Placement::Device), 2 * info.spec.weight_elements().0);
        }
        assert_eq!(on_device(&untied, Placement::Device) - on_device(&untied, Placement::Host), 500 * 24 * 2);
        assert_eq!(host_embedding_bytes(&untied, Placement::Host, &own).unwrap(), 500 * 24 * 2);
        assert_eq!(host_embedding_bytes(&untied, Placement::Host, &same).unwrap(), 0);
        assert_eq!(host_embedding_bytes(&untied, Placement::Device, &own).unwrap(), 0);
        assert_eq!(host_embedding_bytes(&tied, Placement::Device, &own).unwrap(), 0);
        for caps in [same, own] {
            let e = host_embedding_bytes(&tied, Placement::Host, &caps).unwrap_err();
            assert!(e.kind == ErrorKind::Invalid && e.message.contains("embedding_placement"), "{e}");
        }
    }
}
