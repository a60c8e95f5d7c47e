//! The plugin `tuning`: changes parameters of a sandbox and properties of its interface, which other
//! plugins of the list made.
//!
//! Properties become what they were at DEL; until then that is kept in a file, in the form of the Go
//! plugin. Parameters stay as they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fabric::link_name::LinkName;
use fabric::netlink::{Socket, observe};
use fabric::netstate::NetState;
use fabric::plan::diff;
use fabric::subnet_file::atomic;
use fabric::sysctl;
use serde_json::Value;

use crate::bridge::lookup;
use crate::command::check::{Difference, previous};
use crate::command::gc::Valid;
use crate::error::Error;
use crate::invocation::{Attachment, Call, Id};
use crate::kernel::{self, KernelError, links};
use crate::result::AddResult;
use crate::sandbox;
use crate::tuning::{Properties, Tuning};

/// What the administrator allows; everything, without the file.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";
/// The key that says which network a file is of. The Go plugin does not look at it.
const NETWORK: &str = "network";

/// What was kept of an interface, or shall be, cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct KeptError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Makes the changes, and passes on what the plugins before it made.
///
/// # Errors
/// If there is none before it, or if the kernel refuses. Properties are then as they were.
pub fn add(call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let tuning = tuning(call)?;
    let mut result = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    sandbox::inside(&sandbox, || change(call, &tuning))??;
    if let Some(mac) = tuning.properties.mac {
        let if_name = call.attachment.if_name.as_str();
        let named = result.interfaces.iter_mut().filter(|one| one.name == if_name);
        named.for_each(|interface| interface.mac = mac.to_string());
    }
    Ok(result)
}

/// Makes the properties what they were. Where the sandbox is gone, they are too.
///
/// # Errors
/// If what is kept of them cannot be removed.
pub fn del(call: &Call, netns: Option<&Path>) -> Result<(), Error> {
    let file = Kept::of(&data_dir(call), &call.attachment);
    if let Some(sandbox) = sandbox::open_if_there(netns, call.own_netns_allowed)? {
        sandbox::inside(&sandbox, || restore(call.attachment.if_name, &file))??;
    }
    Ok(file.remove()?)
}

/// Finds out whether parameters and properties are what ADD made them.
///
/// # Errors
/// If they are not.
pub fn check(call: &Call, netns: &Path) -> Result<(), Error> {
    let tuning = tuning(call)?;
    previous(call)?.ok_or(Difference::NoPrevResult)?;
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let missing = sandbox::inside(&sandbox, || missing(call.attachment.if_name, &tuning))??;
    if missing.is_empty() { Ok(()) } else { Err(Difference::State(missing).into()) }
}

/// Removes what is kept of interfaces of attachments that are not valid.
pub(super) fn gc(call: &crate::invocation::NetworkCall, valid: &Valid, errors: &mut Vec<Error>) {
    let data_dir = directory(&call.config);
    for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
        let file = Kept(entry.path());
        let Some((container, if_name)) = file.attachment() else { continue };
        let kept = file.read();
        let network = kept.as_ref().and_then(|kept| kept.get(NETWORK));
        let is_of_network = network.and_then(Value::as_str) == Some(valid.network().as_str());
        if is_of_network && !valid.has(container.as_str(), if_name.as_str()) {
            errors.extend(file.remove().err().map(Error::from));
        }
    }
}

fn tuning(call: &Call) -> Result<Tuning, Error> {
    let allowed = match fs::read_to_string(ALLOW_LIST) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => {
            return Err(KeptError { verb: "read", path: ALLOW_LIST.into(), source }.into());
        }
    };
    let if_name = call.attachment.if_name;
    Ok(Tuning::new(&call.config, &call.args, if_name, allowed.as_deref())?)
}

/// In the sandbox.
fn change(call: &Call, tuning: &Tuning) -> Result<(), Error> {
    let if_name = call.attachment.if_name;
    for (key, value) in &tuning.sysctls {
        let refused = |source| KernelError::Sysctl { key: key.to_string(), source };
        sysctl::write(key, value).map_err(refused)?;
    }
    if tuning.properties.is_none() {
        return Ok(());
    }
    let mut socket = Socket::open().map_err(KernelError::from)?;
    let observed = observe(&mut socket, &links([if_name]))?;
    let present = observed.links.get(&if_name).ok_or(KernelError::NoLink(if_name))?;
    let file = Kept::of(&tuning.data_dir, &call.attachment);
    // After an ADD that was cut off, only the first file says what the interface was.
    if file.read().is_none() {
        let before = Properties::of(present).changed_by(&tuning.properties);
        file.write(&before, &call.attachment.network)?;
    }
    let desired = [(if_name, tuning.properties.on(present))].into();
    let desired = NetState { links: desired, ..NetState::default() };
    if let Err(error) = kernel::ensure(&mut socket, &desired, |_| Ok(())) {
        let _what_stopped_it_must_be_told =
            restore(if_name, &file).and_then(|()| Ok(file.remove()?));
        return Err(error.into());
    }
    Ok(())
}

/// In the sandbox.
fn restore(if_name: LinkName, file: &Kept) -> Result<(), Error> {
    let Some(before) = file.read().and_then(Properties::from_json) else { return Ok(()) };
    let mut socket = Socket::open().map_err(KernelError::from)?;
    let observed = observe(&mut socket, &links([if_name]))?;
    let Some(present) = observed.links.get(&if_name) else { return Ok(()) };
    let links = [(if_name, before.on(present))].into();
    kernel::ensure(&mut socket, &NetState { links, ..NetState::default() }, |_| Ok(()))?;
    Ok(())
}

/// In the sandbox.
fn missing(if_name: LinkName, tuning: &Tuning) -> Result<String, Error> {
    let mut socket = Socket::open().map_err(KernelError::from)?;
    let mut observed = observe(&mut socket, &links([if_name]))?;
    let present = observed.links.get(&if_name).ok_or(KernelError::NoLink(if_name))?;
    let links = [(if_name, tuning.properties.on(present))].into();
    let sysctls = tuning.sysctls.clone();
    let read = |key| Some((Clone::clone(key), sysctl::read(key).ok()?));
    observed.sysctls = sysctls.keys().filter_map(read).collect();
    Ok(diff(&NetState { links, sysctls, ..NetState::default() }, &observed).to_string())
}

fn data_dir(call: &Call) -> PathBuf {
    directory(&call.config)
}

fn directory(config: &serde_json::Map<String, Value>) -> PathBuf {
    let configured = lookup(config, &["dataDir"]).and_then(Value::as_str);
    configured.filter(|text| !text.is_empty()).unwrap_or("/run/cni/tuning").into()
}

/// The file with the properties that an interface had.
struct Kept(PathBuf);

impl Kept {
    fn of(data_dir: &Path, attachment: &Attachment) -> Self {
        let Attachment { container, if_name, .. } = attachment;
        Self(data_dir.join(format!("{container}_{if_name}.json")))
    }

    /// Which attachment it is for, by its name.
    fn attachment(&self) -> Option<(Id, LinkName)> {
        let name = self.0.file_name()?.to_str()?.strip_suffix(".json")?;
        // The name of an interface may hold the separator too; that of a container ends before it.
        let mut places = name.match_indices('_').map(|(place, _)| place);
        places.find_map(|place| {
            let if_name = name[place + 1..].parse().ok()?;
            Some((Id::new(&name[..place])?, if_name))
        })
    }

    fn read(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(&self.0).ok()?).ok()
    }

    fn write(&self, properties: &Properties, network: &Id) -> Result<(), KeptError> {
        let mut kept = properties.to_json();
        kept[NETWORK] = network.as_str().into();
        let written = atomic::create_parent(&self.0, 0o755)
            .and_then(|()| atomic::replace(&self.0, kept.to_string().as_bytes(), 0o600));
        written.map_err(|source| KeptError { verb: "write", path: self.0.clone(), source })
    }

    fn remove(&self) -> Result<(), KeptError> {
        match fs::remove_file(&self.0) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(KeptError { verb: "remove", path: self.0.clone(), source })
            }
            _ => Ok(()),
        }
    }
}
