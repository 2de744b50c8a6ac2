//! Checks of the configuration: every invalid key is reported at once.

use super::{BackendConfig, Config, LimitConfig, ListenConfig, RouteConfig, TlsMode, TokenConfig};
use service_kit::config::{Problems, Validate};
use session_token::VerifierConfig;
use std::time::Duration;

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        problems.check("listen", &self.listen);
        problems.check("admin", &self.admin);
        problems.check("tokens", &self.tokens);
        problems.check("manager", &self.manager);
        problems.check("routes", &self.routes);
        problems.check("backend", &self.backend);
        problems.check("limits", &self.limits);
        problems.check("telemetry", &self.telemetry);
    }
}

impl Validate for ListenConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.workers <= 1024, "workers", "must be at most 1024");
        if self.tls.mode == TlsMode::Off {
            problems.require(
                self.insecure || self.address.ip().is_loopback(),
                "tls.mode",
                "must not be off beyond loopback (or set `insecure = true` to serve plaintext)",
            );
            return;
        }
        if self.tls.mode == TlsMode::Auto {
            problems.require(
                self.insecure || self.address.ip().is_loopback(),
                "tls.mode",
                "must not be auto beyond loopback (or set `insecure = true` to serve plaintext too)",
            );
        } else {
            problems.require(
                !self.insecure,
                "insecure",
                "contradicts `tls.mode = \"required\"`; remove it",
            );
        }
        match self.tls.files() {
            Some(files) => problems.check("tls", &files),
            None => problems.within("tls", |problems| {
                problems.require(self.tls.cert.is_some(), "cert", "is required unless mode is off");
                problems.require(self.tls.key.is_some(), "key", "is required unless mode is off");
            }),
        }
    }
}

impl Validate for TokenConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(!self.issuer.is_empty(), "issuer", "must not be empty");
        problems.require(!self.audience.is_empty(), "audience", "must not be empty");
        problems.check("keys", &self.keys);
        problems.require(!self.max_ttl.is_zero(), "max_ttl", "must not be zero");
        // Session-manager stores revoked tokens for this time.
        let max = VerifierConfig::new("", "");
        problems.require(
            self.leeway <= max.leeway,
            "leeway",
            "must be at most 30s: revoked tokens are not remembered for longer",
        );
        problems.require(
            self.reattach_grace.max(self.interrupt_grace) <= max.reattach_grace,
            "reattach_grace",
            "and interrupt_grace must be at most 12h: revoked tokens are not remembered for longer",
        );
    }
}

impl Validate for RouteConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            self.hold_max <= Duration::from_secs(900),
            "hold_max",
            "must be at most 15min",
        );
        problems.require(
            self.forget_after >= Duration::from_secs(60),
            "forget_after",
            "must be at least 1min",
        );
    }
}

impl Validate for BackendConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            !self.connect_timeout.is_zero(),
            "connect_timeout",
            "must not be zero",
        );
        problems.check("tls", &self.tls);
        window(problems, "stream_window_bytes", self.stream_window_bytes);
        window(problems, "connection_window_bytes", self.connection_window_bytes);
        problems.require(
            self.connection_window_bytes >= self.stream_window_bytes
                && self.connection_window_bytes.checked_rem(self.stream_window_bytes) == Some(0),
            "connection_window_bytes",
            "must be a multiple of stream_window_bytes",
        );
        problems.require(
            self.connections_per_pool > 0,
            "connections_per_pool",
            "must not be 0",
        );
        frame(problems, self.frame_bytes);
        problems.require(
            self.sail_keep_alive.is_zero() || (Duration::from_secs(1)..=DAY).contains(&self.sail_keep_alive),
            "sail_keep_alive",
            "must be from 1s to 1day, or zero",
        );
        nonzero_up_to_a_day(problems, "silence", self.silence);
        nonzero_up_to_a_day(problems, "ping_timeout", self.ping_timeout);
        nonzero_up_to_a_day(problems, "half_open_timeout", self.half_open_timeout);
        nonzero_up_to_a_day(problems, "interrupt_timeout", self.interrupt_timeout);
    }
}

impl Validate for LimitConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.connections > 0, "connections", "must not be 0");
        problems.require(
            self.streams_per_connection > self.calls_per_session,
            "streams_per_connection",
            "must be more than calls_per_session: a connection can carry several sessions",
        );
        problems.require(
            (8 << 10..=4 << 20).contains(&self.header_list_bytes),
            "header_list_bytes",
            "must be from 8192 to 4194304",
        );
        problems.require(!self.handshake.is_zero(), "handshake", "must not be zero");
        nonzero_up_to_a_day(problems, "first_token", self.first_token);
        window(
            problems,
            "first_stream_window_bytes",
            self.first_stream_window_bytes,
        );
        window(problems, "stream_window_bytes", self.stream_window_bytes);
        window(problems, "connection_window_bytes", self.connection_window_bytes);
        frame(problems, self.frame_bytes);
        problems.require(!self.first_message.is_zero(), "first_message", "must not be zero");
        nonzero_up_to_a_day(problems, "request_idle_timeout", self.request_idle_timeout);
        problems.require(
            self.held_stream_timeout <= DAY,
            "held_stream_timeout",
            "must be at most 1day",
        );
        self.validate_held_calls(problems);
        self.validate_bytes(problems);
        self.validate_keepalive(problems);
    }
}

impl LimitConfig {
    fn validate_held_calls(&self, problems: &mut Problems) {
        problems.require(self.calls_per_session > 0, "calls_per_session", "must not be 0");
        problems.require(
            self.held_calls_per_session > 0,
            "held_calls_per_session",
            "must not be 0",
        );
        problems.require(self.held_calls > 0, "held_calls", "must not be 0");
        problems.require(self.held_calls_per_org > 0, "held_calls_per_org", "must not be 0");
    }

    fn validate_bytes(&self, problems: &mut Problems) {
        for (key, bytes) in [
            ("held_bytes_per_session", self.held_bytes_per_session),
            ("held_bytes_per_org", self.held_bytes_per_org),
            ("held_bytes", self.held_bytes),
            ("unread_bytes_per_session", self.unread_bytes_per_session),
            ("unread_bytes_per_org", self.unread_bytes_per_org),
            ("unread_bytes", self.unread_bytes),
            (
                "unacknowledged_bytes_per_stream",
                self.unacknowledged_bytes_per_stream,
            ),
            (
                "unacknowledged_bytes_per_session",
                self.unacknowledged_bytes_per_session,
            ),
            ("unacknowledged_bytes_per_org", self.unacknowledged_bytes_per_org),
            ("unacknowledged_bytes", self.unacknowledged_bytes),
        ] {
            problems.require(bytes >= 1 << 20, key, "must be at least 1048576");
        }
        problems.require(
            self.send_buffer_bytes >= 16 << 10,
            "send_buffer_bytes",
            "must be at least 16384",
        );
    }

    fn validate_keepalive(&self, problems: &mut Problems) {
        nonzero_up_to_a_day(problems, "ping_interval", self.ping_interval);
        nonzero_up_to_a_day(problems, "idle_ping_interval", self.idle_ping_interval);
        problems.require(
            self.idle_ping_interval >= self.ping_interval,
            "idle_ping_interval",
            "must be at least ping_interval",
        );
        nonzero_up_to_a_day(problems, "ping_timeout", self.ping_timeout);
        problems.require(
            self.connection_age <= 365 * DAY,
            "connection_age",
            "must be at most 365days",
        );
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn nonzero_up_to_a_day(problems: &mut Problems, key: &str, time: Duration) {
    problems.require(
        !time.is_zero() && time <= DAY,
        key,
        "must be more than zero and at most 1day",
    );
}

fn window(problems: &mut Problems, key: &str, bytes: u32) {
    problems.require(
        (65_535..=1 << 30).contains(&bytes),
        key,
        "must be from 65535 to 1073741824",
    );
}

fn frame(problems: &mut Problems, bytes: u32) {
    problems.require(
        (16_384..=(1 << 24) - 1).contains(&bytes),
        "frame_bytes",
        "must be from 16384 to 16777215",
    );
}
