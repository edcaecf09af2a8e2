//! Messages of containerd's snapshots service (containerd api/services/snapshots/v1/snapshots.proto), as far as a backend needs them.

use std::collections::HashMap;

use prost_types::{FieldMask, Timestamp};

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Not said.
    Unknown = 0,
    /// Mounted to be read only.
    View = 1,
    /// Mounted to be written.
    Active = 2,
    /// Never changes again; parents are of this kind.
    Committed = 3,
}

/// One mount, as mount(8) would take it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// `bind` or `overlay`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Where below the caller's folder; empty for the folder itself.
    #[prost(string, tag = "3")]
    pub target: String,
    /// Options, one each.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// Prepare's and View's request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Create {
    /// New key.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Name of the committed snapshot below; empty for none.
    #[prost(string, tag = "3")]
    pub parent: String,
    /// Labels.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

/// The request of Mounts, Remove, Stat and Usage.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Key {
    /// Key or name.
    #[prost(string, tag = "2")]
    pub key: String,
}

/// The answer of Prepare, View and Mounts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mounts {
    /// In order.
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

/// Commit's request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Commit {
    /// The committed snapshot's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The active snapshot's key.
    #[prost(string, tag = "3")]
    pub key: String,
    /// Labels of the committed snapshot.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

/// What is known of a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Info {
    /// Key or name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of the snapshot below.
    #[prost(string, tag = "2")]
    pub parent: String,
    /// Kind.
    #[prost(enumeration = "Kind", tag = "3")]
    pub kind: i32,
    /// When it was made.
    #[prost(message, optional, tag = "4")]
    pub created_at: Option<Timestamp>,
    /// When its labels were last changed.
    #[prost(message, optional, tag = "5")]
    pub updated_at: Option<Timestamp>,
    /// Labels.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
}

/// The answer of Stat and Update.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stat {
    /// The snapshot.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// Update's request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Update {
    /// Name and new values.
    #[prost(message, optional, tag = "2")]
    pub info: Option<Info>,
    /// Which fields count; all when it is missing.
    #[prost(message, optional, tag = "3")]
    pub mask: Option<FieldMask>,
}

/// List's request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Filters {
    /// containerd filters; one of them must match.
    #[prost(string, repeated, tag = "2")]
    pub filters: Vec<String>,
}

/// One part of List's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Listed {
    /// Some snapshots.
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<Info>,
}

/// Usage's answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Usage {
    /// Bytes on the disk.
    #[prost(int64, tag = "1")]
    pub size: i64,
    /// Files.
    #[prost(int64, tag = "2")]
    pub inodes: i64,
}
