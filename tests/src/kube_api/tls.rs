//! How an API server proves who it is, and asks who its clients are.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::HOST;
use crate::certificates::{make_ca, make_certificate};
use crate::underlay::Underlay;

/// The CA that signs the certificate of the server: `/run/kube-ca.pem`.
pub const CA: &str = "kube-ca";

/// Makes the CA and a certificate for the server, `/run/kube.pem`.
pub fn make_server_certificate() {
    make_ca(CA);
    let addresses = [Underlay::address(HOST), Ipv4Addr::LOCALHOST].map(IpAddr::V4);
    make_certificate("kube", CA, &addresses);
}

/// TLS with that certificate. Clients need one of the CA with this name, if there is a name.
///
/// # Panics
/// If a file is missing.
pub fn server_config(clients: Option<&str>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider knows them");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)), provider);
            builder.with_client_cert_verifier(verifier.build().expect("the CA is one"))
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&read("kube.key")).expect("openssl wrote it");
    builder.with_single_cert(certificates("kube"), key).expect("the key is that of the certificate")
}

/// Trust in the CA with this name.
pub(super) fn roots(ca: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(ca));
    roots
}

fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
    let pem = read(&format!("{name}.pem"));
    CertificateDer::pem_slice_iter(&pem).map(|c| c.expect("openssl wrote it")).collect()
}

fn read(file: &str) -> Vec<u8> {
    fs::read(format!("/run/{file}")).unwrap_or_else(|e| panic!("/run/{file}: {e}"))
}
