//! Cuts a list of the API into its items as it comes: all nodes of a large cluster take a hundred
//! megabytes, and are never whole in memory.

/// An object in the API takes at most 1.5 MB (the limit of etcd).
pub(super) const OBJECT_MAX: usize = 8 << 20;

/// What was read of a list so far: `{"metadata": …, "items": [{…}, …]}` (Kubernetes API
/// Conventions, "Lists and Simple kinds"). It does not check what a decoder checks later.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// Brackets that are open.
    depth: u32,
    string: InString,
    /// The last text in the list's own object: a key, where it matters.
    key: Vec<u8>,
    in_items: bool,
    item: Vec<u8>,
    /// Everything but the items.
    envelope: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum InString {
    #[default]
    No,
    Yes,
    /// After a backslash.
    Escaped,
}

/// An object that is larger than objects can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

impl Items {
    /// Takes bytes from `rest` until an item is complete, and returns that; nothing when all bytes
    /// are taken.
    pub(super) fn next(&mut self, rest: &mut &[u8]) -> Result<Option<&[u8]>, TooLarge> {
        if self.in_items && self.depth == 2 {
            self.item.clear();
        }
        while let Some((&byte, after)) = rest.split_first() {
            *rest = after;
            if self.take(byte) {
                return Ok(Some(&self.item));
            }
            if self.item.len().max(self.envelope.len()) > OBJECT_MAX {
                return Err(TooLarge);
            }
        }
        Ok(None)
    }

    /// Returns the list without its items, once it has come to its end.
    pub(super) fn envelope(&self) -> Option<&[u8]> {
        (self.depth == 0 && !self.envelope.is_empty()).then_some(&self.envelope)
    }

    /// Takes one byte; true if an item ends with it.
    fn take(&mut self, byte: u8) -> bool {
        if self.string != InString::No {
            self.put(byte);
            self.in_string(byte);
            return false;
        }
        match byte {
            b'"' => {
                self.string = InString::Yes;
                if self.depth == 1 {
                    self.key.clear();
                }
                self.put(byte);
            }
            b'{' | b'[' => {
                let begins = byte == b'[' && self.depth == 1 && self.key == b"items";
                self.put(byte);
                self.depth = self.depth.saturating_add(1);
                self.in_items |= begins;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                let ended = self.in_items && self.depth == 1;
                self.in_items &= !ended;
                self.put(byte);
                return self.in_items && self.depth == 2;
            }
            // Between items.
            b',' if self.in_items && self.depth == 2 => {}
            byte if byte.is_ascii_whitespace() => {}
            byte => self.put(byte),
        }
        false
    }

    fn in_string(&mut self, byte: u8) {
        let is_key = self.depth == 1;
        self.string = match (&self.string, byte) {
            (InString::Yes, b'"') => InString::No,
            (InString::Yes, b'\\') => InString::Escaped,
            _ => InString::Yes,
        };
        if is_key && self.string != InString::No && self.key.len() < OBJECT_MAX {
            self.key.push(byte);
        }
    }

    fn put(&mut self, byte: u8) {
        if self.in_items { self.item.push(byte) } else { self.envelope.push(byte) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the items and the envelope of a list that comes in pieces of this size.
    fn cut(list: &str, size: usize) -> (Vec<String>, Option<String>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (mut items, mut found) = (Items::default(), Vec::new());
        for mut piece in list.as_bytes().chunks(size) {
            while let Some(item) = items.next(&mut piece).unwrap() {
                found.push(text(item));
            }
        }
        (found, items.envelope().map(text))
    }

    #[test]
    fn a_list_is_cut_into_its_items_wherever_its_pieces_end() {
        let list = r#"{ "kind": "List", "metadata": {"continue": "a\"]", "items": [{"x": 1}]},
            "items": [ {"a": "}\\", "items": [1, {}]} , {"b": "\"{["},
            {} ], "z": [ "items" , [ {} ] ] }
        "#;
        let items = [r#"{"a":"}\\","items":[1,{}]}"#, r#"{"b":"\"{["}"#, "{}"];
        let envelope = r#"{"kind":"List","metadata":{"continue":"a\"]","items":[{"x":1}]},"items":[],"z":["items",[{}]]}"#;
        for size in 1..list.len() {
            let (found, rest) = cut(list, size);
            assert_eq!(found, items, "{size}");
            assert_eq!(rest.as_deref(), Some(envelope), "{size}");
        }
    }

    #[test]
    fn what_was_cut_off_has_no_end() {
        for cut_off in ["", r#"{"items":[{"#, r#"{"items":[{}"#, r#"{"items":[]"#] {
            assert_eq!(cut(cut_off, 3).1, None, "{cut_off}");
        }
        assert_eq!(cut(r#"{"items":null,"metadata":{}}"#, 3).0, Vec::<String>::new());
    }

    #[test]
    fn an_object_without_an_end_does_not_fill_the_memory() {
        let mut items = Items::default();
        let mut begin = &br#"{"items":[{"a":""#[..];
        assert_eq!(items.next(&mut begin), Ok(None));
        let endless = vec![b'x'; OBJECT_MAX + 1];
        assert_eq!(items.next(&mut &endless[..]), Err(TooLarge));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        for hostile in ["]]]]{", "}}[[[[", "\"\\", "{\"items\":[]]]}}{[", "\u{0}\u{7f}"] {
            for size in 1..=hostile.len() {
                let _what_was_found = cut(hostile, size);
            }
        }
    }
}
