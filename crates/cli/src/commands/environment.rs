//! `berth env` and `berth open`: hand a session to other programs.

use crate::args::{Env, Shell};
use crate::client::{self, explain};
use crate::output::{self, moment};
use crate::settings::Target;
use crate::{Output, browser};
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use session_proto::convert;
use session_proto::v1;

/// Variable that gRPC's C core, and so PySpark, reads trusted authorities from.
const GRPC_ROOTS: &str = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH";
/// Every variable that `berth env` sets.
const VARIABLES: [&str; 3] = ["SPARK_REMOTE", "BERTH_SESSION", GRPC_ROOTS];

/// Issues a token and prints the variables of a client.
pub(super) async fn print(target: &Target, output: Output, env: Env) -> Result<()> {
    let session_id = env.session.unwrap_or_default();
    let request = v1::IssueSessionTokenRequest {
        session_id: session_id.clone(),
        ttl: env.ttl.map(convert::duration),
    };
    let issued = client::tokens(target)
        .await?
        .issue_session_token(request)
        .await
        .map_err(explain)?
        .into_inner();
    let mut variables = vec![
        ("SPARK_REMOTE", issued.connection_url.clone()),
        ("BERTH_SESSION", session_id),
    ];
    if let Some(ca) = target
        .ca
        .as_ref()
        .filter(|_| issued.connection_url.contains("use_ssl=true"))
    {
        variables.push((GRPC_ROOTS, std::path::absolute(&ca.value)?.display().to_string()));
    }
    if output == Output::Json {
        let object: Map<String, Value> = variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        output::object(&object);
        return Ok(());
    }
    if !variables.iter().all(|(_, value)| printable::all_printable(value)) {
        bail!(
            "the connection string has characters that are unsafe for a shell: check the address of token-issuer"
        );
    }
    let shell = env.shell.unwrap_or_else(current_shell);
    let lines: Vec<String> = variables
        .iter()
        .map(|(name, value)| set(shell, name, value))
        .collect();
    output::script(&lines.join("\n"));
    output::note(&format!(
        "# The token is valid until {}; run `berth env` again then.",
        moment(issued.expires_at.as_ref())
    ));
    Ok(())
}

/// Prints the commands that remove the variables.
pub(super) fn unset(env: &Env) -> Result<()> {
    let shell = env.shell.unwrap_or_else(current_shell);
    let lines = VARIABLES.map(|name| match shell {
        Shell::Sh => format!("unset {name}"),
        Shell::Fish => format!("set -e {name}"),
        Shell::Powershell => format!("Remove-Item -ErrorAction SilentlyContinue Env:{name}"),
    });
    output::script(&lines.join("\n"));
    Ok(())
}

fn current_shell() -> Shell {
    let shell = std::env::var("SHELL").unwrap_or_default();
    match shell.rsplit('/').next() {
        Some("fish") => Shell::Fish,
        Some("pwsh") => Shell::Powershell,
        Some(_) | None => Shell::Sh,
    }
}

/// The command that sets a variable. The value is quoted so that nothing in it
/// is executed.
fn set(shell: Shell, name: &str, value: &str) -> String {
    match shell {
        Shell::Sh => format!("export {name}='{}'", value.replace('\'', r"'\''")),
        Shell::Fish => {
            let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
            format!("set -gx {name} '{quoted}'")
        }
        Shell::Powershell => format!("$Env:{name} = '{}'", value.replace('\'', "''")),
    }
}

/// Opens the console, and prints its address.
pub(super) async fn open(target: &Target, output: Output, session: Option<String>) -> Result<()> {
    let Some(console) = &target.console else {
        bail!(
            "the console's address is not set: `berth context set NAME --console https://…`, BERTH_CONSOLE or --console"
        );
    };
    let address = console_address(&console.value, session.as_deref())?;
    let opened = browser::open(&address).await;
    if output == Output::Json {
        output::object(&json!({"address": address, "opened": opened}));
    } else {
        output::line(&address);
        if !opened {
            output::note("No browser could be opened here: use the address.");
        }
    }
    Ok(())
}

/// The address of the console, or of a session in it.
fn console_address(console: &str, session: Option<&str>) -> Result<String> {
    if !(console.starts_with("https://") || console.starts_with("http://")) {
        bail!("{console:?} is not an address like https://berth.example.org");
    }
    let base = console.trim_end_matches('/');
    Ok(match session {
        None => format!("{base}/"),
        Some(id) => {
            let safe = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if id.is_empty() || !id.bytes().all(safe) {
                bail!("{id:?} is not the id of a session");
            }
            format!("{base}/sessions/{id}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn no_value_is_executed_by_a_shell() {
        let value = r#"sc://x/;token=a'b"c$(echo no)`d`\e;x=1"#;
        let script = format!("{}\nprintf %s \"$V\"", set(Shell::Sh, "V", value));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), value);
        assert_eq!(set(Shell::Fish, "V", r"a'\b"), r"set -gx V 'a\'\\b'");
        assert_eq!(set(Shell::Powershell, "V", "a'b$c"), "$Env:V = 'a''b$c'");
    }

    #[test]
    fn the_console_is_opened_at_a_session() {
        let at = |session| console_address("https://berth.example.org/b/", session).unwrap();
        assert_eq!(at(None), "https://berth.example.org/b/");
        assert_eq!(at(Some("s-1")), "https://berth.example.org/b/sessions/s-1");
        assert!(console_address("https://x", Some("../logout")).is_err());
        assert!(console_address("file:///etc/passwd", None).is_err());
    }
}
