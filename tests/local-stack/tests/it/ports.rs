//! `berth-dev run` with a taken port.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

/// Before anything is made or started, with the port and the fix.
#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let output = Command::new(env!("CARGO_BIN_EXE_berth-dev"))
        .args(["run", "--exit", "--port-offset", &(port - 8085).to_string()])
        .arg("--state")
        .arg(&state)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let expected = format!("port {port} is taken");
    assert!(
        error.contains(&expected) && error.contains("BERTH_PORT_OFFSET"),
        "{error}"
    );
    assert!(!state.exists());
}
