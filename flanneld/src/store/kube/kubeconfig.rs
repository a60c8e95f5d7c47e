//! The part of a kubeconfig file that a node agent needs: the cluster and the user of the current
//! context (Kubernetes documentation, "kubeconfig (v1)").

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use yaml_rust2::{Yaml, YamlLoader};

use super::access::{Access, AccessError, Credentials, Material, server};
use super::proxy::Proxy;

/// Reads the file; relative paths in it start where it lies.
pub(super) fn read(path: &Path, proxy: Proxy) -> Result<Access, AccessError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| AccessError::File { path: path.to_owned(), source })?;
    parse(&text, path.parent().unwrap_or(Path::new(".")), proxy).map_err(
        |unusable| match unusable {
            Unusable::Reason(reason) => AccessError::Kubeconfig { path: path.to_owned(), reason },
            Unusable::Access(error) => error,
        },
    )
}

enum Unusable {
    Reason(String),
    Access(AccessError),
}

impl From<String> for Unusable {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

impl From<AccessError> for Unusable {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

fn parse(text: &str, directory: &Path, proxy: Proxy) -> Result<Access, Unusable> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    let document = documents.first().ok_or("it is empty".to_owned())?;
    let context = document["current-context"].as_str().unwrap_or_default();
    let context = named(document, ("contexts", "context"), context)?;
    let name_of = |key: &str| context[key].as_str().unwrap_or_default();
    let cluster = named(document, ("clusters", "cluster"), name_of("cluster"))?;
    let user = match name_of("user") {
        "" => &Yaml::BadValue,
        name => named(document, ("users", "user"), name)?,
    };
    let server = server("server", cluster["server"].as_str().unwrap_or_default())?;
    if cluster["insecure-skip-tls-verify"].as_bool() == Some(true) {
        let instead = "give certificate-authority instead";
        return Err(format!("insecure-skip-tls-verify is not supported: {instead}").into());
    }
    let file = Section { directory, yaml: cluster };
    let own = Section { directory, yaml: user };
    let certificate = own.material("client-certificate")?.zip(own.material("client-key")?);
    let proxy = match cluster["proxy-url"].as_str() {
        Some(url) => Proxy::always(url)?,
        None => proxy,
    };
    Ok(Access {
        ca: file.material("certificate-authority")?,
        server_name: cluster["tls-server-name"].as_str().map(str::to_owned),
        client: certificate,
        credentials: own.credentials()?,
        ..Access::anonymous(server, proxy)
    })
}

/// Returns the entry with this name in a list of `{name, <kind>}`.
fn named<'a>(
    document: &'a Yaml,
    (list, kind): (&str, &str),
    name: &str,
) -> Result<&'a Yaml, String> {
    let mut entries = document[list].as_vec().into_iter().flatten();
    let found = entries.find(|entry| entry["name"].as_str() == Some(name));
    found.map(|entry| &entry[kind]).ok_or_else(|| format!("it has no {kind} {name:?}"))
}

/// A cluster or a user, and where the file lies.
struct Section<'a> {
    directory: &'a Path,
    yaml: &'a Yaml,
}

impl Section<'_> {
    fn path(&self, key: &str) -> Option<PathBuf> {
        let text = self.yaml[key].as_str().filter(|text| !text.is_empty())?;
        Some(self.directory.join(text))
    }

    /// What stands in the file as `<key>-data`, or in the file that `<key>` names.
    fn material(&self, key: &str) -> Result<Option<Material>, String> {
        let in_place = format!("{key}-data");
        match self.yaml[in_place.as_str()].as_str().filter(|text| !text.is_empty()) {
            Some(text) => {
                let bytes =
                    STANDARD.decode(text).map_err(|error| format!("{in_place}: {error}"))?;
                Ok(Some(Material::Given(bytes)))
            }
            None => Ok(self.path(key).map(Material::File)),
        }
    }

    fn credentials(&self) -> Result<Credentials, String> {
        for key in ["exec", "auth-provider"] {
            if !self.yaml[key].is_badvalue() {
                let instead = "give a token, a tokenFile or a client certificate";
                return Err(format!("the user's {key} is not supported: {instead}"));
            }
        }
        let text = |key: &str| self.yaml[key].as_str().filter(|text| !text.is_empty());
        let given = |text: &str| Material::Given(text.as_bytes().to_vec());
        Ok(match (self.path("tokenFile"), text("token"), text("username")) {
            (Some(path), ..) => Credentials::Token(Material::File(path)),
            (None, Some(token), _) => Credentials::Token(given(token)),
            (None, None, Some(user)) => Credentials::Password {
                user: user.to_owned(),
                password: given(text("password").unwrap_or_default()),
            },
            (None, None, None) => Credentials::Nothing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Access, String> {
        super::parse(text, Path::new("/etc/k"), Proxy::default()).map_err(|error| match error {
            Unusable::Reason(reason) => reason,
            Unusable::Access(error) => error.to_string(),
        })
    }

    const K3S: &str = "
apiVersion: v1
kind: Config
current-context: default
contexts:
- context: {cluster: default, user: default}
  name: default
clusters:
- name: default
  cluster:
    server: https://127.0.0.1:6443
    certificate-authority-data: UEVN
users:
- name: default
  user:
    client-certificate: pki/client.crt
    client-key: /pki/client.key
";

    #[test]
    fn the_current_context_says_where_and_who() {
        let access = parse(K3S).unwrap();
        assert_eq!(access.server, "https://127.0.0.1:6443/");
        assert_eq!(access.ca.unwrap().read().unwrap(), b"PEM");
        let (certificate, key) = access.client.unwrap();
        assert_eq!(format!("{certificate:?} {key:?}"), "/etc/k/pki/client.crt /pki/client.key");
    }

    #[test]
    fn tokens_come_from_files_first() {
        let user = "user:\n    tokenFile: t\n    token: x\n";
        let text = format!("{}  {user}", K3S.split_once("  user:").unwrap().0);
        let shown = format!("{:?}", parse(&text).unwrap().credentials);
        assert_eq!(shown, "Token(/etc/k/t)");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (from, to, reason) in [
            ("current-context: default", "", "it has no context \"\""),
            ("cluster: default, user: default", "cluster: x", "it has no cluster \"x\""),
            ("UEVN", "a!b", "certificate-authority-data: Invalid symbol"),
            (
                "    client-key:",
                "    exec: {}\n    client-key:",
                "the user's exec is not supported",
            ),
            (
                "certificate-authority-data: UEVN",
                "insecure-skip-tls-verify: true",
                "insecure-skip-tls-verify is not supported",
            ),
            ("https:", "gopher:", "server \"gopher://127.0.0.1:6443\" cannot be used"),
            ("kind: Config", "kind: [", " line "),
        ] {
            let error = parse(&K3S.replace(from, to)).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
