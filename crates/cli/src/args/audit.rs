//! Arguments of `berth audit` and `berth usage`.

use std::time::{Duration, SystemTime};

/// Filters of the audit trail.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    /// Its organization; default: your own, or all for platform admins.
    #[arg(long)]
    pub(crate) org: Option<String>,
    /// Only what this actor did: "issuer-alias|subject", or "system"; quote it.
    #[arg(long)]
    pub(crate) principal: Option<String>,
    /// Only this action, e.g. token.issued; repeat for several.
    #[arg(long = "action", value_name = "ACTION")]
    pub(crate) actions: Vec<String>,
    /// Only what happened to this session.
    #[arg(long)]
    pub(crate) session: Option<String>,
    /// Only from this time on: 24h ago is 24h, or a time like
    /// 2026-12-31T18:00:00Z.
    #[arg(long, value_name = "AGE|TIME", value_parser = moment)]
    pub(crate) since: Option<Moment>,
    /// Only before this time, in the same forms.
    #[arg(long, value_name = "AGE|TIME", value_parser = moment)]
    pub(crate) until: Option<Moment>,
    /// Maximum number of records.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
}

/// Filters of the sums of use.
#[derive(Debug, clap::Args)]
pub(crate) struct Usage {
    /// The organization; default: your own.
    #[arg(long)]
    pub(crate) org: Option<String>,
    /// Only sessions of this owner: "issuer-alias|subject"; quote it.
    #[arg(long)]
    pub(crate) owner: Option<String>,
    /// Only sessions on this cluster.
    #[arg(long)]
    pub(crate) cluster: Option<String>,
}

/// A time in the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// This long ago.
    Ago(Duration),
    /// At this time.
    At(SystemTime),
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(Moment::Ago(age));
    }
    let time = humantime::parse_rfc3339_weak(text);
    time.map(Moment::At)
        .map_err(|_| "write an age like 24h, or a time like 2026-12-31T18:00:00Z".to_owned())
}
