//! The property lists for launchd: what another program reads in them, filled with paths that are hard to write. They have never met a launchd.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use authsock::config::Config;
use authsock::install::launchd::{AGENT, DAEMON, Domain, Paths, fill};
use authsock::place::DESCRIPTOR_NAME;
use serde_json::Value;

use crate::ground::{has, skip_unless, text_of};

const PROGRAM: &str = "/Users/jürgen & co/<my> programs/authsock";
const SOCKET: &str = "/var/folders/zz/ä & ö/T/authsock.sock";
const LOG: &str = "/Users/jürgen & co/Library/Logs/authsock/log";

/// A property list as Python reads it: what is no plist, or no JSON, fails here.
fn read(text: &str) -> Value {
    let program =
        "import json, plistlib, sys; json.dump(plistlib.loads(sys.stdin.buffer.read()), sys.stdout)";
    let mut child = std::process::Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Both lists, each with its label; none where nobody can read them.
fn lists() -> Vec<(&'static str, Value)> {
    if skip_unless(has("python3"), "python3, which reads property lists, is not installed") {
        return Vec::new();
    }
    let paths = Paths { program: Path::new(PROGRAM), socket: Path::new(SOCKET), log: Path::new(LOG) };
    [(AGENT, Domain::Gui(501)), (DAEMON, Domain::System)]
        .map(|(label, domain)| (label, read(&fill(&domain, &paths).unwrap())))
        .into()
}

#[test]
fn a_property_list_holds_the_paths_as_they_are() {
    for (label, list) in lists() {
        assert_eq!(list["Label"], label, "the label is the file's name");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("launchd/{label}.plist"));
        assert!(file.is_file(), "{}", file.display());
        let mut words = vec![PROGRAM, "serve"];
        if label == DAEMON {
            words.push("--system");
        }
        assert_eq!(list["ProgramArguments"], Value::from(words));
        assert_eq!(list["StandardErrorPath"], LOG);
        let socket = if label == DAEMON { "/var/run/authsock.sock" } else { SOCKET };
        assert_eq!(list["Sockets"][DESCRIPTOR_NAME]["SockPathName"], socket);
        assert_eq!(list["Sockets"].as_object().unwrap().len(), 1);
        assert!(
            !list.to_string().contains("/@") && !list.to_string().contains("@\""),
            "a placeholder is left"
        );
    }
}

#[test]
fn modes_are_decimal_numbers() {
    for (label, list) in lists() {
        let mode = if label == DAEMON { 0o666 } else { 0o600 };
        assert_eq!(list["Sockets"][DESCRIPTOR_NAME]["SockPathMode"], mode, "{label}");
        assert_eq!(list["Umask"], 0o077, "{label}");
    }
}

#[test]
fn a_job_starts_on_demand_only_and_has_the_time_to_drain() {
    let drain = Config::default().drain.as_secs();
    for (label, list) in lists() {
        assert_eq!(list["RunAtLoad"], false, "{label}");
        for absent in ["KeepAlive", "EnableTransactions", "ThrottleInterval", "OnDemand"] {
            assert!(list.get(absent).is_none(), "{label}: {absent}");
        }
        assert!(list["ExitTimeOut"].as_u64().unwrap() > drain, "{label}");
        assert_eq!(list["ProcessType"], "Interactive", "{label}");
        assert_eq!(list["SoftResourceLimits"]["Core"], 0, "{label}");
        assert_eq!(list["HardResourceLimits"]["Core"], 0, "{label}");
        assert_eq!(list["LimitLoadToSessionType"].as_str(), (label == AGENT).then_some("Aqua"));
    }
}

#[test]
fn by_default_a_daemon_outlives_launchd_s_throttle() {
    // launchd does not start a job again within ten seconds of its last start.
    assert!(Config::default().idle_exit.unwrap().as_secs() > 10);
}
