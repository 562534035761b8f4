//! Which type each tensor of a GGUF file gets. The mixtures are llama.cpp's, so that a name means the
//! same in both: what matters most gets more bits.

use std::collections::BTreeMap;

use compute::blocks::BlockType::{self, *};

use super::Quant;
use super::tensors::FileTensor;
use crate::config::Config;

/// The types of tensors, and what is to be told of them.
pub(super) fn kinds(
    config: &Config,
    quant: Quant,
    tensors: &[FileTensor<'_>],
) -> (Vec<BlockType>, Vec<String>) {
    let mut fallen: BTreeMap<(BlockType, BlockType, usize), usize> = BTreeMap::new();
    let mut kinds = Vec::new();
    for tensor in tensors {
        let wanted = wanted(config, quant, tensor);
        let got = fitting(wanted, tensor.cols());
        if got != wanted {
            *fallen.entry((wanted, got, tensor.cols())).or_default() += 1;
        }
        kinds.push(got);
    }
    let note = |((wanted, got, cols), count): ((BlockType, BlockType, usize), usize)| {
        format!(
            "{count} tensor{} with rows of {cols}, no multiple of {}: {} in place of {}",
            if count == 1 { "" } else { "s" },
            wanted.elements(),
            got.name(),
            wanted.name()
        )
    };
    (kinds, fallen.into_iter().map(note).collect())
}

fn wanted(config: &Config, quant: Quant, tensor: &FileTensor<'_>) -> BlockType {
    let name = tensor.name.as_str();
    // Small ones, and the choice of experts, which is all or nothing.
    if tensor.is_vector() || name == "position_embd.weight" || name.ends_with("ffn_gate_inp.weight")
    {
        return F32;
    }
    let tied = config.tie_word_embeddings && name == "token_embd.weight";
    if quant.kind().elements() == 1 {
        return quant.kind();
    }
    if tied || name == "output.weight" {
        let whole = tensor.cols().is_multiple_of(Q6_K.elements());
        return if quant == Quant::Q8_0 || !whole { Q8_0 } else { Q6_K };
    }
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let (Quant::Q4_K_M, Some((layer, part))) = (quant, part) else { return quant.kind() };
    let layer = layer.parse().unwrap_or(0);
    match part {
        "attn_v.weight" | "ffn_down.weight" | "ffn_down_exps.weight"
            if more_bits(layer, config.num_hidden_layers) =>
        {
            Q6_K
        }
        "attn_qkv.weight" => Q5_K,
        _ => Q4_K,
    }
}

/// The layers whose most sensitive matrices get more bits: the first and the last eighth, and each
/// third between them.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type, or the next larger one of which rows are whole blocks.
fn fitting(kind: BlockType, cols: usize) -> BlockType {
    if cols.is_multiple_of(kind.elements()) {
        return kind;
    }
    match kind {
        Q4_K => fitting(Q5_0, cols),
        Q5_K => fitting(Q5_1, cols),
        Q6_K => fitting(Q8_0, cols),
        _ => F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_more_bits() {
        let of = |n| (0..n).filter(|i| more_bits(*i, n)).collect::<Vec<_>>();
        assert_eq!(of(30), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        assert_eq!(of(1), [0]);
        assert_eq!(of(0), [0; 0]);
    }

    #[test]
    fn rows_that_are_no_whole_blocks() {
        assert_eq!(fitting(Q4_K, 512), Q4_K);
        assert_eq!(fitting(Q4_K, 576), Q5_0);
        assert_eq!(fitting(Q5_K, 576), Q5_1);
        assert_eq!(fitting(Q6_K, 576), Q8_0);
        assert_eq!(fitting(Q4_K, 100), F16);
        assert_eq!(fitting(Q8_0, 40), F16);
    }
}
