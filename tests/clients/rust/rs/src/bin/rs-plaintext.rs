//! The crate without its feature `tls`.

fn main() {
    rs::run();
}
