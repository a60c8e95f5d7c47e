//! A proxy on a host of its own: it knows `CONNECT` (RFC 9110, section 9.3.6) and nothing else.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::namespace::Namespace;
use crate::underlay::Underlay;

/// The host's number on the underlay.
const HOST: u8 = 249;
const PORT: u16 = 3128;

/// The proxy.
#[derive(Debug)]
pub struct HttpProxy {
    asked: Arc<Mutex<Vec<String>>>,
    _host: Namespace,
}

impl HttpProxy {
    /// Makes the host and starts the proxy on it.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn running(underlay: &Underlay) -> Self {
        let host = underlay.host("proxy", HOST);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let listener = host.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let listener = listener.expect("the host is new");
        // Its connections begin on its host.
        host.spawn(move || {
            for client in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || tunnel(client, &seen));
            }
        });
        Self { asked, _host: host }
    }

    /// Where it is, as `HTTPS_PROXY` says it.
    pub fn url(&self) -> String {
        format!("http://{}", SocketAddr::from((Underlay::address(HOST), PORT)))
    }

    /// The servers that clients asked for, as `HOST:PORT`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn tunnel(client: TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = line.split(' ');
    let (Some("CONNECT"), Some(target)) = (words.next(), words.next()) else {
        return (&client).write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n");
    };
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(target.to_owned());
    let server = TcpStream::connect(target)?;
    (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (from, to) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || copy(from, to));
    copy(client, server);
    Ok(())
}

/// Copies until one of them ends, and ends the other.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    // How it ended is seen by those who talk through it.
    let _copied = io::copy(&mut from, &mut to);
    let _ended = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
