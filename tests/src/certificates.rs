//! Certificates for servers and clients, made by openssl, as PEM files in `/run`.

use std::fs;
use std::net::IpAddr;

use crate::program;

const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// Makes `/run/NAME.pem` and `/run/NAME.key`, to sign others with.
pub fn make_ca(name: &str) {
    let mut openssl = program::installed("openssl");
    openssl.args(["req", "-x509", "-days", "2"]).args(KEY);
    openssl.args(["-subj", &format!("/CN={name}"), "-keyout", &format!("/run/{name}.key")]);
    program::run(openssl.args(["-out", &format!("/run/{name}.pem")]));
}

/// Makes `/run/NAME.pem` and `/run/NAME.key`, signed by a CA, for a client and for the server at
/// these addresses.
///
/// # Panics
/// If there is no such CA.
pub fn make_certificate(name: &str, ca: &str, addresses: &[IpAddr]) {
    let [key, request, certificate, extensions] =
        ["key", "csr", "pem", "extensions"].map(|extension| format!("/run/{name}.{extension}"));
    let addresses: Vec<_> = addresses.iter().map(|address| format!("IP:{address}")).collect();
    let names = addresses.join(",");
    let text = format!("subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n");
    fs::write(&extensions, text).expect("the sandbox is writable");
    let mut openssl = program::installed("openssl");
    openssl.arg("req").args(KEY).args(["-subj", &format!("/CN={name}"), "-keyout", &key]);
    program::run(openssl.args(["-out", &request]));
    let mut openssl = program::installed("openssl");
    openssl.args(["x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", &extensions]);
    openssl.args(["-CA", &format!("/run/{ca}.pem"), "-CAkey", &format!("/run/{ca}.key")]);
    program::run(openssl.args(["-in", &request, "-out", &certificate]));
}
