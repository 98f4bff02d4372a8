//! The command line: what may be typed, and its help.
//!
//! Trust:     whoever types the command.
//! Never:     a password among the arguments; every process of the machine can read them.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// What `--help` says about exit codes; `docs/` repeats it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  done; for `hash verify` and `auth test`: the password matches
   1  failed, or the answer is no
   2  wrong command line; for `hash verify`: the stored string is malformed or refused
  69  an address or socket is in use, or no stack is running
  73  a file or folder cannot be made
  67  `auth lookup` and `auth explain`: there is no such user
  75  another stack holds the state folder; for `auth …`: it cannot be decided now
  77  missing rights: not root, or the state folder belongs to somebody else
  78  mistakes in the configuration
`doctor`: 0 nothing to do, 1 something does not work, 78 as above.

Environment:
  POSTERN_CONFIG     like --config
  POSTERN_STATE_DIR  like --state-dir

The configuration is the first of: --config FILE, --state-dir DIR (embedded default), $POSTERN_CONFIG,
$POSTERN_STATE_DIR (embedded default), /etc/postern/postern.toml, the embedded default in ./postern-state.";

/// What `postern doctor --help` says about exit codes.
pub(crate) const DOCTOR_EXIT_CODES: &str = "\
Exit codes:
   0  nothing to do
   1  something does not work; the last lines say what to do first
   2  wrong command line
  78  mistakes in the configuration";

/// One small gate for mail: authentication daemon, submission server, IMAP and POP3.
///
/// Without a command the stack is run.
#[derive(Debug, Parser)]
#[command(name = "postern", version, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Print data for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where configuration and state are.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PlaceArgs {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "state_dir")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of the embedded default; a configuration file names its own.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the stack in the foreground (the default).
    #[command(after_help = EXIT_CODES)]
    Run(RunArgs),
    /// Show the processes of the running stack and their figures.
    Status(StatusArgs),
    /// Make the running stack read its configuration, certificates and user files again.
    Reload,
    /// Stop the running stack in order and wait for its end.
    Stop,
    /// Walk the way of a login step by step: what was tried, as whom, what came back, and what to do first.
    #[command(after_help = DOCTOR_EXIT_CODES)]
    Doctor(crate::commands::DoctorArgs),
    /// Check and show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Manage the users of the passwd-file.
    #[command(subcommand)]
    User(UserCommand),
    /// Ask the authentication daemon: try a login, look a user up, see and clear what it remembers.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Make other programs use Postern, or take over what they have: shown as a diff, done with --apply, taken back with --undo.
    #[command(subcommand)]
    Setup(crate::commands::SetupCommand),
    /// Make and check stored passwords.
    #[command(after_help = EXIT_CODES)]
    Hash(HashArgs),
    /// The authentication daemon by itself.
    #[command(subcommand, version, display_name = "auth-daemon")]
    AuthDaemon(AuthDaemonCommand),
    /// Be Cyrus SASL's saslauthd, with its flags: see `postern saslauthd -h`.
    #[command(disable_help_flag = true)]
    Saslauthd {
        /// saslauthd's own flags.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
        flags: Vec<std::ffi::OsString>,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page per command into a folder.
    Man {
        /// The folder.
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

/// Choices for `postern status`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// Show them again and again, until `q` or ctrl-C; with --json one object per line.
    #[arg(long)]
    pub(crate) watch: bool,
    /// What each process could do if it were taken over: ids, groups, capabilities, filters, listening sockets.
    #[arg(long, conflicts_with = "watch")]
    pub(crate) security: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval, requires = "watch")]
    pub(crate) interval: f64,
    /// End after so many looks.
    #[arg(long, value_name = "N", requires = "watch")]
    pub(crate) count: Option<u64>,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("not between 0.1 and 3600".to_owned()) }
}

/// Choices for `postern run`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RunArgs {
    /// Name of the server [default: the machine's if it is a full one, else mail.localhost].
    #[arg(long, value_name = "NAME", help_heading = "Embedded default")]
    pub(crate) hostname: Option<String>,
    /// Ports are N+25, N+587, N+465, N+143, N+993, N+110, N+995 [default: 1000].
    #[arg(long, value_name = "N", help_heading = "Embedded default", value_parser = clap::value_parser!(u16).range(0..=i64::from(conf::Ports::MAX_BASE)))]
    pub(crate) port_base: Option<u16>,
    /// Addresses to listen on [default: 127.0.0.1,::1].
    #[arg(long, value_name = "ADDR[,ADDR]", help_heading = "Embedded default", value_delimiter = ',')]
    pub(crate) listen: Vec<IpAddr>,
    /// Name of the first user, made when there is none [default: your account's name, or `me`].
    #[arg(long, value_name = "NAME", help_heading = "Embedded default")]
    pub(crate) first_user: Option<String>,
    /// File with the first user's password [default: a generated password, printed once].
    #[arg(long, value_name = "FILE", help_heading = "Embedded default")]
    pub(crate) first_password_file: Option<PathBuf>,
    /// Account of all processes but the supervisor, when started as root [default: the sudo user, else nobody].
    #[arg(long, value_name = "USER")]
    pub(crate) run_as: Option<String>,
    /// Start, send and read back a message, stop; exit code 0 or 1.
    #[arg(long)]
    pub(crate) self_test: bool,
    /// How log lines look.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// What is logged: a level, or levels by part such as `auth=debug,info`.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

impl RunArgs {
    /// Whether something was chosen that only the embedded default knows.
    pub(crate) fn asks_for_embedded(&self) -> Option<&'static str> {
        [
            ("--hostname", self.hostname.is_some()),
            ("--port-base", self.port_base.is_some()),
            ("--listen", !self.listen.is_empty()),
            ("--first-user", self.first_user.is_some()),
            ("--first-password-file", self.first_password_file.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }
}

/// See [`conf::LogFormat`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// The journal where standard error is connected to it, else for people.
    Auto,
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
    /// The journal.
    Journald,
}

impl From<LogFormat> for conf::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Auto => Self::Auto,
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
            LogFormat::Journald => Self::Journald,
        }
    }
}

/// `postern config …`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Tell every mistake in the configuration and the files it names.
    Check,
    /// Print the configuration as understood, with every default filled in.
    Show {
        /// Print the defaults alone.
        #[arg(long)]
        defaults: bool,
    },
    /// Print the reference of all keys.
    Reference {
        /// Print the commented sample file instead.
        #[arg(long)]
        sample: bool,
    },
}

/// `postern user …`
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Add a user; the password is asked for.
    Add {
        /// The name, with or without the domain.
        name: String,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        which: PassdbArgs,
    },
    /// Change a user's password.
    Passwd {
        /// The name.
        name: String,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        which: PassdbArgs,
    },
    /// Remove a user. Mail stays.
    Remove {
        /// The name.
        name: String,
        #[command(flatten)]
        which: PassdbArgs,
    },
    /// List all users.
    List {
        #[command(flatten)]
        which: PassdbArgs,
    },
}

/// How a new password comes in and is kept.
#[derive(Args, Clone, Debug)]
pub(crate) struct PasswordArgs {
    /// Read the password from standard input; one trailing newline does not count.
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Scheme to keep it in.
    #[arg(long, value_name = "SCHEME", default_value = "ARGON2ID")]
    pub(crate) scheme: String,
    /// Keep SCRAM keys beside it, so that SCRAM-SHA-1 and SCRAM-SHA-256 work where `auth.mechanisms` offers them.
    #[arg(long)]
    pub(crate) scram: bool,
}

/// Which passwd-file is meant.
#[derive(Args, Clone, Debug)]
pub(crate) struct PassdbArgs {
    /// Name of the passdb whose file is meant [default: the first with driver passwd-file].
    #[arg(long, value_name = "NAME")]
    pub(crate) passdb: Option<String>,
}

/// `postern hash …`
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct HashArgs {
    /// Read a password from standard input and print it as stored in this scheme.
    #[arg(long, value_name = "SCHEME")]
    pub(crate) scheme: Option<String>,
    /// User name, for schemes that depend on it (DIGEST-MD5).
    #[arg(long, value_name = "NAME", requires = "scheme")]
    pub(crate) user: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<HashCommand>,
}

/// `postern hash verify…`
#[derive(Debug, Subcommand)]
pub(crate) enum HashCommand {
    /// Check the password on standard input against a stored string: 0 match, 1 none, 2 malformed or refused.
    Verify {
        /// User name, for schemes that depend on it (DIGEST-MD5).
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// File with the stored string; without `{SCHEME}` it is {CRYPT}.
        #[arg(long, value_name = "FILE")]
        stored_file: PathBuf,
    },
    /// Check a table: password, stored string, yes or no, source, note; separated by TAB.
    VerifyTable {
        /// The file.
        file: PathBuf,
    },
}

/// `postern auth-daemon …`
#[derive(Debug, Subcommand)]
pub(crate) enum AuthDaemonCommand {
    /// Carry an auth socket to another machine over mutual TLS; one such process at each end.
    Forward(crate::commands::ForwardArgs),
}

/// `postern auth …`
#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Try a login on a socket, as a mail program would: 0 accepted, 1 refused, 75 cannot be decided now.
    Test(AuthTestArgs),
    /// What the user databases say about a user.
    Lookup(AuthLookupArgs),
    /// The way of a user through the chains, step by step, without a password: 0 could log in, 1 would be refused.
    Explain(AuthLookupArgs),
    /// The cache of verdicts.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Who is slowed down for guessing.
    #[command(subcommand)]
    Penalty(PenaltyCommand),
}

/// `postern auth test`
#[derive(Args, Debug)]
pub(crate) struct AuthTestArgs {
    /// The name to log in with.
    pub(crate) user: String,
    /// Read the password from standard input; one trailing newline does not count.
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Service to log in to.
    #[arg(long, value_name = "SERVICE", default_value = "smtp")]
    pub(crate) service: String,
    /// Mechanism: PLAIN, LOGIN, CRAM-MD5, DIGEST-MD5, SCRAM-SHA-1, SCRAM-SHA-256, both also with -PLUS (bound to a made-up
    /// channel), APOP or ANONYMOUS.
    #[arg(long, visible_alias = "mechanism", value_name = "MECH", default_value = "PLAIN")]
    pub(crate) mech: String,
    /// Address the login is said to come from.
    #[arg(long, visible_alias = "ip", value_name = "ADDR")]
    pub(crate) rip: Option<IpAddr>,
    /// Socket to try, ours or of another daemon [default: the first listener of type client].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The socket is a saslauthd mux.
    #[arg(long)]
    pub(crate) mux: bool,
    /// Show what both sides say, line by line; what depends on the password is hidden.
    #[arg(long)]
    pub(crate) transcript: bool,
}

/// `postern auth lookup` and `explain`
#[derive(Args, Debug)]
pub(crate) struct AuthLookupArgs {
    /// The name.
    pub(crate) user: String,
    /// Service the look-up is for.
    #[arg(long, value_name = "SERVICE", default_value = "smtp")]
    pub(crate) service: String,
    /// Address the user is said to come from.
    #[arg(long, visible_alias = "rip", value_name = "ADDR")]
    pub(crate) ip: Option<IpAddr>,
    /// For `lookup`: ask this userdb socket, ours or of another daemon, instead of the running stack.
    #[arg(long, value_name = "PATH", conflicts_with = "listener")]
    pub(crate) socket: Option<PathBuf>,
    /// Listener whose chain is walked [default: the first by name].
    #[arg(long, value_name = "NAME")]
    pub(crate) listener: Option<String>,
}

/// `postern auth cache …`
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Hits, misses, entries, memory.
    Stats,
    /// Forget verdicts: of these users, or all.
    Flush {
        /// The users.
        users: Vec<String>,
    },
}

/// `postern auth penalty …`
#[derive(Debug, Subcommand)]
pub(crate) enum PenaltyCommand {
    /// Addresses and accounts with failures.
    List,
    /// Forget failures: of this address, or all.
    Clear {
        /// The address, as `list` prints it.
        peer: Option<String>,
    },
}
