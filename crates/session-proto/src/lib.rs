//! Generated code of Berth's APIs, and its conversions: [`convert`] to session-core, [`definition`]
//! for clusters and catalogs in files, [`json`] for output, [`error`] for statuses, [`reply`] for
//! responses that end with one, [`trailers`] for errors of a size that clients accept.

pub mod convert;
pub mod definition;
pub mod error;
pub mod json;
pub mod ports;
pub mod reply;
pub mod trailers;

#[expect(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes,
    reason = "generated code"
)]
mod generated {
    pub mod v1 {
        tonic::include_proto!("berth.v1");
    }
    pub mod internal {
        tonic::include_proto!("berth.internal.v1");
    }
    pub mod spark {
        tonic::include_proto!("spark.connect");
    }
}

/// `berth.v1`: the public API.
pub use generated::v1;

/// `berth.internal.v1`: between Berth's own services.
pub use generated::internal;

/// `spark.connect`: the part of Apache Spark's protocol that Berth uses.
pub use generated::spark;

/// Metadata with the client IP, which a service sends to session-manager's internal port.
pub const CALLER_ADDRESS: &str = "x-berth-caller-address";

/// The file descriptors of `berth.v1`, for server reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/berth.v1.bin"));

/// The file descriptors of `berth.internal.v1`, which no server reflects.
pub const INTERNAL_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/berth.internal.v1.bin"));
