//! The `berth` command as a process, against real services in this process and
//! against peers that are broken on purpose.

mod completion;
mod contexts;
mod doctor;
mod login;
mod sessions;
mod support;
