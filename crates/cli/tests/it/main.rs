//! The `berth` command as a process, against real services in this process and
//! against peers that are broken on purpose.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod audit;
mod completion;
mod contexts;
mod doctor;
mod forward;
mod labels;
mod login;
mod sessions;
mod support;
mod terminal;
