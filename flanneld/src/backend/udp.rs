//! Packets between nodes as plain UDP.

mod merge;
mod offload;
mod packet;
mod peers;
