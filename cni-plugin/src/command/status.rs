//! STATUS: whether an ADD could be served now.

use fabric::subnet_file::SubnetFile;

use crate::error::Error;
use crate::netconf::NetConf;

/// Finds out whether this node has a subnet.
///
/// # Errors
/// If the agent has not said so in the subnet file.
pub fn run(conf: &NetConf) -> Result<(), Error> {
    SubnetFile::read(&conf.subnet_file).map(drop).map_err(Error::NotAvailable)
}
