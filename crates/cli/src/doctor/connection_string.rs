//! Spark Connect connection strings: `sc://host:port/;name=value;…`.

use super::fault::{Checked, Fault};
use std::fmt;

/// Port of a string without one.
const DEFAULT_PORT: u16 = 15002;

/// A parsed connection string.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ConnectionString {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) token: String,
    /// `x-session-id`.
    pub(crate) session: Option<String>,
    /// Whether PySpark 4 uses TLS for it.
    pub(crate) tls: bool,
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("session", &self.session)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Parses a string as PySpark does. Errors do not quote it: it has a token.
pub(crate) fn parse(text: &str) -> Checked<ConnectionString> {
    let invalid = |problem: &str| Err(Fault::ConnectionStringInvalid.seen(problem));
    let text = text.trim();
    if text.is_empty() {
        return invalid("the connection string is empty");
    }
    if text.contains(|char: char| char.is_whitespace() || !char.is_ascii()) {
        return invalid(
            "the connection string contains a space, a line break or a character such as …: copy it as a whole",
        );
    }
    let Some(rest) = text.strip_prefix("sc://") else {
        return invalid("the connection string does not begin with sc://");
    };
    let (address, parameters) = rest.split_once(';').unwrap_or((rest, ""));
    let authority = match address.split_once('/') {
        None if !parameters.is_empty() => {
            return invalid("there is no / between the address and the first parameter (sc://host:port/;…)");
        }
        Some((_, path)) if !path.is_empty() => return invalid("the connection string has a path"),
        Some((authority, _)) => authority,
        None => address,
    };
    let (host, port) = split_port(authority)?;
    let mut found = ConnectionString {
        host,
        port,
        token: String::new(),
        session: None,
        tls: false,
    };
    let mut use_ssl = false;
    for parameter in parameters.split(';').filter(|parameter| !parameter.is_empty()) {
        let Some((name, value)) = parameter.split_once('=') else {
            return invalid("a parameter has no value: write name=value, without quotes");
        };
        if value.contains('=') {
            return invalid("a parameter has a second =, which PySpark rejects and other clients cut off");
        }
        if name.chars().any(|char| char.is_ascii_uppercase()) {
            return invalid(
                "a parameter's name has capital letters, which PySpark cannot send (x-session-id)",
            );
        }
        match name {
            "token" => value.clone_into(&mut found.token),
            "x-session-id" => found.session = Some(value.to_owned()),
            "use_ssl" => use_ssl = value.eq_ignore_ascii_case("true"),
            _ => {}
        }
    }
    if found.token.is_empty() {
        return Err(Fault::TokenMissing.seen("the connection string has no token"));
    }
    found.tls = use_ssl || found.host != "localhost";
    Ok(found)
}

fn split_port(authority: &str) -> Checked<(String, u16)> {
    let problem = || {
        Fault::ConnectionStringInvalid.seen("the connection string has no host, or its port is not a number")
    };
    let (host, port) = match authority.rsplit_once(':') {
        // An IPv6 address without a port.
        Some((_, end)) if end.contains(']') => (authority, None),
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse().map_err(|_| problem()))?;
    if host.is_empty() {
        return Err(problem());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_as_pyspark_reads_them() {
        let parsed = parse("sc://localhost:8085/;token=abc;x-session-id=s-1\n").unwrap();
        assert_eq!(
            (parsed.host.as_str(), parsed.port, parsed.tls),
            ("localhost", 8085, false)
        );
        assert_eq!(parsed.session.as_deref(), Some("s-1"));
        for (text, tls) in [
            ("sc://localhost/;token=a;use_ssl=true", true),
            ("sc://127.0.0.1:1/;token=a", true),
            ("sc://[::1]:1/;token=a", true),
            ("sc://berth.example.org/;token=a", true),
        ] {
            assert_eq!(parse(text).unwrap().tls, tls, "{text}");
        }
        assert_eq!(parse("sc://h/;token=a").unwrap().port, 15002);
        assert_eq!(parse("sc://[::1]/;token=a").unwrap().port, 15002);
        let shown = format!("{parsed:?}");
        assert!(!shown.contains("abc"), "{shown}");
    }

    #[test]
    fn a_broken_string_is_not_quoted() {
        for text in [
            "",
            "http://h/;token=geheim",
            "sc://h:x/;token=geheim",
            "sc:///;token=geheim",
            "sc://h/path;token=geheim",
            "sc://h;token=geheim",
            "sc://h/;token=geheim…",
            "sc://h/;token=geheim ;x=1",
            "sc://h/;token=geheim=",
            "sc://h/;token",
            "sc://h/;token=geheim;X-Session-Id=s-1",
        ] {
            let finding = parse(text).unwrap_err();
            assert_eq!(finding.fault, Fault::ConnectionStringInvalid, "{text}");
            assert!(!finding.detail.contains("geheim"), "{}", finding.detail);
        }
        assert_eq!(
            parse("sc://h/;use_ssl=true").unwrap_err().fault,
            Fault::TokenMissing
        );
    }
}
