//! The sources of the kernels, and what can be read from them: which kernels there are, and what
//! they take.

use std::collections::HashMap;
use std::sync::OnceLock;

/// A source, as it is compiled: behind [`DEVICE`].
#[derive(Debug)]
pub struct Source {
    /// Its file's name.
    pub name: &'static str,
    /// What its kernels' names end in besides, where a file is compiled several times.
    pub variant: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// What stands before every source.
pub const DEVICE: &str = include_str!("kernels/device.h");

/// Sources by name; `"x.cu" after "y.h"` puts another file before one, and `as "_v" with "A B"` makes
/// the variant in which A is defined as B: its kernels' names end in `_v`.
macro_rules! sources {
    ($($(#[$only:meta])? $name:literal $(after $header:literal)?
        $(as $variant:literal with $($define:literal)*)?,)*) => {
        &[$($(#[$only])? Source {
            name: $name,
            variant: concat!($($variant)?),
            text: concat!(
                $($("#define ", $define, "\n",)*)?
                $(include_str!(concat!("kernels/", $header)),)?
                include_str!(concat!("kernels/", $name)),
            ),
        },)*]
    };
}

/// All sources.
#[rustfmt::skip]
pub const SOURCES: &[Source] = sources![
    "bias.cu" after "columns.h",
    "cap.cu",
    "dropout.cu",
    "gated.cu",
    "heads.cu" after "columns.h",
    "layer_norm.cu" after "columns.h",
    "norm.cu" after "columns.h",
    "optimizer.cu",
    "rows.cu",
    "softmax.cu",
    "update.cu",
    "attention.cu" after "attention.h" as "_32" with "HEAD_DIM 32",
    "attention.cu" after "attention.h" as "_64" with "HEAD_DIM 64",
    "attention.cu" after "attention.h" as "_80" with "HEAD_DIM 80",
    "attention.cu" after "attention.h" as "_96" with "HEAD_DIM 96",
    "attention.cu" after "attention.h" as "_128" with "HEAD_DIM 128",
    "attention.cu" after "attention.h" as "_256" with "HEAD_DIM 256",
    "attention_backward.cu" after "attention.h" as "_32" with "HEAD_DIM 32",
    "attention_backward.cu" after "attention.h" as "_64" with "HEAD_DIM 64",
    "attention_backward.cu" after "attention.h" as "_80" with "HEAD_DIM 80",
    "attention_backward.cu" after "attention.h" as "_96" with "HEAD_DIM 96",
    "attention_backward.cu" after "attention.h" as "_128" with "HEAD_DIM 128",
    "attention_backward.cu" after "attention.h" as "_256" with "HEAD_DIM 256",
    "kv.cu" after "attention.h" as "_32_f16" with "HEAD_DIM 32" "KV_TYPE F16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_32_bf16" with "HEAD_DIM 32" "KV_TYPE Bf16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_32_q8" with "HEAD_DIM 32" "KV_TYPE F16" "KV_BYTES 1",
    "kv.cu" after "attention.h" as "_64_f16" with "HEAD_DIM 64" "KV_TYPE F16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_64_bf16" with "HEAD_DIM 64" "KV_TYPE Bf16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_64_q8" with "HEAD_DIM 64" "KV_TYPE F16" "KV_BYTES 1",
    "kv.cu" after "attention.h" as "_80_f16" with "HEAD_DIM 80" "KV_TYPE F16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_80_bf16" with "HEAD_DIM 80" "KV_TYPE Bf16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_80_q8" with "HEAD_DIM 80" "KV_TYPE F16" "KV_BYTES 1",
    "kv.cu" after "attention.h" as "_96_f16" with "HEAD_DIM 96" "KV_TYPE F16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_96_bf16" with "HEAD_DIM 96" "KV_TYPE Bf16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_96_q8" with "HEAD_DIM 96" "KV_TYPE F16" "KV_BYTES 1",
    "kv.cu" after "attention.h" as "_128_f16" with "HEAD_DIM 128" "KV_TYPE F16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_128_bf16" with "HEAD_DIM 128" "KV_TYPE Bf16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_128_q8" with "HEAD_DIM 128" "KV_TYPE F16" "KV_BYTES 1",
    "kv.cu" after "attention.h" as "_256_f16" with "HEAD_DIM 256" "KV_TYPE F16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_256_bf16" with "HEAD_DIM 256" "KV_TYPE Bf16" "KV_BYTES 2",
    "kv.cu" after "attention.h" as "_256_q8" with "HEAD_DIM 256" "KV_TYPE F16" "KV_BYTES 1",
    "quantised.cu" after "quantised.h" as "_q4_0" with "TYPE Q4_0",
    "quantised.cu" after "quantised.h" as "_q4_1" with "TYPE Q4_1",
    "quantised.cu" after "quantised.h" as "_q5_0" with "TYPE Q5_0",
    "quantised.cu" after "quantised.h" as "_q5_1" with "TYPE Q5_1",
    "quantised.cu" after "quantised.h" as "_q8_0" with "TYPE Q8_0",
    "quantised.cu" after "quantised.h" as "_q4_k" with "TYPE Q4_K",
    "quantised.cu" after "quantised.h" as "_q5_k" with "TYPE Q5_K",
    "quantised.cu" after "quantised.h" as "_q6_k" with "TYPE Q6_K",
    "quantised.cu" after "quantised.h" as "_f16" with "TYPE F16",
    "quantised.cu" after "quantised.h" as "_bf16" with "TYPE BF16",
    "quantised.cu" after "quantised.h" as "_f32" with "TYPE F32",
    #[cfg(feature = "emulator")]
    "probe.cu",
];

/// A kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Index into [`SOURCES`].
    pub source: usize,
    /// Its name in the source.
    pub name: &'static str,
    /// What it takes; `Err` for a parameter of a kind that isn't known.
    pub parameters: Vec<Result<Kind, &'static str>>,
}

/// What a parameter or an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `float`.
    F32,
    /// `int`.
    I32,
    /// `uint32_t`.
    U32,
    /// `size_t`.
    Size,
    /// A pointer to elements of so many bytes; of any size if 0.
    Pointer(u8),
}

impl Kind {
    /// Whether an argument of kind `self` can be given for a parameter.
    pub fn fits(self, parameter: Kind) -> bool {
        self == parameter || (matches!(self, Kind::Pointer(_)) && parameter == Kind::Pointer(0))
    }

    fn of(parameter: &'static str) -> Result<Kind, &'static str> {
        let pointer = parameter.contains('*');
        let words: Vec<&str> = parameter
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !matches!(*word, "" | "const" | "__restrict__"))
            .collect();
        match (pointer, words.first().copied().unwrap_or_default()) {
            (false, "float") => Ok(Kind::F32),
            (false, "int") => Ok(Kind::I32),
            (false, "uint32_t") => Ok(Kind::U32),
            (false, "size_t") => Ok(Kind::Size),
            (true, "uint8_t" | "int8_t") => Ok(Kind::Pointer(1)),
            (true, "uint16_t") => Ok(Kind::Pointer(2)),
            (true, "float" | "uint32_t" | "int") => Ok(Kind::Pointer(4)),
            (true, "void" | "uint4" | "float4" | "uint2" | "float2") => Ok(Kind::Pointer(0)),
            _ => Err(parameter),
        }
    }
}

/// The kernel of a name, which ends in its source's variant.
pub fn find(name: &str) -> Option<&'static Kernel> {
    static ALL: OnceLock<HashMap<String, Kernel>> = OnceLock::new();
    ALL.get_or_init(|| {
        let kernels = SOURCES.iter().enumerate().flat_map(|(i, source)| of(i, source.text));
        let named = |k: Kernel| (format!("{}{}", k.name, SOURCES[k.source].variant), k);
        kernels.map(named).collect()
    })
    .get(name)
}

/// The kernels of a source.
pub fn of(source: usize, text: &'static str) -> Vec<Kernel> {
    text.split("extern \"C\" __global__").skip(1).filter_map(|text| kernel(source, text)).collect()
}

/// A kernel from what follows `__global__`: perhaps bounds of launches, `void NAME(PARAMETERS) {`.
fn kernel(source: usize, text: &'static str) -> Option<Kernel> {
    let head = text[text.find("void ")? + "void ".len()..text.find('{')?].trim();
    let head = match head.strip_prefix("__launch_bounds__") {
        Some(bounds) => bounds.split_once(')')?.1,
        None => head,
    };
    let (name, rest) = head.split_once('(')?;
    let list = &rest[..rest.rfind(')')?];
    let parameters = list.split(',').map(str::trim).filter(|p| !p.is_empty()).map(Kind::of);
    Some(Kernel { source, name: name.trim(), parameters: parameters.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read() {
        let text = "extern \"C\" __global__ void __launch_bounds__(256)\n  twice(const float* __restrict__ x, uint16_t *y,\n size_t n, float a) {\n}";
        let kernels = of(0, text);
        assert_eq!(kernels[0].name, "twice");
        let kinds: Vec<Kind> = kernels[0].parameters.iter().filter_map(|p| p.ok()).collect();
        assert_eq!(kinds, [Kind::Pointer(4), Kind::Pointer(2), Kind::Size, Kind::F32]);
    }

    #[test]
    fn every_source_is_understood_and_names_are_their_own() {
        let mut names = HashMap::new();
        for (i, source) in SOURCES.iter().enumerate() {
            let kernels = of(i, source.text);
            assert!(!kernels.is_empty(), "{} has no kernels", source.name);
            assert_eq!(kernels.len(), source.text.matches("__global__").count(), "{}", source.name);
            for kernel in kernels {
                for parameter in &kernel.parameters {
                    assert!(parameter.is_ok(), "{}: {parameter:?}", kernel.name);
                }
                let name = format!("{}{}", kernel.name, source.variant);
                assert_eq!(names.insert(name, i), None, "{} twice", kernel.name);
            }
        }
    }
}
