//! How the text of a byte-level BPE model is cut into words before pairs are merged, by the name that GGUF files give it
//! in `tokenizer.ggml.pre`.
//!
//! A wrong cut gives plausible but wrong tokens, so a name that is not in this table is an error and never a guess. Each
//! recipe does what the `tokenizer.json` of the models that carry its name does.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior::{Contiguous, Isolated};

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    steps: &'static [Step],
    /// A word that is a token as a whole is taken as it is, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with the begin-of-sequence token, where the file does not say.
    pub(super) add_bos: bool,
    /// Text is brought into Unicode's composed form first.
    pub(super) compose: bool,
}

/// One way to cut; each applies to what the ones before left.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Every match becomes a word, and so does what is between matches.
    Regex(&'static str),
    /// Spells every byte as a printable character.
    Bytes,
    /// GPT-2's words, and then their bytes.
    Gpt2Bytes,
    /// Every digit by itself.
    EachDigit,
    /// Every run of digits, without the space in front of it.
    DigitRuns,
    /// Runs of punctuation.
    Punctuation,
}

/// The recipe of that name.
pub(super) fn recipe(name: &str) -> Option<Recipe> {
    use Step::{Bytes, DigitRuns, EachDigit, Gpt2Bytes, Punctuation, Regex};
    let plain = |steps| Recipe { steps, ignore_merges: false, add_bos: false, compose: false };
    let composed = |steps| Recipe { compose: true, ..plain(steps) };
    let whole_words = |steps| Recipe { ignore_merges: true, add_bos: true, ..plain(steps) };
    Some(match name {
        "default" => {
            plain(&[Regex(r"[\p{P}\$\+<=>\^~\|]+"), Regex(GPT2), Regex(r"\p{N}+"), Regex("[0-9][0-9][0-9]"), Bytes])
        }
        "gpt-2" | "phi-2" | "jais" | "trillion" | "granite-docling" | "exaone4" | "gigachat" | "a.x-4.0" | "mellum" => {
            plain(&[Gpt2Bytes])
        }
        "mpt" | "olmo" => composed(&[Gpt2Bytes]),
        "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            plain(&[EachDigit, Gpt2Bytes])
        }
        "command-r" => composed(&[EachDigit, Gpt2Bytes]),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            whole_words(&[Regex(LLAMA3), Bytes])
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => plain(&[Regex(LLAMA3), Bytes]),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => composed(&[Regex(QWEN2), Bytes]),
        "stablelm2" | "hunyuan" | "solar-open" | "grok-2" | "kormo" => plain(&[Regex(QWEN2), Bytes]),
        "qwen35" => composed(&[Regex(QWEN35), Bytes]),
        "tekken" => whole_words(&[Regex(TEKKEN), Bytes]),
        "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => plain(&[Regex(GPT4O), Bytes]),
        "seed-coder" => plain(&[Regex(SEED_CODER), Bytes]),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => plain(&[Regex(BAILING), Bytes]),
        "deepseek-llm" => plain(&[
            Regex("[\r\n]"),
            Regex(DEEPSEEK_LETTERS),
            Regex("\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+"),
            Regex(r"\s+$"),
            Regex(DEEPSEEK_CJK),
            EachDigit,
            Bytes,
        ]),
        "deepseek-coder" => {
            plain(&[Regex("[\r\n]"), Regex(r"\s?\p{L}+"), Regex(r"\s?\p{P}+"), Regex(DEEPSEEK_CJK), EachDigit, Bytes])
        }
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => {
            plain(&[Regex(r"\p{N}{1,3}"), Regex("[一-龥\u{3040}-ゟ゠-ヿ]+"), Regex(DEEPSEEK3), Bytes])
        }
        // The digits are looked for after bytes were spelled, where those that look like numbers count as such.
        "falcon" => plain(&[Punctuation, Gpt2Bytes, DigitRuns, Regex("[0-9][0-9][0-9]")]),
        "bloom" | "poro-chat" | "gpt3-finnish" => plain(&[Regex(BLOOM), Bytes]),
        "viking" => plain(&[Regex(BLOOM), Regex(r"\p{N}"), Bytes]),
        _ => return None,
    })
}

impl Recipe {
    /// The recipe at work. A space in front of the text is honoured where transformers honours it: when GPT-2's words are
    /// the only step.
    pub(super) fn build(&self, add_prefix_space: bool) -> tokenizers::Result<PreTokenizerWrapper> {
        if let [Step::Gpt2Bytes] = self.steps {
            return Ok(ByteLevel::new(add_prefix_space, true, true).into());
        }
        let steps = self.steps.iter().map(|step| step.build()).collect::<tokenizers::Result<Vec<_>>>()?;
        Ok(Sequence::new(steps).into())
    }
}

impl Step {
    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        Ok(match self {
            Self::Regex(regex) => Split::new(SplitPattern::Regex(regex.to_owned()), Isolated, false)?.into(),
            Self::Bytes => ByteLevel::new(false, true, false).into(),
            Self::Gpt2Bytes => ByteLevel::new(false, true, true).into(),
            Self::EachDigit => Digits::new(true).into(),
            Self::DigitRuns => Digits::new(false).into(),
            Self::Punctuation => Punctuation::new(Contiguous).into(),
        })
    }
}

/// What GPT-4's cut and its many descendants share: contractions, words with one leading character that is neither letter
/// nor digit, numbers, punctuation, line ends, other white space.
macro_rules! after_gpt4 {
    ($contractions:expr, $word:expr, $number:expr, $punctuation:expr) => {
        concat!($contractions, $word, "|", $number, "|", $punctuation, r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    };
}

/// Words in which capitals come first: `Capital`, `CAPITALS`, `camel`+`Case`.
macro_rules! cased_words {
    ($suffix:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix
        )
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = after_gpt4!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*"
);

const QWEN2: &str =
    after_gpt4!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n]*");

const QWEN35: &str = after_gpt4!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
);

const SEED_CODER: &str =
    after_gpt4!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+");

const TEKKEN: &str = after_gpt4!("", cased_words!(""), r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*");

const GPT4O: &str =
    after_gpt4!("", cased_words!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"), r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*");

const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";

/// Letters that have a case, of the Unicode version that model was made with.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}",
    r"\x{370}-\x{373}\x{376}-\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}",
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}",
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}",
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}",
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}",
    r"\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}",
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}",
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}",
    r"\x{2183}-\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}-\x{2CF3}",
    r"\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}",
    r"\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}",
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}",
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
    "]+"
);

const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
