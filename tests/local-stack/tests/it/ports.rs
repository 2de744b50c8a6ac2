//! `berth-dev run` with a taken port.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

/// Starts the stack at an offset that gives spark-proxy this port, which must fail; returns what it
/// printed.
fn run_error(port: u16, state: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_berth-dev"))
        .args(["run", "--exit", "--port-offset", &(port - 8085).to_string()])
        .arg("--state")
        .arg(state)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("BERTH_PORT_OFFSET"), "{error}");
    error
}

/// Before anything is made or started, with the port and the fix. On a busy machine another port of
/// the offset can be taken by somebody else and is named instead, so several offsets are tried.
#[test]
fn a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let is_named = (0..8).any(|_| {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        run_error(port, &state).contains(&format!("port {port} is taken"))
    });
    assert!(is_named);
    assert!(!state.exists());
}
