//! `CNI_ARGS`: options of one attachment as `KEY=value;KEY=value`.

/// What the arguments ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The Ethernet address of the interface in the sandbox; empty if any will do.
    pub mac: String,
    /// The address of the interface in the sandbox; empty if any will do.
    pub ip: String,
    /// The gateway of that address; empty if there is none.
    pub gateway: String,
}

/// Why the arguments cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A piece does not have exactly one `=`.
    #[error("ARGS: invalid pair {0:?}")]
    Pair(String),
    /// `IgnoreUnknown` is neither true nor false.
    #[error(
        "ARGS: error parsing value of pair {pair:?}: boolean unmarshal error: invalid input {value}"
    )]
    Boolean {
        /// The piece.
        pair: String,
        /// Its second half.
        value: String,
    },
    /// Keys that nobody knows, while `IgnoreUnknown` is not true.
    #[error("ARGS: unknown args [{}]", .0.join(" "))]
    Unknown(Vec<String>),
}

impl Args {
    /// Parses the value of `CNI_ARGS`.
    ///
    /// # Errors
    /// If it is malformed, or if it has keys that nobody knows and does not say that this is all
    /// right.
    pub fn parse(text: &str) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let halves = pair.split_once('=').filter(|(_, value)| !value.contains('='));
            let (key, value) = halves.ok_or_else(|| ArgsError::Pair(pair.to_owned()))?;
            match key {
                "IgnoreUnknown" => ignore_unknown = boolean(pair, value)?,
                "MAC" => value.clone_into(&mut args.mac),
                "IP" => value.clone_into(&mut args.ip),
                "GATEWAY" => value.clone_into(&mut args.gateway),
                _ => unknown.push(format!("{pair:?}")),
            }
        }
        if unknown.is_empty() || ignore_unknown {
            Ok(args)
        } else {
            Err(ArgsError::Unknown(unknown))
        }
    }
}

fn boolean(pair: &str, value: &str) -> Result<bool, ArgsError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(ArgsError::Boolean { pair: pair.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_runtimes_are_understood() {
        let kubernetes = "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;IgnoreUnknown=1;K8S_POD_UID=u";
        assert_eq!(Args::parse(kubernetes), Ok(Args::default()));
        assert_eq!(Args::parse(""), Ok(Args::default()));
        let args =
            Args { mac: "02::".to_owned(), ip: "10.1.2.9".to_owned(), gateway: String::new() };
        assert_eq!(Args::parse("IP=10.1.2.9;MAC=02::;IgnoreUnknown=FALSE"), Ok(args));
    }

    #[test]
    fn malformed_arguments_are_named() {
        let table = [
            ("none", "ARGS: invalid pair \"none\""),
            ("IgnoreUnknown=1;", "ARGS: invalid pair \"\""),
            ("A==", "ARGS: invalid pair \"A==\""),
            ("A=1;B=2", "ARGS: unknown args [\"A=1\" \"B=2\"]"),
            ("ignoreunknown=1", "ARGS: unknown args [\"ignoreunknown=1\"]"),
            (
                "IgnoreUnknown=yes",
                "ARGS: error parsing value of pair \"IgnoreUnknown=yes\": \
                 boolean unmarshal error: invalid input yes",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(Args::parse(text).unwrap_err().to_string(), expected);
        }
    }
}
