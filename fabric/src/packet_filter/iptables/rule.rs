//! A rule of iptables as the arguments that `iptables-save` prints for it.

use std::fmt::{Display, Formatter, Result, Write as _};

use ipnetwork::IpNetwork;

use crate::packet_filter::{self, Match, Verdict};

/// What `iptables-save` prints behind `-A CHAIN`, one word each; see iptables-extensions(8).
///
/// Rules are equal if their words are. One that is desired must therefore be said as it is printed:
/// networks with their length, `-p tcp -m tcp --dport 80`, marks with their mask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule(Vec<String>);

impl Rule {
    /// Makes a rule of these words. Control characters become blanks, because a rule is one line.
    pub fn new<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> Self {
        let clean = |word: W| word.as_ref().replace(char::is_control, " ");
        Self(words.into_iter().map(clean).collect())
    }

    /// Splits a line into words by the rules of `iptables-restore`: blanks part them, quotes of
    /// either kind hold them together, and a backslash between quotes stands for what follows.
    pub fn parse(line: &str) -> Self {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        let mut quote = None;
        let mut chars = line.chars();
        while let Some(char) = chars.next() {
            match quote {
                Some(open) if char == open => quote = None,
                Some(_) => {
                    let char = if char == '\\' { chars.next().unwrap_or(char) } else { char };
                    word.get_or_insert_default().push(char);
                }
                None if char == '"' || char == '\'' => {
                    quote = Some(char);
                    word.get_or_insert_default();
                }
                None if char.is_ascii_whitespace() => words.extend(word.take()),
                None => word.get_or_insert_default().push(char),
            }
        }
        words.extend(word);
        Self::new(words)
    }

    /// Returns the words.
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// Returns the remark of its maker.
    pub fn comment(&self) -> Option<&str> {
        self.option(&["--comment"])
    }

    /// Returns the chain or the extension that packets go to, if any.
    pub fn target(&self) -> Option<&str> {
        self.option(&["-j", "-g"])
    }

    /// The word behind the last of these.
    fn option(&self, names: &[&str]) -> Option<&str> {
        let place = self.0.iter().rposition(|word| names.contains(&word.as_str()))?;
        self.0.get(place + 1).map(String::as_str)
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for (place, word) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_char(' ')?;
            }
            quoted(f, word)?;
        }
        Ok(())
    }
}

fn quoted(f: &mut Formatter<'_>, word: &str) -> Result {
    let special = |char: char| char.is_whitespace() || matches!(char, '"' | '\'' | '\\');
    if !word.is_empty() && !word.contains(special) {
        return f.write_str(word);
    }
    f.write_char('"')?;
    for char in word.chars() {
        if matches!(char, '"' | '\'' | '\\') {
            f.write_char('\\')?;
        }
        f.write_char(char)?;
    }
    f.write_char('"')
}

impl From<&packet_filter::Rule> for Rule {
    /// The words in the order of `iptables-save`: what the IP header says, then what needs an
    /// extension, then the comment and the target.
    fn from(rule: &packet_filter::Rule) -> Self {
        let (mut header, mut extensions) = (Vec::new(), Vec::new());
        for condition in &rule.matches {
            let words = condition_words(condition);
            let place = HEADER.iter().position(|option| words.iter().any(|word| word == option));
            match place {
                Some(place) => header.push((place, words)),
                None => extensions.extend(words),
            }
        }
        header.sort_by_key(|(place, _)| *place);
        let comment = rule.comment.iter().flat_map(|comment| said("-m comment --comment", comment));
        let words = header.into_iter().flat_map(|(_, words)| words);
        Self::new(words.chain(extensions).chain(comment).chain(target_words(&rule.verdict)))
    }
}

/// Options about the IP header, in the order in which they are printed.
const HEADER: [&str; 4] = ["-s", "-d", "-i", "-p"];

fn condition_words(condition: &Match) -> Vec<String> {
    match condition {
        Match::Source(network, equal) => address("-s", network, *equal),
        Match::Destination(network, equal) => address("-d", network, *equal),
        Match::Mark(bits) => said("-m mark --mark", &format!("{bits:#x}/{bits:#x}")),
        Match::LocalDestination => said("-m addrtype --dst-type", "LOCAL"),
        Match::DestinationPort(transport, port) => {
            let transport = transport.as_str();
            said(&format!("-p {transport} -m {transport} --dport"), &port.to_string())
        }
        Match::InputInterface(link) => said("-i", link.as_str()),
        Match::EtherSource(mac) => said("-m mac --mac-source", &mac.to_string()),
    }
}

/// That every address fits is not printed.
fn address(option: &str, network: &IpNetwork, equal: bool) -> Vec<String> {
    if equal && network.prefix() == 0 {
        return Vec::new();
    }
    let option = if equal { option.to_owned() } else { format!("! {option}") };
    said(&option, &format!("{}/{}", network.network(), network.prefix()))
}

fn target_words(verdict: &Verdict) -> Vec<String> {
    match verdict {
        Verdict::Accept => said("-j", "ACCEPT"),
        Verdict::Return => said("-j", "RETURN"),
        Verdict::Drop => said("-j", "DROP"),
        Verdict::Goto(chain) => said("-g", chain),
        Verdict::Jump(chain) => said("-j", chain),
        Verdict::DestinationNat(to) => said("-j DNAT --to-destination", &to.to_string()),
        Verdict::ClearMark(bits) => said("-j MARK --set-xmark", &format!("0x0/{bits:#x}")),
        Verdict::Masquerade { fully_random: false } => said("-j", "MASQUERADE"),
        Verdict::Masquerade { fully_random: true } => said("-j MASQUERADE", "--random-fully"),
    }
}

/// The words of `options`, and then `value` as one more.
fn said(options: &str, value: &str) -> Vec<String> {
    options.split(' ').chain([value]).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet_filter::Transport;
    use crate::packet_filter::examples::{net, rule};

    #[test]
    fn rule_reads_as_iptables_saves_it() {
        let random = Verdict::Masquerade { fully_random: true };
        let (c, m) = (net("10.244.0.0/16"), net("224.0.0.0/4"));
        let port = Match::DestinationPort(Transport::Tcp, 80);
        let table = [
            (rule(&[], Verdict::Drop, None), "-j DROP"),
            (
                rule(&[Match::Mark(0x4000)], Verdict::Return, Some("flanneld masq")),
                r#"-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN"#,
            ),
            (
                rule(&[Match::Destination(m, false), Match::Source(c, true)], random, Some("masq")),
                "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment masq -j MASQUERADE --random-fully",
            ),
            (
                rule(
                    &[Match::DestinationPort(Transport::Udp, 8472)],
                    Verdict::ClearMark(0x4000),
                    Some("tunnel"),
                ),
                "-p udp -m udp --dport 8472 -m comment --comment tunnel -j MARK --set-xmark 0x0/0x4000",
            ),
            (
                rule(&[port], Verdict::DestinationNat(([10, 244, 3, 5], 8080).into()), None),
                "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.3.5:8080",
            ),
            (
                rule(
                    &[Match::LocalDestination, Match::InputInterface("cni0".parse().unwrap())],
                    Verdict::Jump("CNI-HOSTPORT-DNAT".to_owned()),
                    None,
                ),
                "-i cni0 -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            ),
            (
                rule(
                    &[Match::Source(net("::/0"), true), Match::Destination(net("fd00::1"), true)],
                    Verdict::Accept,
                    None,
                ),
                "-d fd00::1/128 -j ACCEPT",
            ),
        ];
        for (rule, text) in table {
            assert_eq!(Rule::from(&rule).to_string(), text);
            assert_eq!(Rule::from(&rule), Rule::parse(text));
        }
    }

    #[test]
    fn comment_and_target_are_found() {
        let rule = Rule::parse(r#"-s 1.2.3.4/32 -m comment --comment "name: \"a\"" -g X"#);
        assert_eq!((rule.comment(), rule.target()), (Some("name: \"a\""), Some("X")));
        let rule = Rule::parse("-m comment --comment -j");
        assert_eq!((rule.comment(), rule.target()), (Some("-j"), None));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(words: Vec<String>) {
            let rule = Rule::new(words);
            let text = rule.to_string();
            prop_assert!(!text.contains(char::is_control));
            prop_assert_eq!(Rule::parse(&text), rule);
        }
    }
}
