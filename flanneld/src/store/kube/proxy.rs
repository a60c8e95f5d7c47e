//! `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, by the rules of Go's `golang.org/x/net/http/httpproxy`
//! as far as HTTP proxies go.

use std::net::IpAddr;

use hyper::Uri;
use ipnetwork::IpNetwork;

use super::access::AccessError;

/// Which proxy leads to which server.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxy {
    https: Option<Uri>,
    http: Option<Uri>,
    /// What is reached without one.
    except: Vec<Exception>,
}

#[derive(Clone, Debug)]
enum Exception {
    Everything,
    Network(IpNetwork),
    /// A domain with everything in it, or with a leading dot only what is in it.
    Domain(String),
}

impl Proxy {
    /// Reads the variables, in upper or lower case.
    pub(super) fn from_environment(
        environment: &impl Fn(&str) -> Option<String>,
    ) -> Result<Self, AccessError> {
        let value = |name: &str| {
            let given = environment(name).or_else(|| environment(&name.to_lowercase()));
            given.filter(|value| !value.is_empty())
        };
        let except = value("NO_PROXY").unwrap_or_default();
        let except = except.split(',').map(str::trim).filter(|text| !text.is_empty());
        Ok(Self {
            https: value("HTTPS_PROXY").map(|url| address("HTTPS_PROXY", &url)).transpose()?,
            http: value("HTTP_PROXY").map(|url| address("HTTP_PROXY", &url)).transpose()?,
            except: except.map(Exception::parse).collect(),
        })
    }

    /// A proxy for everything.
    pub(super) fn always(url: &str) -> Result<Self, AccessError> {
        let proxy = Some(address("proxy-url", url)?);
        Ok(Self { https: proxy.clone(), http: proxy, except: Vec::new() })
    }

    /// Returns the proxy that leads to `server`.
    pub(super) fn to(&self, server: &Uri) -> Option<&Uri> {
        let proxy = if server.scheme_str() == Some("https") { &self.https } else { &self.http };
        let host = server.host()?.trim_matches(['[', ']']).to_lowercase();
        let is_local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let is_except = self.except.iter().any(|exception| exception.matches(&host));
        proxy.as_ref().filter(|_| !is_local && !is_except)
    }
}

impl Exception {
    fn parse(text: &str) -> Self {
        let text = text.to_lowercase();
        if text == "*" {
            return Self::Everything;
        }
        match text.parse() {
            Ok(network) => Self::Network(network),
            Err(_) => Self::Domain(text.strip_prefix('*').unwrap_or(&text).to_owned()),
        }
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(network) => host.parse().is_ok_and(|ip| network.contains(ip)),
            Self::Domain(domain) if domain.starts_with('.') => host.ends_with(domain.as_str()),
            Self::Domain(domain) => host
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        }
    }
}

fn address(what: &'static str, text: &str) -> Result<Uri, AccessError> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Option<Uri> = url.parse().ok();
    let usable = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
    let has_user = url.contains('@');
    usable.filter(|_| !has_user).ok_or_else(|| AccessError::Value {
        what,
        // It may hold a password.
        value: if has_user { "…".to_owned() } else { text.to_owned() },
        expected: "want an HTTP proxy without a password, such as http://proxy:3128",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(no_proxy: &str) -> Proxy {
        Proxy::from_environment(&|name: &str| match name {
            "https_proxy" => Some("proxy.example:3128".to_owned()),
            "NO_PROXY" => Some(no_proxy.to_owned()),
            _ => None,
        })
        .unwrap()
    }

    #[test]
    fn a_proxy_leads_to_everything_but_exceptions() {
        for (server, no_proxy, through) in [
            ("https://10.96.0.1:443", "", true),
            ("http://10.96.0.1:80", "", false),
            ("https://127.0.0.1:6443", "", false),
            ("https://[::1]:6443", "", false),
            ("https://localhost:6443", "", false),
            ("https://10.96.0.1:443", "10.96.0.0/12, other", false),
            ("https://10.96.0.1:443", "10.97.0.1", true),
            ("https://api.k.example", "k.example", false),
            ("https://k.example", "k.example", false),
            ("https://k.example", ".k.example", true),
            ("https://notk.example", "k.example", true),
            ("https://api.k.example", "*.k.example", false),
            ("https://api.k.example", "*", false),
        ] {
            let server: Uri = server.parse().unwrap();
            assert_eq!(proxy(no_proxy).to(&server).is_some(), through, "{server} {no_proxy}");
        }
    }

    #[test]
    fn what_is_no_http_proxy_is_refused_without_telling_passwords() {
        assert!(Proxy::always("socks5://a:1080").is_err());
        let error = Proxy::always("http://me:secret@a:3128").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
