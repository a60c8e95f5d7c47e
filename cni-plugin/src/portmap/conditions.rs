//! Further conditions on what is led to a pod, in the language of the back end that they are for.

use std::net::IpAddr;

use fabric::packet_filter::Match;

/// What must be true of a packet, for each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions<T> {
    /// Of IPv4.
    pub v4: Vec<T>,
    /// Of IPv6.
    pub v6: Vec<T>,
}

impl<T> Conditions<T> {
    /// Those for packets to `ip`.
    pub fn of(&self, ip: IpAddr) -> &[T] {
        if ip.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

impl<T> Default for Conditions<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

/// Whether conditions are arguments of iptables: those begin with an option or its negation.
pub fn are_of_iptables(tokens: &[String]) -> bool {
    tokens.first().is_some_and(|first| first.starts_with(['-', '!']))
}

/// Reads conditions in the language of nft(8), or returns `None` if we have no words for one of them.
pub fn parse(tokens: &[String]) -> Option<Vec<Match>> {
    let text = tokens.join(" ");
    let mut words = text.split_whitespace().peekable();
    let mut matches = Vec::new();
    while let Some(word) = words.next() {
        let what = match word {
            "ip" | "ip6" => words.next()?,
            "meta" => words.next().filter(|what| *what == "iifname")?,
            word => word,
        };
        let relation = words.next_if(|word| matches!(*word, "==" | "!="));
        let equal = relation != Some("!=");
        let value = words.next()?;
        matches.push(match (word, what) {
            ("ip" | "ip6", "saddr") => Match::Source(value.parse().ok()?, equal),
            ("ip" | "ip6", "daddr") => Match::Destination(value.parse().ok()?, equal),
            (_, "iifname") if equal => Match::InputInterface(value.trim_matches('"').parse().ok()?),
            _ => return None,
        });
    }
    Some(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tokens: &[&str]) -> Option<String> {
        let tokens: Vec<_> = tokens.iter().map(|&token| token.to_owned()).collect();
        let matches = parse(&tokens)?;
        Some(matches.iter().map(Match::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_nft_says_of_addresses_and_links_is_understood() {
        let table = [
            (&[][..], Some("")),
            (&["ip", "daddr", "!=", "10.0.0.0/8"], Some("ip daddr != 10.0.0.0/8")),
            (&["ip saddr 10.9.0.1", "iifname eth0"], Some("ip saddr 10.9.0.1 iifname \"eth0\"")),
            (&["ip6 saddr == fd00::/64"], Some("ip6 saddr fd00::/64")),
            (&["meta iifname \"eth0\""], Some("iifname \"eth0\"")),
            (&["iifname != eth0"], None),
            (&["ip", "daddr"], None),
            (&["ip", "daddr", "{ 10.0.0.1, 10.0.0.2 }"], None),
            (&["meta", "mark", "1"], None),
            (&["tcp", "sport", "1"], None),
        ];
        for (tokens, expected) in table {
            assert_eq!(text(tokens).as_deref(), expected, "{tokens:?}");
        }
    }

    #[test]
    fn options_tell_whose_language_it_is() {
        for (first, expected) in [("-s", true), ("!", true), ("ip", false), ("ip saddr", false)] {
            assert_eq!(are_of_iptables(&[first.to_owned()]), expected);
        }
        assert!(!are_of_iptables(&[]));
    }
}
