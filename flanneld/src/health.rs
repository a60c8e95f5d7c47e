//! The HTTP server for probes: `/healthz` says that the program runs, `/readyz` that pods can.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use std::{io, pin::pin};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

/// A probe that takes longer is no probe.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// After a kill, what the killed program was just starting holds its port a moment longer.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const PORT_RETRY: Duration = Duration::from_millis(20);

/// Takes the port, or says why not.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let start = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < PORT_PATIENCE =>
            {
                sleep(PORT_RETRY).await;
            }
            bound => return bound,
        }
    }
}

/// Answers until the program ends.
pub(crate) async fn serve(listener: TcpListener, ready: watch::Receiver<bool>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer(stream, ready.clone()));
            }
            Err(error) => {
                warn!(%error, "a probe could not be accepted");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, ready: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (status, text) = response(request.uri().path(), *ready.borrow());
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(CONNECTION_MAX, pin!(connection)).await {
        debug!(%error, "a probe went away");
    }
}

fn response(path: &str, ready: bool) -> (StatusCode, &'static str) {
    match (path, ready) {
        ("/healthz", _) => (StatusCode::OK, "flanneld is running"),
        ("/readyz", true) => (StatusCode::OK, "flanneld is ready"),
        ("/readyz", false) => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(response("/healthz", false), (StatusCode::OK, "flanneld is running"));
        assert_eq!(response("/readyz", true), (StatusCode::OK, "flanneld is ready"));
        assert_eq!(response("/readyz", false).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response("/", true).0, StatusCode::NOT_FOUND);
    }
}
