//! Validation of the definition of a static cluster.

use super::endpoints;
use crate::address::split_host_port;
use crate::properties::{Problems, SECRET_PREFIX, is_secret_variable};
use session_core::{Cluster, Engine};
use std::collections::BTreeSet;

/// Adds all invalid fields.
pub(crate) fn check_definition(cluster: &Cluster, problems: &mut Problems) {
    let endpoints = endpoints(cluster);
    if endpoints.is_empty() {
        problems.add("endpoints", "must name at least one server");
    }
    if cluster.keeps_orgs_apart() && cluster.granted_orgs.len() != 1 {
        let why = match cluster.engine {
            Engine::Sail => {
                "Sail finds a Spark session by its id alone, so organizations that share a server \
                 depend on nobody learning an id"
            }
            Engine::Spark => {
                "queries run Java and Python inside the Spark server, so organizations that share \
                 one can read each other's data and the server's own secrets"
            }
        };
        problems.add(
            "granted_orgs",
            format!(
                "must name exactly one organization: {why}; name one, or set \
                 allow_shared_untrusted = true to accept that"
            ),
        );
    }
    let mut seen = BTreeSet::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let field = |name: &str| format!("endpoints[{i}].{name}");
        if let Err(e) = split_host_port(&endpoint.address) {
            problems.add(field("address"), e.to_string());
        }
        if !seen.insert(endpoint.address.to_ascii_lowercase()) {
            problems.add(field("address"), format!("{} is named twice", endpoint.address));
        }
        if let Some(name) = &endpoint.tls_server_name
            && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            problems.add(field("tls_server_name"), "is not a host name or address");
        }
        if let Some(variable) = &endpoint.token_env
            && !is_secret_variable(variable)
        {
            problems.add(
                field("token_env"),
                format!("must be an environment variable whose name begins with {SECRET_PREFIX}"),
            );
        }
    }
}
