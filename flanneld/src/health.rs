//! The HTTP server for probes: `/readyz` says whether pods can run, `/healthz` whether anything would
//! be better after a restart.

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

/// A comparison with the kernel takes less than a second. One that takes this long will not end.
const STUCK: Duration = Duration::from_secs(180);

/// What the data plane can do at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readiness {
    /// Device, rules and subnet file of this node are there: pods can be started.
    pub(crate) node: bool,
    /// Everything about every known peer is there.
    pub(crate) peers: bool,
    /// Since when the kernel is being compared and corrected, while it is.
    pub(crate) busy_since: Option<Instant>,
}

impl Readiness {
    /// Whether the node can do all of its job.
    pub(crate) const fn is_complete(self) -> bool {
        self.node && self.peers
    }

    fn is_stuck(self) -> bool {
        self.busy_since.is_some_and(|since| since.elapsed() > STUCK)
    }
}
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
pub(crate) async fn serve(listener: TcpListener, ready: watch::Receiver<Readiness>) {
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

async fn answer(stream: TcpStream, ready: watch::Receiver<Readiness>) {
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

fn response(path: &str, ready: Readiness) -> (StatusCode, &'static str) {
    const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match path {
        "/healthz" if ready.is_stuck() => (UNAVAILABLE, "flanneld waits for the kernel in vain"),
        "/healthz" => (StatusCode::OK, "flanneld is running"),
        "/readyz" if ready.is_complete() => (StatusCode::OK, "flanneld is ready"),
        "/readyz" if ready.node => {
            (UNAVAILABLE, "flanneld is not ready: not every peer could be programmed, see its log")
        }
        "/readyz" => (UNAVAILABLE, "flanneld is not ready yet"),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: Readiness = Readiness { node: true, peers: true, busy_since: None };

    #[test]
    fn ready_is_who_serves_every_peer() {
        let status = |ready| response("/readyz", ready).0;
        assert_eq!(response("/readyz", READY), (StatusCode::OK, "flanneld is ready"));
        for ready in [
            Readiness::default(),
            Readiness { node: false, ..READY },
            Readiness { peers: false, ..READY },
        ] {
            assert_eq!(status(ready), StatusCode::SERVICE_UNAVAILABLE, "{ready:?}");
        }
        assert_eq!(response("/", READY).0, StatusCode::NOT_FOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn alive_is_who_would_not_be_better_off_after_a_restart() {
        let unready = Readiness::default();
        assert_eq!(response("/healthz", unready), (StatusCode::OK, "flanneld is running"));
        let busy = Readiness { busy_since: Some(Instant::now()), ..READY };
        sleep(STUCK).await;
        assert_eq!(response("/healthz", busy).0, StatusCode::OK);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(response("/healthz", busy).0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
