//! What a backend tells about its node, whoever's backend it is: it goes back as it came.

use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Data of a backend. Two are the same if they mean the same.
#[derive(Clone, Debug)]
pub(crate) struct BackendData {
    value: Value,
    /// How it was written, where we would write it in another way.
    text: Option<Box<RawValue>>,
}

impl BackendData {
    /// What was read, and its text.
    pub(crate) fn read(value: Value, text: Option<&RawValue>) -> Self {
        let ours = value.to_string();
        let text = text.filter(|text| text.get() != ours);
        Self { value, text: text.map(ToOwned::to_owned) }
    }

    /// What it means.
    pub(crate) const fn value(&self) -> &Value {
        &self.value
    }
}

impl From<Value> for BackendData {
    fn from(value: Value) -> Self {
        Self { value, text: None }
    }
}

impl PartialEq for BackendData {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Serialize for BackendData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.text {
            Some(text) => text.serialize(serializer),
            None => self.value.serialize(serializer),
        }
    }
}
