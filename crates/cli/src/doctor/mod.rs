//! `berth doctor`: goes through a connection step by step and names what is
//! wrong with it.
//!
//! [`fault`] has the verdicts, [`report`] the steps and the output.
//! [`transport`] checks the way to a server and [`call`] makes calls over it;
//! [`apis`], [`proxy`] and [`client`] use them in order.

mod apis;
mod call;
mod client;
pub(crate) mod connection_string;
pub(crate) mod fault;
mod proxy;
mod report;
mod settings;
pub(crate) mod transport;

use crate::args::Doctor;
use crate::{Given, GlobalArgs};
use anyhow::{Context as _, Result, bail};
use connection_string::ConnectionString;
use report::{Part, Report};
use std::path::Path;
use std::time::Duration;

/// Maximum of `--quiet-for`.
const MAX_QUIET: Duration = Duration::from_secs(3600);
/// Maximum size of a connection string in bytes.
const MAX_STRING_BYTES: u64 = 64 * 1024;

pub(crate) async fn run(global: &GlobalArgs, given: &Given, args: Doctor) -> Result<()> {
    if args.quiet_for.is_some_and(|time| time > MAX_QUIET) {
        bail!("--quiet-for is at most 1h");
    }
    let text = connection_text(&args)?;
    let mut report = Report::new(global.output);
    let string = match text.map(|text| connection_string::parse(&text)) {
        None => None,
        Some(parsed) => report.take(Part::Settings, "string", parsed),
    };
    let mut issued = None;
    let usable = settings::check(global, given, &mut report, string.is_some()).await;
    let settings = usable.apis;
    if let Some(settings) = &settings {
        issued = apis::check(settings, &args, &mut report).await;
    }
    let ca = usable.ca.or_else(client::grpc_roots);
    // The new token lives for a minute, and the checks of the own string can take longer.
    for (name, string) in [
        ("new token", &issued.as_ref().map(|new| new.string.clone())),
        ("own string", &string),
    ] {
        if let Some(string) = string {
            client::check_environment(string, ca.as_deref(), &mut report);
            proxy::check(name, string, ca.as_deref(), &args, &mut report).await;
        }
    }
    let used: Option<&ConnectionString> = string.as_ref().or(issued.as_ref().map(|new| &new.string));
    let cluster = issued.as_ref().and_then(|new| new.cluster.as_ref());
    if let Some(python) = &args.python {
        client::check_python(python, used, cluster, &mut report).await;
    }
    if let (Some(settings), Some(issued)) = (&settings, &issued) {
        apis::revoke(settings, issued).await;
    }
    report.finish()
}

/// The connection string to check: of the option, else of the environment.
fn connection_text(args: &Doctor) -> Result<Option<String>> {
    use std::io::Read as _;
    let Some(file) = &args.connection_file else {
        return Ok(std::env::var("SPARK_REMOTE")
            .ok()
            .filter(|text| text.starts_with("sc:")));
    };
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_STRING_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_STRING_BYTES).read_to_string(&mut text))
    };
    read.with_context(|| format!("reading {}", file.display()))?;
    Ok(Some(text))
}
