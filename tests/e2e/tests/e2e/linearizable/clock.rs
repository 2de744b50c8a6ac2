//! The wall clock of each process, which can jump: a small library in front of the C library adds
//! an offset from a file. Tokens and records have wall-clock times; the monotonic clock stays.

use anyhow::{Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("clock_offset.c");

/// The library.
#[derive(Debug)]
pub(super) struct Clocks {
    dir: PathBuf,
    library: PathBuf,
}

/// The clock of one process.
#[derive(Debug)]
pub(super) struct ProcessClock {
    file: File,
    /// The process begins with these variables.
    pub(super) env: Vec<(String, String)>,
}

impl Clocks {
    /// Compiles the library in this folder.
    pub(super) fn make(dir: &Path) -> Result<Self> {
        let (source, library) = (dir.join("clock_offset.c"), dir.join("clock_offset.so"));
        std::fs::write(&source, SOURCE)?;
        let mut compiler = Command::new("cc");
        compiler.args([
            "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o",
        ]);
        let output = compiler.arg(&library).arg(&source).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "compiling clock_offset.c: {errors}");
        Ok(Self {
            dir: dir.to_owned(),
            library,
        })
    }

    pub(super) fn clock(&self, name: &str) -> Result<ProcessClock> {
        let path = self.dir.join(format!("{name}.clock"));
        let file = File::create(&path)?;
        file.write_all_at(&0_i64.to_ne_bytes(), 0)?;
        let text = |path: &Path| path.display().to_string();
        Ok(ProcessClock {
            file,
            env: vec![
                ("LD_PRELOAD".to_owned(), text(&self.library)),
                ("CLOCK_OFFSET".to_owned(), text(&path)),
            ],
        })
    }
}

impl ProcessClock {
    /// The clock jumps to the true time and this much.
    pub(super) fn jump(&self, milliseconds: i64) -> Result<()> {
        Ok(self.file.write_all_at(&milliseconds.to_ne_bytes(), 0)?)
    }
}

#[test]
fn the_clock_of_a_process_jumps() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clocks::make(dir.path()).unwrap().clock("date").unwrap();
    let seconds = || -> i64 {
        let mut date = Command::new("date");
        date.arg("+%s").envs(clock.env.iter().cloned());
        let output = date.output().unwrap().stdout;
        String::from_utf8(output).unwrap().trim().parse().unwrap()
    };
    let before = seconds();
    clock.jump(-7_200_500).unwrap();
    let moved = seconds() - before;
    assert!((-7201..-7100).contains(&moved), "{moved}");
}
