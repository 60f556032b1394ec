//! Nothing is installed: the first client starts the daemon, and everybody finds the same one.

use std::collections::HashSet;

use crate::ground::{Ground, text_of};

#[test]
fn the_first_command_starts_a_daemon_and_runs_a_program_as_a_session() {
    let ground = Ground::new();
    let output = ground.authsock(["run", "--name", "demo", "--", "authsock", "whoami", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    let who: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(who["session"]["name"], "demo");
    assert_eq!(who["session"]["parent"], "owner");
    assert_eq!(who["handshake"], "proof");
    assert_eq!(ground.json(["status"])["activation"], "on_demand");
}

#[test]
fn fifty_at_once_from_cold_end_with_one_daemon_and_one_token() {
    let ground = Ground::new();
    let children: Vec<_> = (0..50)
        .map(|number| {
            let name = format!("n{number}");
            ground
                .authsock(["run", "--name", &name, "--", "authsock", "whoami", "--json"])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let (mut daemons, mut names) = (HashSet::new(), HashSet::new());
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        let who: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        daemons.insert(who["daemon"]["pid"].as_u64().unwrap());
        names.insert(who["session"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!((daemons.len(), names.len()), (1, 50));
    assert_eq!(ground.log().matches("a new one was made").count(), 1, "{}", ground.log());
    assert_eq!(ground.log().matches("serving on").count(), 1, "{}", ground.log());
}
