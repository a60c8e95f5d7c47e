//! The name servers of a file in the format of resolv.conf(5).

use crate::result::Dns;

/// Reads what the file says. Lines that say nothing known are passed over.
pub fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let is_comment = line.starts_with(['#', ';']);
        let (Some(keyword), false) = (words.next(), is_comment) else { continue };
        match keyword.as_str() {
            "nameserver" => dns.nameservers.extend(words.next()),
            "domain" => dns.domain = words.next().unwrap_or(dns.domain),
            "search" => dns.search.extend(words),
            "options" => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_resolver_knows_is_read() {
        let text = "# a comment\n; another\nnameserver 10.0.0.1 ignored\n  nameserver 10.0.0.2\n\
                    domain a.example\ndomain b.example\ndomain\nsearch x.example y.example\n\
                    search z.example\noptions ndots:5\noptions timeout:1 rotate\nsortlist 1\n";
        let dns = parse(text);
        assert_eq!(dns.nameservers, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(dns.domain, "b.example");
        assert_eq!(dns.search, ["x.example", "y.example", "z.example"]);
        assert_eq!(dns.options, ["ndots:5", "timeout:1", "rotate"]);
        assert_eq!(parse(""), Dns::default());
    }
}
