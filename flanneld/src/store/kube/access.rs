//! Where the API server is, whom to trust and who we are: from flags, the environment of a pod, or
//! a kubeconfig file.
//!
//! Files are read again for every connection, and the token for every request, because all of them
//! are replaced while the program runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use hyper::Uri;

use super::kubeconfig;
use super::proxy::Proxy;

/// Where a pod finds its identity (Kubernetes documentation, "Accessing the Kubernetes API from a
/// Pod").
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How to reach an API server.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// `https://10.96.0.1:443`, maybe with a path that everything is below.
    pub(super) server: Uri,
    /// The certificates to trust; those of the system if there are none.
    pub(super) ca: Option<Material>,
    /// The name in the server's certificate, if it is not the one in the address.
    pub(super) server_name: Option<String>,
    /// Our certificate and its key.
    pub(super) client: Option<(Material, Material)>,
    pub(super) credentials: Credentials,
    pub(super) proxy: Proxy,
}

/// What is sent with every request to say who asks.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    Nothing,
    Token(Material),
    Password { user: String, password: Material },
}

/// A certificate, key, token or password.
#[derive(Clone)]
pub(super) enum Material {
    File(PathBuf),
    Given(Vec<u8>),
}

/// Why it is not known how to reach the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error(
        "this is no pod of Kubernetes, so that it is not known where the API server is: give \
         --kubeconfig-file or --kube-api-url"
    )]
    NoPod,
    #[error("cannot read {path}", path = .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} cannot be used: {reason}", path = .path.display())]
    Kubeconfig { path: PathBuf, reason: String },
    #[error("{what} {value:?} cannot be used: {expected}")]
    Value { what: &'static str, value: String, expected: &'static str },
}

impl Access {
    /// Decides from `--kube-api-url`, `--kubeconfig-file` and the environment, in that order of
    /// precedence for the server's address, as client-go does.
    pub(crate) fn find(
        api_url: Option<&str>,
        kubeconfig: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, AccessError> {
        let proxy = Proxy::from_environment(&environment)?;
        let api_url = api_url.map(|url| server("--kube-api-url", url)).transpose()?;
        let access = match (kubeconfig, api_url) {
            (Some(path), api_url) => {
                let mut access = kubeconfig::read(path, proxy)?;
                access.server = api_url.unwrap_or(access.server);
                access
            }
            (None, Some(server)) => Self::anonymous(server, proxy),
            (None, None) => Self::of_pod(&environment, proxy)?,
        };
        Ok(access)
    }

    pub(super) fn anonymous(server: Uri, proxy: Proxy) -> Self {
        let credentials = Credentials::Nothing;
        Self { server, ca: None, server_name: None, client: None, credentials, proxy }
    }

    fn of_pod(
        environment: &impl Fn(&str) -> Option<String>,
        proxy: Proxy,
    ) -> Result<Self, AccessError> {
        let given = |name| environment(name).filter(|value| !value.is_empty());
        let (host, port) = given("KUBERNETES_SERVICE_HOST")
            .zip(given("KUBERNETES_SERVICE_PORT"))
            .ok_or(AccessError::NoPod)?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let server = server("KUBERNETES_SERVICE_HOST", &format!("https://{host}:{port}"))?;
        let directory = Path::new(SERVICE_ACCOUNT);
        Ok(Self {
            ca: Some(Material::File(directory.join("ca.crt"))),
            credentials: Credentials::Token(Material::File(directory.join("token"))),
            ..Self::anonymous(server, proxy)
        })
    }

    /// Whether the connection is encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.server.scheme_str() == Some("https")
    }
}

impl Material {
    /// Returns what it is at this moment.
    pub(super) fn read(&self) -> Result<Vec<u8>, AccessError> {
        match self {
            Self::Given(bytes) => Ok(bytes.clone()),
            Self::File(path) => {
                fs::read(path).map_err(|source| AccessError::File { path: path.clone(), source })
            }
        }
    }

    /// Returns the text of a token or password, without the line break that editors append.
    pub(super) fn text(&self) -> Result<String, AccessError> {
        Ok(String::from_utf8_lossy(&self.read()?).trim().to_owned())
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Given(_) => f.write_str("…"),
        }
    }
}

/// Reads the address of a server; without a scheme it is one for plain HTTP, as with client-go.
pub(super) fn server(what: &'static str, text: &str) -> Result<Uri, AccessError> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Option<Uri> = url.parse().ok();
    let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    uri.filter(|uri| is_http(uri) && uri.host().is_some()).ok_or_else(|| AccessError::Value {
        what,
        value: text.to_owned(),
        expected: "want an address such as https://10.96.0.1:443",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_a_pod(name: &str) -> Option<String> {
        match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn a_pod_finds_its_api_server_by_its_environment() {
        let access = Access::find(None, None, in_a_pod).unwrap();
        assert_eq!(access.server, "https://[fd00::1]:443/");
        assert!(matches!(access.credentials, Credentials::Token(Material::File(_))));
        assert!(matches!(Access::find(None, None, |_| None), Err(AccessError::NoPod)));
    }

    #[test]
    fn the_flag_for_the_address_wins_and_comes_without_identity() {
        let access = Access::find(Some("192.0.2.7:8080"), None, in_a_pod).unwrap();
        assert_eq!(access.server, "http://192.0.2.7:8080/");
        assert!(matches!(access.credentials, Credentials::Nothing));
        for wrong in ["ftp://a", "https://", "http://a b"] {
            assert!(Access::find(Some(wrong), None, in_a_pod).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let given = Credentials::Token(Material::Given(b"top secret".to_vec()));
        assert_eq!(format!("{given:?}"), "Token(…)");
    }
}
