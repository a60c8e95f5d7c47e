//! Tokens of service accounts as a real API server hands them out (RFC 7519, RFC 7515).

use std::fs;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::KubeApi;
use super::real::SIGNING_KEY;
use crate::program::{installed, run};

/// Returns a new token of a service account.
///
/// # Panics
/// If there is no real server, or no such account.
pub fn issue(api: &KubeApi, namespace: &str, account: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let request = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "spec": { "audiences": ["https://kubernetes.default.svc"] },
    });
    let answer = api.administer("POST", &path, Some(&request));
    answer["status"]["token"].as_str().expect("the answer is a token").to_owned()
}

/// Returns what a token was an hour after its end: the server signed it, and takes it no more.
///
/// # Panics
/// If it is no token.
pub fn expired(token: &str) -> String {
    let parts: Vec<_> = token.split('.').collect();
    let [header, claims, _] = parts[..] else { panic!("a token has three parts") };
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).expect("they are encoded like this");
    let mut claims: Value = serde_json::from_slice(&claims).expect("claims are JSON");
    let issued = claims["iat"].as_i64().expect("it says when it was issued");
    for (claim, hours) in [("iat", 2), ("nbf", 2), ("exp", 1)] {
        claims[claim] = json!(issued - hours * 3600);
    }
    let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature(&signed)))
}

/// RS256, with the key of the server.
fn signature(text: &str) -> Vec<u8> {
    let [signed, signature] = ["/run/token.signed", "/run/token.signature"];
    let written = "the sandbox is writable";
    fs::write(signed, text).expect(written);
    let mut openssl = installed("openssl");
    openssl.args(["dgst", "-sha256", "-sign", SIGNING_KEY, "-out", signature, signed]);
    run(&mut openssl);
    fs::read(signature).expect(written)
}
