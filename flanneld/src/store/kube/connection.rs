//! One connection to the API server: TCP, a proxy's tunnel if there is one, TLS, HTTP/1.1.
//!
//! A watch keeps its connection; everything else takes turns on another one. That is why HTTP/2
//! would bring nothing here.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{Empty, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::access::{Access, AccessError, Material};

/// A connection that is not there after this long is not going to be.
const CONNECT: Duration = Duration::from_secs(5);
/// A silent connection is probed after this long, and is dead after three probes without an answer.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
const PROBES: u32 = 3;

/// What is read at once, and kept between answers.
const BUFFER: usize = 64 << 10;

pub(super) type Sender = SendRequest<Full<Bytes>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{what} holds no certificate or key that could be used: {reason}")]
    Material { what: String, reason: String },
    #[error("no connection within {CONNECT:?}")]
    Timeout,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the proxy {proxy} answered {status}")]
    Proxy { proxy: String, status: hyper::StatusCode },
}

/// Opens a connection with what the files hold now.
pub(super) async fn open(access: &Access) -> Result<Sender, ConnectError> {
    let opened = timeout(CONNECT, async {
        let stream = reach(access).await?;
        if !access.is_tls() {
            return converse(stream).await;
        }
        let tls = TlsConnector::from(Arc::new(tls(access)?));
        converse(tls.connect(server_name(access)?, stream).await?).await
    });
    opened.await.unwrap_or(Err(ConnectError::Timeout))
}

/// Whether a connection to `access` could be opened as far as its files are concerned.
pub(super) fn check(access: &Access) -> Result<(), ConnectError> {
    if access.is_tls() {
        tls(access)?;
        server_name(access)?;
    }
    Ok(())
}

async fn converse<S>(stream: S) -> Result<Sender, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    let (sender, connection) = http.max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await?;
    // It ends with its sender; how, the sender is told.
    tokio::spawn(connection);
    Ok(sender)
}

async fn reach(access: &Access) -> Result<TcpStream, ConnectError> {
    let Some(proxy) = access.proxy.to(&access.server) else {
        return Ok(tcp(&access.server).await?);
    };
    let stream = tcp(proxy).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection.without_shutdown());
    let target = authority(&access.server);
    let request = Request::connect(&target).header("host", &target).body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.expect("an authority is a target")).await?;
    if !answer.status().is_success() {
        return Err(ConnectError::Proxy { proxy: proxy.to_string(), status: answer.status() });
    }
    drop((sender, answer));
    let parts = connection.await.map_err(io::Error::other)??;
    Ok(parts.io.into_inner())
}

async fn tcp(to: &Uri) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(authority(to)).await?;
    stream.set_nodelay(true)?;
    notice_silence(&stream)?;
    Ok(stream)
}

/// Makes the kernel notice a peer that vanished: the watch only listens, and would do so for ever.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let secs = |time: Duration| u32::try_from(time.as_secs()).expect("seconds are few");
    let dead_after = PROBE_AFTER + PROBE_INTERVAL * PROBES;
    let dead_after_ms = u32::try_from(dead_after.as_millis()).expect("seconds are few");
    setsockopt(&stream.as_fd(), sockopt::KeepAlive, &true)?;
    setsockopt(&stream.as_fd(), sockopt::TcpKeepIdle, &secs(PROBE_AFTER))?;
    setsockopt(&stream.as_fd(), sockopt::TcpKeepInterval, &secs(PROBE_INTERVAL))?;
    setsockopt(&stream.as_fd(), sockopt::TcpKeepCount, &PROBES)?;
    setsockopt(&stream.as_fd(), sockopt::TcpUserTimeout, &dead_after_ms)?;
    Ok(())
}

/// `HOST:PORT`, with the port that the scheme implies.
pub(super) fn authority(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    format!("{host}:{}", uri.port_u16().unwrap_or(usual))
}

fn server_name(access: &Access) -> Result<ServerName<'static>, ConnectError> {
    let host = access.server.host().unwrap_or_default().trim_matches(['[', ']']);
    let name = access.server_name.as_deref().unwrap_or(host).to_owned();
    let unusable = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    Ok(ServerName::try_from(name).map_err(unusable)?)
}

fn tls(access: &Access) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("the TLS library", error))?
        .with_root_certificates(roots(access)?);
    let Some((certificate, key)) = &access.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let key_der = PrivateKeyDer::from_pem_slice(&key.read()?)
        .map_err(|error| unusable(&format!("{key:?}"), error))?;
    builder
        .with_client_auth_cert(chain, key_der)
        .map_err(|error| unusable(&format!("{certificate:?}"), error))
}

fn roots(access: &Access) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    let trusted = match &access.ca {
        Some(ca) => certificates(ca)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    // Bundles hold the odd certificate that nobody can read any more.
    let (_added, _ignored) = roots.add_parsable_certificates(trusted);
    Ok(roots)
}

fn certificates(material: &Material) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let what = || format!("{material:?}");
    let pem = material.read()?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unusable(&what(), "there is none in it")),
        Err(error) => Err(unusable(&what(), error)),
    }
}

fn unusable(what: &str, reason: impl ToString) -> ConnectError {
    ConnectError::Material { what: what.to_owned(), reason: reason.to_string() }
}
