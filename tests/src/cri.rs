//! A client for the Container Runtime Interface (CRI) that kubelet uses, as far as pods without
//! containers need it: `runtime.v1` of the Kubernetes API `cri-api`, by the numbers of its fields.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// A connection to a container runtime.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// What a pod is made from.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    /// Who it is.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Its host name.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Where the logs of its containers go.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Ports of the node that lead to it.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// What else is said of it.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
}

/// Who a pod is.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its identifier.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Its namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// A port of the node that leads to a pod, by TCP.
#[derive(Clone, PartialEq, Message)]
pub struct PortMapping {
    /// That of the pod.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// That of the node.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

/// Requests about one pod, and the answer that names it.
#[derive(Clone, PartialEq, Message)]
struct PodSandboxId {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeCondition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "4")]
    message: String,
}

impl Cri {
    /// A connection to the runtime that listens on this socket, made when it is used.
    ///
    /// # Panics
    /// If threads cannot be had.
    pub fn at(socket: &Path) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a loop");
        let socket: PathBuf = socket.to_owned();
        let connect = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = runtime.block_on(async { endpoint.connect_with_connector_lazy(connect) });
        Self { runtime, channel }
    }

    /// Finds out whether pods can be run.
    ///
    /// # Errors
    /// What is not ready.
    pub fn ready(&self) -> Result<(), String> {
        let status: StatusResponse =
            self.call("Status", Empty {}).map_err(|status| status.to_string())?;
        let conditions = status.status.unwrap_or_default().conditions;
        let failing = conditions.iter().find(|condition| !condition.status);
        match failing {
            Some(condition) => Err(format!("{}: {}", condition.kind, condition.message)),
            None if conditions.is_empty() => Err("no conditions".to_owned()),
            None => Ok(()),
        }
    }

    /// Runs a pod without containers, and returns its identifier.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn run_pod(&self, config: PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config) };
        let response: PodSandboxId = self.call("RunPodSandbox", request)?;
        Ok(response.pod_sandbox_id)
    }

    /// Returns the address of a pod.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn address(&self, pod: &str) -> Result<String, Status> {
        let request = PodSandboxId { pod_sandbox_id: pod.to_owned() };
        let response: PodSandboxStatusResponse = self.call("PodSandboxStatus", request)?;
        let network = response.status.and_then(|status| status.network);
        Ok(network.unwrap_or_default().ip)
    }

    /// Stops and removes a pod.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let request = PodSandboxId { pod_sandbox_id: pod.to_owned() };
            let Empty {} = self.call(method, request)?;
        }
        Ok(())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path = PathAndQuery::try_from(path).expect("letters and dots are a path");
        self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            Ok(grpc.unary(Request::new(request), path, codec).await?.into_inner())
        })
    }
}
