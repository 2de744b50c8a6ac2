//! The command line: what it accepts, and what its help shows.

use super::*;

#[test]
fn the_commands_are_well_formed() {
    command_line().debug_assert();
}

fn parses(line: &str) -> bool {
    let matches = command_line().try_get_matches_from(line.split(' '));
    matches.is_ok_and(|matches| Cli::from_arg_matches(&matches).is_ok())
}

#[test]
fn groups_and_the_words_of_earlier_releases_are_accepted() {
    for line in [
        "berth session create --cluster c --wait",
        "berth session list --all",
        "berth session describe s-1 --wait",
        "berth session show s-1",
        "berth session watch",
        "berth session keep-alive s-1 --for 30m",
        "berth session close s-1 s-2",
        "berth token issue s-1 --ttl 8h",
        "berth token list s-1 --output json",
        "berth token --output json list s-1",
        "berth token revoke s-1 --all",
        "berth token s-1",
        "berth token s-1 --ttl 8h",
        "berth tokens s-1",
        "berth revoke s-1 t-1",
        "berth create --cluster c",
        "berth list",
        "berth show s-1",
        "berth events s-1",
        "berth close s-1",
        "berth warm s-1",
        "berth watch",
        "berth watch s-1",
        "berth extend s-1 --for 2h",
        "berth extend s-1 --until 2030-01-01T00:00:00Z",
        "berth keep-alive s-1 --for 30m",
        "berth update s-1 --name x --label a=b --remove-label c",
        "berth ops s-1",
        "berth operation list s-1",
        "berth interrupt s-1 --all",
        "berth operation interrupt s-1 --operation a --operation b",
        "berth orgs",
        "berth org",
        "berth orgs create acme --live-sessions 5",
        "berth org limits acme --labels 3",
        "berth org disable acme",
        "berth disable-principal sa|ada --org acme",
        "berth org enable-principal sa|ada",
        "berth cluster",
        "berth clusters",
        "berth clusters show lab",
        "berth cluster describe lab",
        "berth clusters create lab.toml",
        "berth cluster delete lab --force",
        "berth catalogs test lake --cluster c",
        "berth catalog delete lake --force",
        "berth audit --since 24h --until 2030-01-01T00:00:00Z --action token.issued --action org.created",
        "berth audit --principal sa|ada --org acme --session s-1 --limit 5 --output json",
        "berth usage --org acme --owner sa|ada --cluster c",
        "berth keys secret signing -n berth --owner keys --label a=b",
        "berth keys secret signing --rotate",
        "berth login --device",
        "berth logout",
        "berth whoami",
        "berth context set prod --manager https://m --unset ca --use",
        "berth context use prod",
        "berth connect s-1",
        "berth connect s-1 --port 0 --ttl 60s",
        "berth connect s-1 --socket /tmp/s",
        "berth connect --create --cluster c --catalog k --profile p --name n --label a=b",
        "berth exec s-1 -- python job.py --flag",
        "berth exec s-1 --default-port -- true",
        "berth exec --create --cluster c -- true",
        "berth env s-1 --shell fish",
        "berth env --unset",
        "berth open",
        "berth open s-1",
        "berth doctor",
        "berth doctor s-1 --query --quiet-for 70s",
        "berth completion zsh",
        "berth -q --context prod session list",
    ] {
        assert!(parses(line), "{line}");
    }
}

#[test]
fn what_is_incomplete_or_contradicts_itself_is_not_a_command() {
    for line in [
        "berth session",
        "berth session extend s-1",
        "berth extend s-1 --for 2h --until 2030-01-01T00:00:00Z",
        "berth keep-alive s-1 --for soon",
        "berth update s-1",
        "berth session update s-1 --name x --no-name",
        "berth interrupt s-1",
        "berth interrupt s-1 --all --operation a",
        "berth orgs limits acme",
        "berth catalogs test lake",
        "berth token",
        "berth token --ttl 8h",
        "berth env",
        "berth env s-1 --unset",
        "berth login --device --browser",
        "berth completion tcsh",
        "berth doctor --message-bytes 0",
        "berth audit --since yesterday",
        "berth audit --limit 0",
        "berth connect",
        "berth connect s-1 --create --cluster c",
        "berth connect --create",
        "berth connect s-1 --port 1 --socket /tmp/s",
        "berth connect s-1 --max-calls 0",
        "berth exec s-1",
        "berth exec -- true",
        "berth exec s-1 true",
        "berth exec s-1 --port 1 --default-port -- true",
    ] {
        assert!(!parses(line), "{line}");
    }
}

#[test]
fn the_help_shows_groups_and_global_options_apart() {
    let help = command_line().render_long_help().to_string();
    let example = "\n  berth session create --cluster local --wait\n  berth token issue SESSION\n";
    assert!(help.contains(example), "{help}");
    let (commands, global) = help.split_once("\nGlobal options:\n").unwrap();
    for option in [
        "--context",
        "--manager",
        "--issuer",
        "--key-file",
        "--token-file",
        "--output",
        "--quiet",
    ] {
        assert!(global.contains(option), "{option} in {help}");
    }
    let listed = |word: &str| {
        commands
            .lines()
            .any(|line| line.split_whitespace().next() == Some(word))
    };
    for group in [
        "session",
        "token",
        "operation",
        "cluster",
        "catalog",
        "org",
        "audit",
        "usage",
        "login",
        "context",
        "doctor",
        "connect",
        "exec",
    ] {
        assert!(listed(group), "{group} in {help}");
    }
    for flat in [
        "create",
        "list",
        "show",
        "describe",
        "tokens",
        "revoke",
        "ops",
        "interrupt",
        "disable-principal",
    ] {
        assert!(!listed(flat), "{flat} in {help}");
    }
    assert!(!help.contains("--bearer"), "{help}");
}

/// Every command has a description, so that no line of a help is empty.
#[test]
fn every_command_and_option_is_described() {
    fn check(command: &clap::Command, path: &str) {
        assert!(command.get_about().is_some(), "{path}");
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            assert!(arg.get_help().is_some(), "{path} {}", arg.get_id());
        }
        for below in command.get_subcommands() {
            check(below, &format!("{path} {}", below.get_name()));
        }
    }
    check(&command_line(), "berth");
}

#[test]
fn an_option_is_known_from_its_variable() {
    let line = "berth session list --manager http://m --quiet";
    let matches = command_line().try_get_matches_from(line.split(' ')).unwrap();
    let given = Given::of(&matches);
    assert!(given.contains("manager") && given.contains("quiet"));
    assert!(!given.contains("issuer"));
}
