//! What a finding is: an id that a page explains, a level, a subject, a sentence, and the way out.

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Looked at, and as it should be.
    Ok,
    /// Good to know; or it could not be asked without a change.
    Note,
    /// It works, but not for long, or not as one would expect.
    Warning,
    /// It keeps a client from its daemon.
    Problem,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Problem => "problem",
        })
    }
}

/// What a finding is about, in the order in which a client meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Variables, and what this program runs as.
    Environment,
    /// Directories and the space in them.
    Directories,
    /// The configuration.
    Configuration,
    /// Which socket would be used.
    Socket,
    /// Which token would be shown.
    Token,
    /// systemd's units.
    Systemd,
    /// The daemon itself, if it runs.
    Daemon,
    /// What the kernel gives.
    Kernel,
    /// The process that `--pid` names.
    Process,
}

impl std::fmt::Display for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Area::Environment => "environment",
            Area::Directories => "directories",
            Area::Configuration => "configuration",
            Area::Socket => "socket",
            Area::Token => "token",
            Area::Systemd => "systemd",
            Area::Daemon => "daemon",
            Area::Kernel => "kernel",
            Area::Process => "process",
        })
    }
}

macro_rules! ids {
    ($($name:ident = $text:literal,)*) => {
        /// What was found; docs/doctor.md has the meaning of each and the way out.
        #[allow(missing_docs)] // the page documents them, and a test sees to it
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Id { $($name,)* }

        impl Id {
            /// Every one.
            pub const ALL: &[Id] = &[$(Id::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Id::$name => $text,)* }
            }
        }
    };
}

ids! {
    SetId = "set-id",
    SeveralTokens = "several-tokens",
    HomeUnset = "home-unset",
    RuntimeUnset = "runtime-unset",
    RuntimeRelative = "runtime-relative",
    RuntimeMissing = "runtime-missing",
    RuntimeUnusable = "runtime-unusable",
    RuntimeOpen = "runtime-open",
    Runtime = "runtime",
    State = "state",
    StateMissing = "state-missing",
    StateUnusable = "state-unusable",
    DiskFull = "disk-full",
    ClockBackwards = "clock-backwards",
    Configuration = "configuration",
    ConfigurationInvalid = "configuration-invalid",
    ConfigurationWritable = "configuration-writable",
    ConfigurationUnusable = "configuration-unusable",
    RootAllowed = "root-allowed",
    UnboundAllowed = "unbound-allowed",
    SocketRoute = "socket-route",
    SocketPath = "socket-path",
    Socket = "socket",
    SocketMissing = "socket-missing",
    SocketDead = "socket-dead",
    SocketLeftBehind = "socket-left-behind",
    SocketListenerUnknown = "socket-listener-unknown",
    SocketWrongKind = "socket-wrong-kind",
    SocketOwner = "socket-owner",
    SocketWritable = "socket-writable",
    SocketForbidden = "socket-forbidden",
    SocketUnusable = "socket-unusable",
    StaleSocket = "stale-socket",
    Token = "token",
    TokenNotYet = "token-not-yet",
    TokenGone = "token-gone",
    TokenInVariable = "token-in-variable",
    TokenMissing = "token-missing",
    TokenUnreadable = "token-unreadable",
    TokenLink = "token-link",
    TokenWrongKind = "token-wrong-kind",
    TokenOwner = "token-owner",
    TokenMode = "token-mode",
    TokenDirectory = "token-directory",
    TokenGarbage = "token-garbage",
    TokenDescriptor = "token-descriptor",
    SessionOver = "session-over",
    SocketWithoutToken = "socket-without-token",
    SystemdAbsent = "systemd-absent",
    ManagerUnreachable = "manager-unreachable",
    UnitsAbsent = "units-absent",
    Unit = "unit",
    UnitMissing = "unit-missing",
    UnitMasked = "unit-masked",
    UnitBroken = "unit-broken",
    UnitTriggerLimit = "unit-trigger-limit",
    UnitStartLimit = "unit-start-limit",
    UnitFailed = "unit-failed",
    UnitStopped = "unit-stopped",
    UnitDisabled = "unit-disabled",
    UnitChanged = "unit-changed",
    UnitRestarting = "unit-restarting",
    UnitStatus = "unit-status",
    ProgramMissing = "program-missing",
    ProgramHidden = "program-hidden",
    ProgramReplaceable = "program-replaceable",
    ProgramReplaced = "program-replaced",
    ConfigurationUnread = "configuration-unread",
    SocketFileGone = "socket-file-gone",
    SocketFileReplaced = "socket-file-replaced",
    NoLinger = "no-linger",
    DaemonNotRunning = "daemon-not-running",
    DaemonNotAsked = "daemon-not-asked",
    DaemonOther = "daemon-other",
    Daemon = "daemon",
    DaemonRefused = "daemon-refused",
    DaemonUnreachable = "daemon-unreachable",
    StaleToken = "stale-token",
    VersionDiffers = "version-differs",
    Complaint = "complaint",
    LimitReached = "limit-reached",
    DaemonDescriptors = "daemon-descriptors",
    InsideSession = "inside-session",
    Unbound = "unbound",
    Kernel = "kernel",
    NoPeerPidfds = "no-peer-pidfds",
    NoPidfs = "no-pidfs",
    NoProc = "no-proc",
    Hidepid = "hidepid",
    FewDescriptors = "few-descriptors",
    Process = "process",
    ProcessGone = "process-gone",
    ProcessHidden = "process-hidden",
    ProcessUser = "process-user",
    ProcessNamespace = "process-namespace",
    ProcessSession = "process-session",
    ProcessVariables = "process-variables",
    ProcessSocketMissing = "process-socket-missing",
    ProcessSocketForbidden = "process-socket-forbidden",
    ProcessTokenMissing = "process-token-missing",
    ProcessTokenForbidden = "process-token-forbidden",
    ProcessTokenOwner = "process-token-owner",
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// What was found.
    pub id: Id,
    /// How bad it is.
    pub level: Level,
    /// The path, unit, variable or process that it is about.
    pub subject: String,
    /// What is so, in a sentence.
    pub says: String,
    /// What to do; a fault always has one.
    pub remedy: Option<String>,
}

/// Everything that was looked at, in the order in which a client does.
#[derive(Debug, Clone, Default)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// What is said of units and commands is worded for a user's own daemon; the machine's is told of without `--user`,
    /// and asked with `--system`.
    pub(super) fn is_of_the_machine_s_units(&mut self) {
        /// What is said of a user's daemon, and what of the machine's.
        const WORDS: [(&str, &str); 7] = [
            ("systemctl --user", "systemctl"),
            ("systemd-analyze --user", "systemd-analyze"),
            ("the user's manager", "the machine's manager"),
            ("authsock token", "authsock --system token"),
            ("authsock logs", "authsock --system logs"),
            ("authsock session", "authsock --system session"),
            ("authsock install`", "sudo authsock install --system`"),
        ];
        let reworded = |words: &str| {
            WORDS.iter().fold(words.to_owned(), |words, (user, machine)| words.replace(user, machine))
        };
        for finding in &mut self.findings {
            finding.subject = reworded(&finding.subject);
            finding.says = reworded(&finding.says);
            finding.remedy = finding.remedy.as_deref().map(reworded);
        }
    }

    /// What was found.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many findings are of this level.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    pub(super) fn area(&mut self, area: Area) -> InArea<'_> {
        InArea { report: self, area }
    }

    /// By area; within one as they were found.
    pub(super) fn in_order(mut self) -> Report {
        self.findings.sort_by_key(|finding| finding.area);
        self
    }
}

/// A report that is being written, in one area of it.
pub(super) struct InArea<'a> {
    report: &'a mut Report,
    area: Area,
}

impl InArea<'_> {
    fn add(
        &mut self,
        level: Level,
        id: Id,
        subject: impl std::fmt::Display,
        says: impl Into<String>,
        remedy: Option<String>,
    ) {
        let (area, subject, says) = (self.area, subject.to_string(), says.into());
        self.report.findings.push(Finding { area, id, level, subject, says, remedy });
    }

    pub(super) fn ok(&mut self, id: Id, subject: impl std::fmt::Display, says: impl Into<String>) {
        self.add(Level::Ok, id, subject, says, None);
    }

    pub(super) fn note(&mut self, id: Id, subject: impl std::fmt::Display, says: impl Into<String>) {
        self.add(Level::Note, id, subject, says, None);
    }

    pub(super) fn warning(
        &mut self,
        id: Id,
        subject: impl std::fmt::Display,
        says: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Warning, id, subject, says, Some(remedy.into()));
    }

    pub(super) fn problem(
        &mut self,
        id: Id,
        subject: impl std::fmt::Display,
        says: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Problem, id, subject, says, Some(remedy.into()));
    }
}
