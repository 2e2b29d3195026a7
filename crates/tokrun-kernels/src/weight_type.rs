//! How the numbers of a weight matrix are stored in model files.

/// A storage type of GGUF and safetensors files that models can be computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the formats'")]
#[expect(non_camel_case_types, reason = "the names are the formats'")]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    /// 8-bit floats (e4m3), with an f32 scale for each 128 columns in front of them.
    FP8,
}

impl WeightType {
    /// Every type, in the order of the enum.
    pub const ALL: [Self; 17] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::MXFP4,
        Self::FP8,
    ];

    /// The name that files and tools use: `Q4_1`.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Values a block; a row is whole blocks.
    pub const fn block_size(self) -> usize {
        self.row().1
    }

    /// Bytes a block.
    pub const fn block_bytes(self) -> usize {
        self.row().2
    }

    /// Bytes of a row of `columns` values, if that is whole blocks.
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        if columns.is_multiple_of(self.block_size()) {
            (columns / self.block_size()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    const fn row(self) -> (&'static str, usize, usize) {
        match self {
            Self::F32 => ("F32", 1, 4),
            Self::F16 => ("F16", 1, 2),
            Self::BF16 => ("BF16", 1, 2),
            Self::Q4_0 => ("Q4_0", 32, 18),
            Self::Q4_1 => ("Q4_1", 32, 20),
            Self::Q5_0 => ("Q5_0", 32, 22),
            Self::Q5_1 => ("Q5_1", 32, 24),
            Self::Q8_0 => ("Q8_0", 32, 34),
            Self::Q2_K => ("Q2_K", 256, 84),
            Self::Q3_K => ("Q3_K", 256, 110),
            Self::Q4_K => ("Q4_K", 256, 144),
            Self::Q5_K => ("Q5_K", 256, 176),
            Self::Q6_K => ("Q6_K", 256, 210),
            Self::IQ4_NL => ("IQ4_NL", 32, 18),
            Self::IQ4_XS => ("IQ4_XS", 256, 136),
            Self::MXFP4 => ("MXFP4", 32, 17),
            Self::FP8 => ("FP8", 128, 132),
        }
    }
}
