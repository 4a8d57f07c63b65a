//! A `PostgreSQL` server.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Namespace, Process, poll_until, succeed};

/// A database server with files of its own, run by the user `postgres`.
#[derive(Debug)]
pub struct Postgres {
    directory: PathBuf,
    _files: tempfile::TempDir,
    process: Process,
}

impl Postgres {
    fn program(name: &str) -> Option<PathBuf> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut found: Vec<PathBuf> = versions
            .flatten()
            .map(|version| version.path().join("bin").join(name))
            .filter(|path| path.exists())
            .collect();
        found.sort();
        found.pop()
    }

    fn as_postgres(command: &mut Command, program: &Path) {
        command.args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--init-groups",
            "--",
        ]);
        command.arg(program);
    }

    /// Makes a database cluster and starts its server, open to everyone, on port 5432.
    pub fn start(namespace: &Namespace) -> Self {
        let files = tempfile::tempdir().expect("a temporary directory");
        let directory = files.path().join("data");
        std::fs::create_dir(&directory).expect("a directory");
        std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755))
            .expect("permissions");
        succeed(
            Command::new("chown")
                .args(["postgres:postgres"])
                .arg(&directory),
        );
        let mut initdb = Command::new("setpriv");
        Self::as_postgres(&mut initdb, &Self::program("initdb").expect("initdb"));
        initdb
            .arg("-D")
            .arg(&directory)
            .args(["-A", "trust", "-U", "postgres", "--no-sync"]);
        succeed(initdb.current_dir("/"));
        let access = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
        let mut rules = std::fs::File::options()
            .append(true)
            .open(directory.join("pg_hba.conf"))
            .expect("pg_hba.conf");
        rules.write_all(access.as_bytes()).expect("pg_hba.conf");
        let mut server = namespace.command("setpriv");
        Self::as_postgres(&mut server, &Self::program("postgres").expect("postgres"));
        server
            .arg("-D")
            .arg(&directory)
            .args(["-c", "listen_addresses=*", "-c", "fsync=off", "-c"])
            .arg(format!("unix_socket_directories={}", directory.display()))
            .current_dir("/");
        let process = Process::spawn(&mut server);
        poll_until("PostgreSQL to start", Duration::from_secs(20), || {
            process
                .output()
                .contains("ready to accept connections")
                .then_some(())
        });
        Self {
            directory,
            _files: files,
            process,
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown: the server ends its children.
        self.process.signal(nix::sys::signal::Signal::SIGQUIT);
        self.process.wait(Duration::from_secs(10));
        assert!(self.directory.exists(), "the files outlive the server");
    }
}
