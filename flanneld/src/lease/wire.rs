//! The JSON of a lease, byte for byte as flannel writes it, and more lenient than that to read.

use std::net::{Ipv4Addr, Ipv6Addr};

use fabric::json::{Error, field, fields};
use serde::Serialize;

use super::{Attributes, BackendData};

/// The value to store for a lease. The order of the fields is the order in the text.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Encoded<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_data: Option<&'a BackendData>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<&'a BackendData>,
}

impl<'a> From<&'a Attributes> for Encoded<'a> {
    fn from(attributes: &'a Attributes) -> Self {
        Self {
            public_ip: attributes.public_ip,
            public_ipv6: attributes.public_ipv6,
            backend_type: &attributes.backend_type,
            backend_data: attributes.backend_data.as_ref(),
            backend_v6_data: attributes.backend_v6_data.as_ref(),
        }
    }
}

/// Returns the value to store for a lease.
pub(crate) fn encode(attributes: &Attributes) -> Vec<u8> {
    serde_json::to_vec(&Encoded::from(attributes)).expect("strings and numbers always encode")
}

/// Reads a stored value.
pub(crate) fn decode(json: &[u8]) -> Result<Attributes, Error> {
    const NAMES: [&str; 5] =
        ["PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data"];
    let [public_ip, public_ipv6, backend_type, data, v6_data] = fields(json, NAMES)?;
    let public_ip: Option<Ipv4Addr> = field(NAMES[0], public_ip)?;
    let backend_type: Option<String> = field(NAMES[2], backend_type)?;
    Ok(Attributes {
        public_ip: public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: field(NAMES[1], public_ipv6)?,
        backend_type: backend_type.unwrap_or_default(),
        backend_data: data.map(BackendData::read),
        backend_v6_data: v6_data.map(BackendData::read),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_backend_round_trip_byte_for_byte() {
        for value in [
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}}"#,
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"ipip"}"#,
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","Port":51820}}"#,
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"ipsec"}"#,
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"extension","BackendData":"text of a command"}"#,
        ] {
            let attributes = decode(value.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(encode(&attributes)).unwrap(), value);
        }
    }

    #[test]
    fn what_another_backend_wrote_goes_back_as_it_came() {
        let value = r#"{"backenddata":{"Z":1e2, "A":[ "\u0041" ],"Z":2},"BackendData":null,"PublicIP":"192.168.0.3","PublicIPv6":null}"#;
        let written = encode(&decode(value.as_bytes()).unwrap());
        assert_eq!(
            String::from_utf8(written).unwrap(),
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendData":{"Z":1e2, "A":[ "\u0041" ],"Z":2}}"#
        );
    }

    #[test]
    fn data_is_the_same_if_it_means_the_same() {
        let data = |text| decode(format!(r#"{{"BackendData":{text}}}"#).as_bytes()).unwrap();
        assert_eq!(data(r#"{"VNI":1,"VtepMAC":"x"}"#), data(r#"{ "VtepMAC": "x", "VNI": 1 }"#));
        assert_ne!(data(r#"{"VNI":1}"#), data(r#"{"VNI":2}"#));
    }

    #[test]
    fn old_and_odd_values_are_read() {
        let json = r#"{"publicip":"192.168.0.3","Extra":[1],"backendtype":"vxlan",
                       "backenddata":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
        let attributes = decode(json.as_bytes()).unwrap();
        assert_eq!(attributes.public_ip, Ipv4Addr::new(192, 168, 0, 3));
        assert_eq!(attributes.backend_type, "vxlan");
        assert_eq!(decode(b"{}").unwrap().public_ip, Ipv4Addr::UNSPECIFIED);
    }

    #[test]
    fn broken_values_are_refused() {
        for json in ["", "null x", "[]", r#"{"PublicIP":"node-3"}"#, r#"{"PublicIP":3}"#] {
            assert!(decode(json.as_bytes()).is_err(), "{json}");
        }
    }
}
