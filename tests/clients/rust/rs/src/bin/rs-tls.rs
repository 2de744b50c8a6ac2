//! The crate with its feature `tls`.

fn main() {
    rs::run();
}
