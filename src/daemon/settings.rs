//! What a configuration comes to on this machine: as many places as there are descriptors for, accounts by their numbers, and what cannot be followed.

use std::io;

use crate::config::{Account, Config};
use crate::gate::{Others, Settings};
use crate::kernel::accounts;
use crate::kernel::dir::own_uid;
use crate::kernel::peer::overflow_uid;

/// Descriptors that are kept for everything but connections.
const DESCRIPTORS_RESERVED: usize = 64;

/// What a configuration says, as far as there are descriptors for it: a connection takes two (itself
/// and its peer's pidfd), and one of four places is for those who are not through yet: four fifths of these for
/// those in the handshake, the rest for those who are being refused unheard. `limits` and
/// `handshake` say less where the process may open less. Says too what cannot be followed.
pub(super) fn settings(config: &Config, descriptors: usize, is_system: bool) -> (Settings, Vec<String>) {
    let places = descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(8) / 2;
    let mut settings = Settings::of(config, own_uid());
    let mut complaints = Vec::new();
    if is_system {
        settings.policy.others = Some(others(config, &mut complaints));
    } else if !config.users.is_empty() || !config.groups.is_empty() || config.scopes.is_some() {
        complaints.push(
            "policy.users, policy.groups and policy.scopes are for the daemon of the whole machine; a user's own serves this user only".to_owned(),
        );
    }
    settings.policy.verifiers = users("policy.verifiers", &config.verifiers, &mut complaints);
    let before = settings.clone();
    for (limit, most) in [
        (&mut settings.unauthenticated, (places / 5).max(1)),
        (&mut settings.connections, places - places / 4),
    ] {
        *limit = (limit.0.min(most), limit.1.min(most));
    }
    if settings != before {
        complaints.push(format!(
            "this process may open {descriptors} descriptors only (RLIMIT_NOFILE): at most {} connections, and {} in the handshake",
            settings.connections.0, settings.unauthenticated.0
        ));
    }
    (settings, complaints)
}

/// Whom a system daemon serves.
fn others(config: &Config, complaints: &mut Vec<String>) -> Others {
    Others {
        uids: users("policy.users", &config.users, complaints),
        gids: numbers("policy.groups", &config.groups, accounts::gid_of, complaints),
    }
}

/// The numbers of users.
fn users(key: &str, accounts: &[Account], complaints: &mut Vec<String>) -> Vec<u32> {
    let uids = numbers(key, accounts, accounts::uid_of, complaints);
    // On macOS no number stands for others.
    if cfg!(target_os = "linux") && uids.contains(&overflow_uid()) {
        let uid = overflow_uid();
        complaints.push(format!(
            "{key} names the user {uid}, which stands for all without a number and is never let in: run that program as a user of its own"
        ));
    }
    uids
}

/// The numbers of accounts. One that does not exist keeps nobody else from being served.
fn numbers(
    key: &str,
    accounts: &[Account],
    look_up: fn(&str) -> io::Result<Option<u32>>,
    complaints: &mut Vec<String>,
) -> Vec<u32> {
    let mut found = Vec::new();
    for account in accounts {
        let number = match account {
            Account::Number(number) => Ok(Some(*number)),
            Account::Name(name) => look_up(name),
        };
        match number {
            Ok(Some(number)) => found.push(number),
            Ok(None) => complaints.push(format!("{key} names {account}, which does not exist")),
            Err(error) => complaints.push(format!("{key}: {account} cannot be looked up: {error}")),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn who_stands_for_all_without_a_number_is_complained_of() {
        let users = |numbers: &[u32]| numbers.iter().map(|number| Account::Number(*number)).collect();
        let nobody = overflow_uid();
        let config = Config { verifiers: users(&[nobody]), users: users(&[1, nobody]), ..Config::default() };
        let (_, complaints) = settings(&config, 524_288, true);
        for key in ["policy.users", "policy.verifiers"] {
            let words = format!("{key} names the user {nobody}, which stands for all without a number");
            assert!(complaints.iter().any(|complaint| complaint.starts_with(&words)), "{complaints:?}");
        }
        let config = Config { verifiers: users(&[1]), users: users(&[2]), ..Config::default() };
        assert_eq!(settings(&config, 524_288, true).1, Vec::<String>::new());
    }

    #[test]
    fn no_more_connections_are_admitted_than_there_are_descriptors_for() {
        let config = Config::default();
        for descriptors in [0, 64, 80, 256, 1024, 4096, 20_000, 524_288] {
            let (settings, complaints) = settings(&config, descriptors, false);
            let (connections, waiting) = (settings.connections.0, settings.unauthenticated.0);
            assert!(connections >= 1 && waiting >= 1, "{descriptors}");
            let needed = 2 * (connections + waiting + waiting.div_ceil(4)) + DESCRIPTORS_RESERVED;
            assert!(needed <= descriptors || descriptors <= 80, "{descriptors}: {needed}");
            assert_eq!(
                complaints.is_empty(),
                connections == config.connections && waiting == config.unauthenticated
            );
        }
    }
}
