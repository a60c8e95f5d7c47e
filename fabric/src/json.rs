//! JSON decoded by those rules of Go's `encoding/json` that existing configurations rely on.
//!
//! Network configurations, leases and CNI requests have been read by Go programs for a decade, and
//! some are only right because Go is lenient: containerd spells `hostPort` as `HostPort`, and
//! `{"mtu": null}` means what `{}` means. Here, at every level of nesting:
//!
//! - names of struct fields match whatever the case of their letters;
//! - of several values for one field the last in the document counts;
//! - `null` leaves the default of a struct field, as if the key were absent;
//! - unknown keys are ignored, also where a type says `deny_unknown_fields`;
//! - a list is no substitute for a struct.
//!
//! All other mismatches are errors that name the path, for example
//! `delegate.mtu: expected u32, found string "1500"`.
//!
//! The rules act where serde asks for a struct. `#[serde(flatten)]`, untagged and internally tagged
//! enums ask for a map instead and get the keys as they were written, like maps do.
//! Nesting is limited to 128 levels, the limit of `serde_json`.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

/// Decodes one JSON document.
///
/// # Errors
/// If `bytes` are not exactly one JSON document, or if that does not have the shape of `T`.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let tree = Tree::deserialize(&mut parser)?;
    parser.end()?;
    T::deserialize(tree)
}

/// Decodes a part of a document that was kept as it was, such as the options of a backend.
///
/// # Errors
/// If `value` does not have the shape of `T`.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Tree::from(value))
}

/// Returns the values of some fields of an object as they stand in it, byte for byte: those that a
/// struct with these fields would get. They are only decoded by [`field`].
///
/// # Errors
/// If `document` is not exactly one JSON object, or `null`.
pub fn fields<'a, const N: usize>(
    document: &'a [u8],
    names: [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], Error> {
    let mut parser = serde_json::Deserializer::from_slice(document);
    let fields = parser.deserialize_any(Fields(names))?;
    parser.end()?;
    Ok(fields)
}

/// Decodes the value of a field that [`fields`] found.
///
/// # Errors
/// If it does not have the shape of `T`.
pub fn field<T: DeserializeOwned>(
    name: &'static str,
    value: Option<&RawValue>,
) -> Result<Option<T>, Error> {
    let decode = |value: &RawValue| from_slice(value.get().as_bytes());
    value.map(decode).transpose().map_err(|error: Error| error.inside(name))
}

/// Finds the values of fields with these names.
struct Fields<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for Fields<N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok([None; N])
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(place) = entries.next_key_seed(Place(&self.0))? {
            let value: &RawValue = entries.next_value()?;
            if let Some(place) = place.filter(|_| value.get() != "null") {
                found[place] = Some(value);
            }
        }
        Ok(found)
    }
}

/// Finds out which of these names a key is.
struct Place<'n>(&'n [&'static str]);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        let name = field_named(key, self.0);
        Ok(self.0.iter().position(|other| Some(*other) == name))
    }
}

/// Why a document could not be decoded, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    path: String,
    reason: String,
}

impl Error {
    fn inside(self, parent: &str) -> Self {
        let joint = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        Self { path: format!("{parent}{joint}{}", self.path), reason: self.reason }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Error {}

impl From<serde_json::Error> for Error {
    fn from(syntax: serde_json::Error) -> Self {
        Self { path: String::new(), reason: syntax.to_string() }
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self { path: String::new(), reason: reason.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {}", Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

/// Calls things by their names in JSON, where serde has other words.
struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Unit | Unexpected::Option => f.write_str("null"),
            Unexpected::Map => f.write_str("an object"),
            Unexpected::Seq => f.write_str("a list"),
            other => other.fmt(f),
        }
    }
}

/// A document with the entries of its objects in their order, duplicates included.
#[derive(Clone, Debug)]
enum Tree {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    fn mismatch<'de, V: Visitor<'de>>(&self, visitor: &V) -> Error {
        let found = match self {
            Self::Null => Unexpected::Unit,
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Number(_) => Unexpected::Other("a number"),
            Self::String(value) => Unexpected::Str(value),
            Self::List(_) => Unexpected::Seq,
            Self::Object(_) => Unexpected::Map,
        };
        de::Error::invalid_type(found, visitor)
    }
}

impl From<Value> for Tree {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(value) => Self::Number(value),
            Value::String(value) => Self::String(value),
            Value::Array(list) => Self::List(list.into_iter().map(Self::from).collect()),
            Value::Object(map) => {
                Self::Object(map.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
        Number::from_f64(value).map(Tree::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut object = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            object.push(entry);
        }
        Ok(Tree::Object(object))
    }
}

impl<'de> Deserializer<'de> for Tree {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Number(value) => visit_number(&value, visitor),
            Self::String(value) => visitor.visit_string(value),
            Self::List(list) => visitor.visit_seq(Elements { rest: list.into_iter(), index: 0 }),
            Self::Object(entries) => visit_entries(entries, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Null => visitor.visit_none(),
            some => visitor.visit_some(some),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Self::Object(entries) => visit_entries(fields_of(entries, fields), visitor),
            Self::Null => visit_entries(fields_of(Vec::new(), fields), visitor),
            other => Err(other.mismatch(&visitor)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// Only variants without content exist in what we read.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Self::String(variant) => visitor.visit_enum(variant.into_deserializer()),
            other => Err(other.mismatch(&visitor)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
    }
}

fn visit_number<'de, V: Visitor<'de>>(number: &Number, visitor: V) -> Result<V::Value, Error> {
    if let Some(value) = number.as_u64() {
        visitor.visit_u64(value)
    } else if let Some(value) = number.as_i64() {
        visitor.visit_i64(value)
    } else {
        visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
    }
}

fn visit_entries<'de, V, K>(entries: Vec<(K, Tree)>, visitor: V) -> Result<V::Value, Error>
where
    V: Visitor<'de>,
    K: AsRef<str>,
{
    visitor.visit_map(Entries { rest: entries.into_iter(), current: None })
}

/// Chooses what a struct with these `fields` gets to see of `entries`: the last value that is not
/// null for each field, under the field's own name.
fn fields_of(
    entries: Vec<(String, Tree)>,
    fields: &'static [&'static str],
) -> Vec<(&'static str, Tree)> {
    let mut chosen: Vec<(&'static str, Tree)> = Vec::new();
    for (key, value) in entries {
        let Some(field) = field_named(&key, fields) else { continue };
        if matches!(value, Tree::Null) {
            continue;
        }
        match chosen.iter_mut().find(|(name, _)| *name == field) {
            Some((_, earlier)) => *earlier = value,
            None => chosen.push((field, value)),
        }
    }
    chosen
}

/// An exact match goes first: two fields may differ in nothing but case.
fn field_named(key: &str, fields: &[&'static str]) -> Option<&'static str> {
    let exact = fields.iter().find(|field| **field == key);
    exact.or_else(|| fields.iter().find(|field| same_but_for_case(key, field))).copied()
}

/// Compares as Go does, by the simple case folding of Unicode, in which two characters beyond ASCII
/// are the same as a letter of ASCII. Field names are ASCII.
fn same_but_for_case(key: &str, field: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',  // long s
        '\u{212a}' => 'k', // Kelvin sign
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(field.chars().map(fold))
}

/// The entries of an object, of which `current` waits for its value to be asked for.
struct Entries<K> {
    rest: std::vec::IntoIter<(K, Tree)>,
    current: Option<(K, Tree)>,
}

impl<'de, K: AsRef<str>> MapAccess<'de> for Entries<K> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        self.current = self.rest.next();
        let Some((key, _)) = &self.current else { return Ok(None) };
        seed.deserialize(key.as_ref().into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let (key, value) = self.current.take().expect("serde asks for a key before its value");
        seed.deserialize(value).map_err(|error: Error| error.inside(key.as_ref()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Elements {
    rest: std::vec::IntoIter<Tree>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Elements {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let Some(element) = self.rest.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        let named = |error: Error| error.inside(&format!("[{index}]"));
        seed.deserialize(element).map(Some).map_err(named)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

#[cfg(test)]
mod tests;
