//! What a backend tells about its node, whoever's backend it is: it goes back as it came.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

/// Data of a backend, as the text that it came as: a large cluster has thousands of them, and most
/// are looked at for one field. Two are the same if they mean the same.
#[derive(Clone, Debug)]
pub(crate) struct BackendData(Box<RawValue>);

impl BackendData {
    /// What was read.
    pub(crate) fn read(text: &RawValue) -> Self {
        Self(text.to_owned())
    }

    /// Decodes one field; `None` if there is none, or if this is no object.
    pub(crate) fn field<T: DeserializeOwned>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, fabric::json::Error> {
        let [text] = fabric::json::fields(self.0.get().as_bytes(), [name])?;
        fabric::json::field(name, text)
    }

    /// What it means; `None` for what has no meaning here, such as numbers beyond all measure.
    fn value(&self) -> Option<Value> {
        serde_json::from_str(self.0.get()).ok()
    }
}

impl From<Value> for BackendData {
    fn from(value: Value) -> Self {
        Self(to_raw_value(&value).expect("a value always encodes"))
    }
}

impl PartialEq for BackendData {
    fn eq(&self, other: &Self) -> bool {
        let means_the_same = || self.value().is_some_and(|value| Some(value) == other.value());
        self.0.get() == other.0.get() || means_the_same()
    }
}

/// On one line, and with the keys in order, however it was written.
impl fmt::Display for BackendData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value() {
            Some(value) => value.fmt(f),
            None => write!(f, "{:?}", self.0.get()),
        }
    }
}

impl Serialize for BackendData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
