//! Completion scripts of shells.

use crate::args::CompletionShell;
use crate::{command_line, output};
use anyhow::{Context as _, Result};
use clap_complete::Shell;

pub(super) fn run(shell: CompletionShell) -> Result<()> {
    output::script(&script(shell)?);
    Ok(())
}

fn script(shell: CompletionShell) -> Result<String> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
        CompletionShell::Powershell => Shell::PowerShell,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "berth", &mut script);
    String::from_utf8(script).context("the completion script is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_gets_the_groups() {
        for (shell, word) in [
            (CompletionShell::Bash, "complete -F _berth"),
            (CompletionShell::Zsh, "#compdef berth"),
            (CompletionShell::Fish, "complete -c berth"),
            (CompletionShell::Powershell, "Register-ArgumentCompleter"),
        ] {
            let script = script(shell).unwrap();
            assert!(script.contains(word), "{shell:?}: {script}");
            for command in ["keep-alive", "doctor"] {
                assert!(script.contains(command), "{shell:?}: {command}");
            }
        }
    }
}
