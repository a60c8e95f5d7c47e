//! A client of the system bus (D-Bus specification) for single calls, with an end to each: whoever
//! does not answer is not waited for.

mod message;

use std::env;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

pub use message::{Argument, Call, Message};

/// How long a call may take. What we call answers in milliseconds, or seconds while it reloads.
const TIME_MAX: Duration = Duration::from_secs(5);
/// How long the kernel may take to hand over what is sent, in seconds.
const SEND_SECONDS_MAX: i64 = 2;
/// Where the bus is unless the environment says otherwise.
const ADDRESSES: &str =
    "unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket";
const VARIABLE: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// A connection to the system bus.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DbusError {
    /// The environment names no socket.
    #[error("{VARIABLE}: {0:?} names no Unix socket")]
    Address(String),
    /// The bus cannot be reached, or does not answer in time.
    #[error("the system bus of D-Bus")]
    Io(#[from] io::Error),
    /// It does not let this process in.
    #[error("the system bus of D-Bus denies access: {0:?}")]
    Denied(String),
    /// What it says makes no sense.
    #[error("the system bus of D-Bus sent something that is no message")]
    Malformed,
    /// Whoever was called says that it went wrong.
    #[error("{text} ({name})")]
    Reported {
        /// The name of the error.
        name: String,
        /// What it says, which may be nothing.
        text: String,
    },
}

impl Bus {
    /// Connects to the system bus, unless there is none.
    ///
    /// # Errors
    /// If it is there and cannot be used.
    pub fn system() -> Result<Option<Self>, DbusError> {
        let addresses = env::var(VARIABLE).ok().filter(|addresses| !addresses.is_empty());
        let addresses = addresses.as_deref().unwrap_or(ADDRESSES);
        let sockets: Vec<_> = sockets(addresses).collect();
        if sockets.is_empty() {
            return Err(DbusError::Address(addresses.to_owned()));
        }
        for socket in sockets {
            match connected(&socket) {
                Ok(stream) => return Self::over(stream).map(Some),
                Err(error) => match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => {}
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(None)
    }

    fn over(stream: UnixStream) -> Result<Self, DbusError> {
        let mut bus = Self { stream, serial: 0, deadline: Instant::now() + TIME_MAX };
        bus.authenticate()?;
        bus.ask("Hello", &[])?;
        Ok(bus)
    }

    /// The kernel tells the bus who this is (SASL EXTERNAL, RFC 4422, appendix A, with the empty
    /// identity, which stands for that).
    fn authenticate(&mut self) -> Result<(), DbusError> {
        const LENGTH_MAX: u64 = 1024;
        self.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\n")?;
        let mut said = Vec::new();
        // It says one line for each of ours, and nothing more before we do.
        while said.iter().filter(|byte| **byte == b'\n').count() < 2 {
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            said.extend(byte);
            if said.len() as u64 > LENGTH_MAX {
                return Err(DbusError::Malformed);
            }
        }
        let said = String::from_utf8_lossy(&said);
        if !said.lines().any(|line| line.starts_with("OK ")) {
            return Err(DbusError::Denied(said.into_owned()));
        }
        Ok(self.stream.write_all(b"BEGIN\r\n")?)
    }

    /// Whether somebody has a name on the bus.
    ///
    /// # Errors
    /// If the bus does not say.
    pub fn has_owner(&mut self, name: &str) -> Result<bool, DbusError> {
        match self.ask("NameHasOwner", &[name])? {
            Argument::Truth(truth) => Ok(truth),
            _ => Err(DbusError::Malformed),
        }
    }

    fn ask(&mut self, member: &str, arguments: &[&str]) -> Result<Argument, DbusError> {
        let (destination, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        self.call(&Call { destination, path, interface: destination, member, arguments })
    }

    /// Calls a method, and returns the first argument of the answer.
    ///
    /// # Errors
    /// If whoever is called says so, or does not answer within five seconds.
    pub fn call(&mut self, call: &Call<'_>) -> Result<Argument, DbusError> {
        self.deadline = Instant::now() + TIME_MAX;
        self.serial += 1;
        self.stream.write_all(&call.encode(self.serial))?;
        loop {
            let Message { answers, error, argument } = self.receive()?;
            if answers != Some(self.serial) {
                continue;
            }
            let Some(name) = error else { return Ok(argument) };
            let text = if let Argument::Text(text) = argument { text } else { String::new() };
            return Err(DbusError::Reported { name, text });
        }
    }

    fn receive(&mut self) -> Result<Message, DbusError> {
        let mut head = [0; message::HEAD_LENGTH];
        self.read_exact(&mut head)?;
        let rest = message::rest_length(&head).ok_or(DbusError::Malformed)?;
        let mut bytes = head.to_vec();
        bytes.resize(head.len() + rest, 0);
        self.read_exact(&mut bytes[head.len()..])?;
        Message::decode(&bytes).ok_or(DbusError::Malformed)
    }
}

impl Read for Bus {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            result => result,
        }
    }
}

/// The sockets in a list of addresses (D-Bus specification, "Server Addresses").
fn sockets(addresses: &str) -> impl Iterator<Item = UnixAddr> {
    addresses.split(';').filter_map(|address| {
        let mut pairs = address.strip_prefix("unix:")?.split(',').filter_map(|p| p.split_once('='));
        pairs.find_map(|(key, value)| match key {
            "path" => UnixAddr::new(unescaped(value)?.as_slice()).ok(),
            "abstract" => UnixAddr::new_abstract(&unescaped(value)?).ok(),
            _ => None,
        })
    })
}

/// Bytes may be written as `%` and two hexadecimal digits.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.bytes());
    }
    Some(bytes)
}

/// Whoever does not accept is not waited for either, which the standard library cannot do.
fn connected(address: &UnixAddr) -> io::Result<UnixStream> {
    let kind = (AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let socket = socket(kind.0, kind.1, kind.2, None)?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(SEND_SECONDS_MAX, 0))?;
    connect(socket.as_raw_fd(), address)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn addresses_name_sockets() {
        let default: Vec<_> = sockets(ADDRESSES).collect();
        let paths: Vec<_> = default.iter().map(|socket| socket.path().unwrap()).collect();
        let directories = ["/run", "/var/run"].map(Path::new);
        assert_eq!(paths, directories.map(|at| at.join("dbus/system_bus_socket")));
        let more = "tcp:host=a;unix:guid=1,path=/a%20b%2f;unix:abstract=c;unix:path=%;unix:;%zz";
        let more: Vec<_> = sockets(more).collect();
        assert_eq!(more[0].path(), Some(Path::new("/a b/")));
        assert_eq!((more[1].as_abstract(), more.len()), (Some(&b"c"[..]), 2));
    }

    fn bus_for(milliseconds: u64) -> (Bus, UnixStream) {
        let (stream, other) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(milliseconds);
        (Bus { stream, serial: 0, deadline }, other)
    }

    #[test]
    fn silence_and_nonsense_end() {
        let (mut bus, mut other) = bus_for(50);
        other.write_all(b"l\x02\x01").unwrap();
        match bus.receive() {
            Err(DbusError::Io(error)) => assert_eq!(error.kind(), ErrorKind::TimedOut),
            other => panic!("{other:?}"),
        }
        let (mut bus, mut other) = bus_for(60_000);
        other.write_all(&[0xff; 64]).unwrap();
        assert!(matches!(bus.receive(), Err(DbusError::Malformed)));
        let (mut bus, mut other) = bus_for(60_000);
        other.write_all(b"REJECTED EXTERNAL\r\nERROR\r\n").unwrap();
        assert!(matches!(bus.authenticate(), Err(DbusError::Denied(_))));
        let (mut bus, mut other) = bus_for(60_000);
        other.write_all(&[b'x'; 2000]).unwrap();
        assert!(matches!(bus.authenticate(), Err(DbusError::Malformed)));
        let (mut bus, other) = bus_for(60_000);
        drop(other);
        assert!(matches!(bus.receive(), Err(DbusError::Io(_))));
    }
}
