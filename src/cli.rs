//! The command line: one file a verb. Exit codes: 0 done, 1 failed while running, 2 bad usage, 75 temporary,
//! 78 bad configuration (sysexits.h).

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigErrors};
use crate::telemetry::logs::{self, LogStyle};

mod ask;
mod ban;
mod check;
mod connections;
mod diff;
mod explain;
mod quickstart;
mod reload;
mod run;
mod upstream;

/// A layer-4 TCP and TLS passthrough proxy that routes by SNI without decrypting.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, arg_required_else_help = true)]
pub struct Cli {
    /// What the process log tells: a level, or a list of target=level.
    #[arg(long, global = true, env = "PORTCULLIS_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Form of the process log on standard error; text on a terminal, else JSON.
    #[arg(long, global = true, env = "PORTCULLIS_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogStyle>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.
    Run(run::Run),
    /// Read a configuration, run its tests, and print the order in which routes are tried.
    Check(check::Check),
    /// Let a running process read its configuration again; on any error it goes on with the old one.
    Reload(reload::Reload),
    /// Tell what a reload would change, and what needs a restart.
    Diff(diff::Diff),
    /// Keep an address or a network from connecting for a while.
    Ban(ban::Ban),
    /// Lift a ban.
    Unban(ban::Unban),
    /// List the bans.
    Bans(ban::Bans),
    /// List open connections, a JSON object each.
    Connections(connections::Connections),
    /// Close an open connection.
    Close(connections::Close),
    /// Let a running process stop accepting, and end when its connections have.
    Drain(connections::Drain),
    /// List backends, and add, remove, weigh and drain them while the process runs.
    Upstream(upstream::Upstream),
    /// Show what becomes of a connection, and why: each rule tried, the winner, the limits, the backends.
    Explain(explain::Explain),
    /// Try it out: two TLS servers and a proxy in front of them, on loopback, with certificates of their own.
    Quickstart(quickstart::Quickstart),
    /// Print the JSON schema of the configuration.
    Schema,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The configuration file.
    #[arg(
        short,
        long = "config",
        env = "PORTCULLIS_CONFIG",
        default_value = "/etc/portcullis/portcullis.toml",
        value_name = "FILE"
    )]
    file: PathBuf,
}

/// How the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked to.
    Done,
    /// It failed while running.
    Failure,
    /// It failed for now: an address that another program has (`EX_TEMPFAIL`).
    Temporary,
    /// The configuration is not valid, or its tests fail (`EX_CONFIG`).
    BadConfig,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failure => 1,
            Exit::Temporary => 75,
            Exit::BadConfig => 78,
        })
    }
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What failed, for the user to read.
    pub fn run(self) -> anyhow::Result<Exit> {
        match self.verb {
            Verb::Run(run) => {
                let log = logs::start(&self.log, self.log_format)?;
                let exit = run.run();
                log.flush();
                exit
            }
            Verb::Quickstart(quickstart) => {
                // Its own output is for a person; of the log only trouble is.
                let filter = if self.log == "info" { "warn" } else { &self.log };
                let log = logs::start(filter, self.log_format)?;
                let exit = quickstart.run();
                log.flush();
                exit
            }
            Verb::Check(check) => check.run(),
            Verb::Upstream(upstream) => upstream.run(),
            Verb::Explain(explain) => explain.run(),
            Verb::Reload(reload) => reload.run(),
            Verb::Diff(diff) => diff.run(),
            Verb::Ban(ban) => ban.run(),
            Verb::Unban(unban) => unban.run(),
            Verb::Bans(bans) => bans.run(),
            Verb::Connections(connections) => connections.run(),
            Verb::Close(close) => close.run(),
            Verb::Drain(drain) => drain.run(),
            Verb::Schema => print(&format!("{:#}\n", crate::config::json_schema())),
            Verb::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "portcullis", &mut script);
                print_bytes(&script)
            }
            Verb::Man => {
                let mut page = Vec::new();
                let mut command = Self::command();
                command.build();
                pages(&command, &mut page)?;
                print_bytes(&page)
            }
        }
    }
}

/// The page of a verb, and those of its own verbs in the same stream: nothing is referred to that is not there.
fn pages(command: &clap::Command, out: &mut Vec<u8>) -> io::Result<()> {
    clap_mangen::Man::new(command.clone()).render(out)?;
    let mut verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help");
    verbs.try_for_each(|verb| pages(verb, out))
}

/// Reads the configuration, or prints what is wrong with it.
fn load(config: &ConfigArg) -> Result<Config, Exit> {
    Config::load(&config.file).map_err(|errors| report(&errors))
}

fn report(errors: &ConfigErrors) -> Exit {
    let colour =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    complain(&errors.render(colour));
    Exit::BadConfig
}

/// Prints to standard error; that nobody reads it is no reason to panic, as `eprintln` does.
fn complain(text: &str) {
    use io::Write;
    let _ = writeln!(io::stderr(), "{text}");
}

fn print(text: &str) -> anyhow::Result<Exit> {
    print_bytes(text.as_bytes())
}

/// Prints to standard output; a reader that has gone is no failure.
fn print_bytes(bytes: &[u8]) -> anyhow::Result<Exit> {
    use io::Write;
    match io::stdout().lock().write_all(bytes).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        result => Ok(result.map(|()| Exit::Done)?),
    }
}
