//! Every RPC that the protos define has a row in the table of who may call
//! it, and no row is about an RPC that does not exist.
use prost::Message as _;
use prost_types::FileDescriptorSet;
use session_core::access::Rpc;
use session_proto::{INTERNAL_DESCRIPTORS, PUBLIC_DESCRIPTORS};
use std::collections::BTreeSet;

fn defined(set: &[u8]) -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(set).unwrap().file;
    let mut all = BTreeSet::new();
    for file in files {
        for service in &file.service {
            for method in &service.method {
                all.insert(format!(
                    "/{}.{}/{}",
                    file.package(),
                    service.name(),
                    method.name()
                ));
            }
        }
    }
    all
}

#[test]
fn every_rpc_has_a_row_and_every_row_an_rpc() {
    let public = defined(PUBLIC_DESCRIPTORS);
    let internal = defined(INTERNAL_DESCRIPTORS);
    assert!(
        public.len() > 30 && internal.len() >= 9,
        "the descriptors are read"
    );
    let rows = |internal: bool| -> BTreeSet<String> {
        let rows = Rpc::ALL.iter().filter(|rpc| rpc.rule().is_internal() == internal);
        rows.map(|rpc| rpc.path().to_owned()).collect()
    };
    assert_eq!(
        rows(false),
        public,
        "session_core::access::Rpc (left) and the public protos (right)"
    );
    assert_eq!(
        rows(true),
        internal,
        "session_core::access::Rpc (left) and the internal protos (right)"
    );
}
