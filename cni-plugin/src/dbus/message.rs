//! Messages of D-Bus as bytes: the calls that we make, whose arguments are texts, and as much of the
//! answers as anybody needs (D-Bus specification, "Message Protocol"). Pure.

/// The part of a message that says how long the rest is.
pub(super) const HEAD_LENGTH: usize = 16;
/// No answer to us is nearly as long as that, in bytes.
const LENGTH_MAX: usize = 1 << 16;
/// The field with the types of the arguments.
const SIGNATURE: u8 = 8;

/// A call of a method.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The name on the bus of whoever is called.
    pub destination: &'a str,
    /// Its object.
    pub path: &'a str,
    /// The interface of the object.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
    /// Texts without null characters.
    pub arguments: &'a [&'a str],
}

/// A message that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The call that it answers, if it is an answer.
    pub answers: Option<u32>,
    /// The name of the error, if it tells of one.
    pub error: Option<String>,
    /// The first argument.
    pub argument: Argument,
}

/// The first argument of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(String),
    /// A boolean.
    Truth(bool),
    /// Of another type, or none.
    Other,
}

impl Call<'_> {
    /// Returns the message, which asks not to start whoever is called.
    pub fn encode(&self, serial: u32) -> Vec<u8> {
        const METHOD_CALL: u8 = 1;
        const NO_AUTO_START: u8 = 2;
        const PROTOCOL: u8 = 1;
        let mut body = Vec::new();
        for argument in self.arguments {
            push_string(&mut body, argument);
        }
        let mut bytes = vec![b'l', METHOD_CALL, NO_AUTO_START, PROTOCOL];
        bytes.extend(length_of(&body));
        bytes.extend(serial.to_le_bytes());
        bytes.extend([0; 4]);
        let fields = [
            (1, b'o', self.path),
            (6, b's', self.destination),
            (2, b's', self.interface),
            (3, b's', self.member),
        ];
        for (code, kind, value) in fields {
            pad(&mut bytes, 8);
            bytes.extend([code, 1, kind, 0]);
            push_string(&mut bytes, value);
        }
        if let Ok(count @ 1..) = u8::try_from(self.arguments.len()) {
            pad(&mut bytes, 8);
            bytes.extend([SIGNATURE, 1, b'g', 0, count]);
            bytes.resize(bytes.len() + self.arguments.len(), b's');
            bytes.push(0);
        }
        let fields = length_of(&bytes[HEAD_LENGTH..]);
        bytes[HEAD_LENGTH - 4..HEAD_LENGTH].copy_from_slice(&fields);
        pad(&mut bytes, 8);
        bytes.extend(body);
        bytes
    }
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(length_of(text.as_bytes()));
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn length_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("calls are short").to_le_bytes()
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

/// Returns how many bytes come after a head, unless that is no head, or too many.
pub(super) fn rest_length(head: &[u8; HEAD_LENGTH]) -> Option<usize> {
    let mut reader = Reader::new(head)?;
    reader.at = 4;
    let body = reader.length()?;
    reader.at = HEAD_LENGTH - 4;
    Some(reader.length()?.next_multiple_of(8) + body)
}

impl Message {
    /// Reads a whole message, unless it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        const METHOD_RETURN: u8 = 2;
        const ERROR: u8 = 3;
        let mut reader = Reader::new(bytes)?;
        let kind = *bytes.get(1)?;
        reader.at = HEAD_LENGTH - 4;
        let end = HEAD_LENGTH + reader.length()?;
        let (mut error, mut answers, mut signature) = (None, None, "");
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            match (code, reader.signature()?) {
                (4, "s") => error = Some(reader.string()?.to_owned()),
                (5, "u") => answers = Some(reader.number()?),
                (SIGNATURE, "g") => signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.string()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.number()?),
                _ => return None,
            }
        }
        reader.align(8);
        let argument = match signature.as_bytes().first() {
            Some(b's') => Argument::Text(reader.string()?.to_owned()),
            Some(b'b') => Argument::Truth(reader.number()? != 0),
            _ => Argument::Other,
        };
        let answers = answers.filter(|_| matches!(kind, METHOD_RETURN | ERROR));
        let error = error.filter(|_| kind == ERROR);
        // Without a name it would pass for a success.
        (kind != ERROR || error.is_some()).then_some(Self { answers, error, argument })
    }
}

/// Reads values from the begin of a message on, which is what they are aligned to.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    is_little: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let is_little = match bytes.first()? {
            b'l' => true,
            b'B' => false,
            _ => return None,
        };
        Some(Self { bytes, at: 0, is_little })
    }

    const fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..)?.get(..length)?;
        self.at += length;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if self.is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok().filter(|length| *length <= LENGTH_MAX)
    }

    fn string(&mut self) -> Option<&'a str> {
        let length = self.length()?;
        self.text(length)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?.into();
        self.text(length)
    }

    fn text(&mut self, length: usize) -> Option<&'a str> {
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUS: &str = "org.freedesktop.DBus";

    fn call<'a>(member: &'a str, arguments: &'a [&'a str]) -> Call<'a> {
        let path = "/org/freedesktop/DBus";
        Call { destination: BUS, path, interface: BUS, member, arguments }
    }

    /// An answer to call 2 that says true.
    const TRUE: &[u8] = b"l\x02\x01\x01\x04\0\0\0\x09\0\0\0\x0f\0\0\0\
        \x05\x01u\0\x02\0\0\0\x08\x01g\0\x01b\0\0\x01\0\0\0";

    /// The same call fails, by a machine of the other byte order.
    const FAILURE: &[u8] = b"B\x03\x01\x01\0\0\0\x07\0\0\0\x09\0\0\0\x1f\
        \x04\x01s\0\0\0\0\x03a.b\0\0\0\0\0\x05\x01u\0\0\0\0\x02\x08\x01g\0\x01s\0\0\
        \0\0\0\x02no\0";

    #[test]
    fn a_call_is_as_libdbus_writes_it() {
        let hello = b"l\x01\x02\x01\0\0\0\0\x01\0\0\0\x6e\0\0\0\
            \x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\
            \x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
            \x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
            \x03\x01s\0\x05\0\0\0Hello\0\0\0";
        assert_eq!(call("Hello", &[]).encode(1), hello);
        let two = call("Hello", &["a", "10.1.2.3/32"]).encode(2);
        let (head, rest) = two.split_at(16);
        assert_eq!(head, b"l\x01\x02\x01\x18\0\0\0\x02\0\0\0\x78\0\0\0");
        assert_eq!(rest[..110], hello[16..126]);
        let signature_and_body = b"\0\0\x08\x01g\0\x02ss\0\
            \x01\0\0\0a\0\0\0\x0b\0\0\x0010.1.2.3/32\0";
        assert_eq!(&rest[110..], signature_and_body);
    }

    #[test]
    fn answers_of_both_byte_orders_are_understood() {
        let message = Message { answers: Some(2), error: None, argument: Argument::Truth(true) };
        assert_eq!(Message::decode(TRUE), Some(message));
        let (error, argument) = (Some("a.b".to_owned()), Argument::Text("no".to_owned()));
        let message = Message { answers: Some(2), error, argument };
        assert_eq!(Message::decode(FAILURE), Some(message));
        for bytes in [TRUE, FAILURE] {
            let head = bytes[..HEAD_LENGTH].try_into().unwrap();
            assert_eq!(rest_length(head), Some(bytes.len() - HEAD_LENGTH));
            for length in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..length]), None, "{length}");
            }
        }
        let signal = call("Hello", &["x"]).encode(2);
        let (answers, argument) = (None, Argument::Text("x".to_owned()));
        assert_eq!(Message::decode(&signal), Some(Message { answers, error: None, argument }));
    }

    #[test]
    fn any_broken_byte_is_borne() {
        for whole in [TRUE, FAILURE] {
            for place in 0..whole.len() {
                for byte in 0..=u8::MAX {
                    let mut bytes = whole.to_vec();
                    bytes[place] = byte;
                    let head = bytes[..HEAD_LENGTH].try_into().unwrap();
                    let rest = rest_length(head);
                    assert!(rest.is_none_or(|rest| rest <= 2 * LENGTH_MAX), "{place} {byte}");
                    let _read_or_refused = Message::decode(&bytes);
                }
            }
        }
    }

    #[test]
    fn what_is_too_long_is_no_message() {
        let mut head = *b"l\x02\x01\x01\x04\0\0\0\x09\0\0\0\x0f\0\0\0";
        for place in [6, 7, 14, 15] {
            head[place] = 0xff;
            assert_eq!(rest_length(&head), None);
            head[place] = 0;
        }
        head[0] = b'x';
        assert_eq!(rest_length(&head), None);
    }
}
