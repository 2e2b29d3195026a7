//! The header of a GGUF file: metadata and where each tensor lies, checked against the file before anything is allocated.

use std::collections::BTreeMap;

/// One metadata value; integers and floats are widened, arrays keep one kind.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<String>),
}

/// The metadata of a file, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub BTreeMap<String, Value>);

impl Metadata {
    /// Any value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Option<&str> {
        if let Some(Value::String(value)) = self.get(key) { Some(value) } else { None }
    }

    /// A whole number that is not negative.
    pub fn uint(&self, key: &str) -> Option<u64> {
        if let Some(Value::Int(value)) = self.get(key) { u64::try_from(*value).ok() } else { None }
    }

    /// A number.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.get(key) {
            Some(Value::Float(value)) => Some(*value),
            Some(Value::Int(value)) => Some(*value as f64),
            _ => None,
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        if let Some(Value::Bool(value)) = self.get(key) { Some(*value) } else { None }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        if let Some(Value::Strings(values)) = self.get(key) { Some(values) } else { None }
    }

    /// An array of whole numbers.
    pub fn ints(&self, key: &str) -> Option<&[i64]> {
        if let Some(Value::Ints(values)) = self.get(key) { Some(values) } else { None }
    }

    /// An array of numbers.
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        if let Some(Value::Floats(values)) = self.get(key) { Some(values) } else { None }
    }
}
