//! Tests of the registry: who comes in, who ends whom, what fits, what comes back.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::kernel::process::Pid;
use crate::secret::token::Token;
use crate::session::scope::Scope;
use crate::wire::auth::Code;

/// Two users of a system daemon, each with a session below the own one.
#[test]
fn users_reach_their_own_sessions_only_and_the_owner_all() {
    let (mut registry, _) = fixture();
    let all = Scopes::default_of_a_run();
    let sessions: Vec<(Admitted, Arc<Session>)> = [2001u32, 2002]
        .into_iter()
        .map(|uid| {
            let token = verifier();
            let id = token.id();
            registry.set_user(uid, token, &all, NOW);
            let user = come(&registry, id, uid, &[uid, 1]).unwrap();
            let maker = Maker { uid, leader: process(uid + 10), cwd: None };
            let (made, _) = registry.create(&user, maker, ask("one"), NOW).unwrap();
            (user, made)
        })
        .collect();
    let (ada, bob) = (&sessions[0], &sessions[1]);
    assert!(registry.reaches(&ada.0.session, &ada.1.id) && !registry.reaches(&ada.0.session, &bob.1.id));
    assert!(!registry.reaches(&ada.0.session, &bob.0.session.id));
    assert!(registry.reaches(&registry.get(&SessionId::owner()).unwrap().clone(), &bob.1.id));
    assert_eq!(registry.len(), 2, "what stands for users is not counted");
    // The one user's token in the other's hands, in the own session, and in root's.
    assert_eq!(come(&registry, ada.0.token_id, 2002, &[9, 1]).unwrap_err().code, Code::Binding);
    assert_eq!(come(&registry, ada.0.token_id, 2001, &[8, 2011, 1]).unwrap_err().code, Code::Binding);
    assert!(come(&registry, ada.0.token_id, 0, &[9, 1]).is_ok());
    assert!(registry.end(&ada.0.session.id, EndReason::Revoked, NOW).is_empty(), "it does not end");
    // A new token: the old one is worth nothing, and the session below it stays.
    registry.set_user(2001, verifier(), &all, NOW);
    assert_eq!(come(&registry, ada.0.token_id, 2001, &[9, 1]).unwrap_err().code, Code::Revoked);
    assert!(registry.get(&ada.1.id).is_some());
    // Fewer scopes: what has more must end.
    assert!(registry.set_user_scopes(&all).is_empty());
    let mut wider = registry.set_user_scopes(&least());
    wider.sort();
    let mut both = vec![ada.1.id, bob.1.id];
    both.sort();
    assert_eq!(wider, both);
}

/// As few as a user can have.
fn least() -> Scopes {
    Scopes::of_a_user(&[]).unwrap()
}

const NOW: Millis = 1_000_000;
const UID: u32 = 1000;

fn process(pid: u32) -> Identity {
    Identity { pid: Pid(pid), pidfs: Some(u64::from(pid) + 10_000), start: None }
}

fn verifier() -> Verifier {
    Verifier::of(&Token::generate().unwrap())
}

fn fixture() -> (Registry, TokenId) {
    let owner = verifier();
    let token_id = owner.id();
    (
        Registry::new(UID, owner, NOW, Limits { sessions: 100, sessions_per_uid: 100, ..Limits::default() }),
        token_id,
    )
}

fn climb(chain: &[u32], visit: Visit<'_>) -> Option<bool> {
    chain.iter().enumerate().find_map(|(step, pid)| visit(step, &process(*pid)))
}

/// Comes in as a process whose ancestors, itself first, are `chain`.
fn come(registry: &Registry, token: TokenId, uid: u32, chain: &[u32]) -> Result<Admitted, NotAdmitted> {
    registry.admit(token, &Comer { uid, walk_up: &|visit| Ok(climb(chain, visit)) }, NOW)
}

fn ask(name: &str) -> NewSession {
    NewSession {
        name: name.parse().unwrap(),
        realm: None,
        scopes: Scopes::default_of_a_run().iter().cloned().collect(),
        binding: Binding::Tree,
        ttl: None,
        verifier: verifier(),
    }
}

fn maker(pid: u32) -> Maker {
    Maker { uid: UID, leader: process(pid), cwd: None }
}

/// Ends a leader's sessions one by one, as they are ended in turns.
fn leader_ends(registry: &mut Registry, leader: &Identity) -> Vec<Ended> {
    let mut all = Vec::new();
    loop {
        let ended = registry.end_leader(leader, 1, NOW);
        if ended.is_empty() {
            return all;
        }
        all.extend(ended);
    }
}

fn code(result: Result<Admitted, NotAdmitted>) -> Code {
    result.unwrap_err().code
}

#[test]
fn a_tree_session_is_good_at_and_below_its_leader_only() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
    assert!(come(&registry, session.token_id, UID, &[5, 1]).is_ok());
    assert!(come(&registry, session.token_id, UID, &[9, 7, 5, 1]).is_ok());
    assert_eq!(code(come(&registry, session.token_id, UID, &[6, 1])), Code::Binding);
    assert_eq!(code(come(&registry, session.token_id, UID + 1, &[5, 1])), Code::Binding);
}

#[test]
fn a_uid_session_is_good_everywhere_for_its_user_and_for_no_other() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (session, _) =
        registry.create(&asker, maker(5), NewSession { binding: Binding::Uid, ..ask("a") }, NOW).unwrap();
    assert!(come(&registry, session.token_id, UID, &[6, 1]).is_ok());
    assert_eq!(code(come(&registry, session.token_id, UID + 1, &[6, 1])), Code::Binding);
}

#[test]
fn the_owner_s_token_is_refused_at_or_below_a_living_leader() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
    assert_eq!(code(come(&registry, owner, UID, &[5, 1])), Code::Binding);
    assert_eq!(code(come(&registry, owner, UID, &[8, 5, 1])), Code::Binding);
    assert!(come(&registry, owner, UID, &[8, 1]).is_ok());
    // A session that ends before its leader sets nobody free.
    registry.end(&session.id, EndReason::Revoked, NOW);
    assert_eq!(code(come(&registry, owner, UID, &[8, 5, 1])), Code::Binding);
    assert!(leader_ends(&mut registry, &process(5)).is_empty());
    assert!(come(&registry, owner, UID, &[8, 5, 1]).is_ok());
}

#[test]
fn below_an_inner_leader_the_outer_session_s_token_is_worth_nothing() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (outer, _) = registry.create(&asker, maker(5), ask("outer"), NOW).unwrap();
    let asker = come(&registry, outer.token_id, UID, &[6, 5, 1]).unwrap();
    let narrow = NewSession { scopes: Vec::new(), ..ask("inner") };
    let (inner, _) = registry.create(&asker, maker(6), narrow, NOW).unwrap();
    assert!(come(&registry, inner.token_id, UID, &[7, 6, 5, 1]).is_ok());
    assert_eq!(code(come(&registry, outer.token_id, UID, &[7, 6, 5, 1])), Code::Binding);
    assert!(come(&registry, outer.token_id, UID, &[6, 5, 1]).is_ok(), "who leads a session keeps its own");
    assert!(come(&registry, outer.token_id, UID, &[8, 5, 1]).is_ok());
    registry.end(&inner.id, EndReason::Revoked, NOW);
    assert_eq!(code(come(&registry, outer.token_id, UID, &[7, 6, 5, 1])), Code::Binding);
}

#[test]
fn a_leader_ends_all_that_it_led() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[9]).unwrap();
    let news: Vec<bool> =
        ["a", "b"].map(|name| registry.create(&asker, maker(5), ask(name), NOW).unwrap().1).into();
    assert_eq!(news, [true, false], "one watch is enough");
    registry.create(&asker, maker(6), ask("c"), NOW).unwrap();
    assert_eq!(leader_ends(&mut registry, &process(5)).len(), 2);
    assert_eq!(registry.len(), 1);
}

#[test]
fn a_way_up_that_ends_nowhere_is_not_outside_of_a_leader_that_cannot_be_seen() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[9, 1]).unwrap();
    let unseen = Maker { leader: Identity { pid: Pid(0), pidfs: Some(77), start: None }, ..maker(9) };
    registry.create(&asker, unseen, ask("a"), NOW).unwrap();
    assert_eq!(code(come(&registry, owner, UID, &[8])), Code::Binding);
    assert!(come(&registry, owner, UID, &[8, 1]).is_ok());
}

#[test]
fn however_often_a_token_is_rotated_two_are_kept() {
    let (mut registry, owner) = fixture();
    let mut asker = come(&registry, owner, UID, &[9]).unwrap();
    for _ in 0..500 {
        let fresh = verifier();
        let id = fresh.id();
        registry.rotate(&asker, &SessionId::owner(), fresh, 1_000_000, NOW).unwrap();
        asker = come(&registry, id, UID, &[9]).unwrap();
        assert!(registry.credentials.len() <= 2 && registry.graces.len() <= 1);
    }
    assert_eq!(registry.past.tokens_remembered(), 100);
}

#[test]
fn when_the_tree_cannot_be_walked_nobody_is_let_in_on_it() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
    let comer = Comer { uid: UID, walk_up: &|_| Err(std::io::Error::other("no /proc")) };
    assert_eq!(code(registry.admit(session.token_id, &comer, NOW)), Code::Binding);
    assert_eq!(code(registry.admit(owner, &comer, NOW)), Code::Binding);
}

#[test]
fn an_ended_session_takes_its_descendants_with_it_leaves_first() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (parent, _) = registry.create(&asker, maker(5), ask("parent"), NOW).unwrap();
    let asker = come(&registry, parent.token_id, UID, &[6, 5]).unwrap();
    let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
    let asker = come(&registry, child.token_id, UID, &[7, 6, 5]).unwrap();
    let (leaf, _) = registry.create(&asker, maker(7), ask("leaf"), NOW).unwrap();
    let ended = registry.end(&parent.id, EndReason::Revoked, NOW);
    let names: Vec<_> =
        ended.iter().map(|ended| (ended.session.name.as_str(), ended.reason.as_str())).collect();
    assert_eq!(names, [("leaf", "parent_ended"), ("child", "parent_ended"), ("parent", "revoked")]);
    assert!(registry.is_empty());
    assert_eq!(code(come(&registry, leaf.token_id, UID, &[7])), Code::Revoked);
    assert!(registry.verifier(leaf.token_id).is_some(), "its holder can still prove it, to be told so");
    let kept = registry.limits().ended_kept;
    registry.end_graces(NOW + kept - 1);
    assert!(registry.verifier(leaf.token_id).is_some());
    registry.end_graces(NOW + kept);
    assert!(registry.verifier(leaf.token_id).is_none());
    assert!(registry.end(&parent.id, EndReason::Revoked, NOW).is_empty());
}

#[test]
fn a_child_is_never_wider_than_its_parent() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let wish = NewSession { ttl: Some(100), realm: Some("r".parse().unwrap()), ..ask("parent") };
    let (parent, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
    let asker = come(&registry, parent.token_id, UID, &[6, 5]).unwrap();
    let wish = NewSession { ttl: Some(1000), scopes: vec![Scope::All], ..ask("child") };
    let (child, _) = registry.create(&asker, maker(6), wish, NOW).unwrap();
    assert_eq!(child.expires, Some(NOW + 100));
    assert_eq!(child.realm, parent.realm);
    assert!(child.scopes.iter().all(|scope| parent.scopes.permits(scope)));
    assert!(!child.scopes.permits(&Scope::All));
    let wide = NewSession { binding: Binding::Uid, ..ask("wide") };
    assert_eq!(registry.create(&asker, maker(6), wide, NOW).unwrap_err(), NotMade::Binding(Binding::Uid));
    let other = NewSession { realm: Some("other".parse().unwrap()), ..ask("other") };
    assert!(matches!(registry.create(&asker, maker(6), other, NOW), Err(NotMade::Realm(_))));
    let same = NewSession { realm: Some("r".parse().unwrap()), ..ask("same") };
    assert!(registry.create(&asker, maker(6), same, NOW).is_ok());
}

#[test]
fn sessions_reach_themselves_and_their_descendants_only() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (one, _) = registry.create(&asker, maker(5), ask("one"), NOW).unwrap();
    let (two, _) = registry.create(&asker, maker(8), ask("two"), NOW).unwrap();
    let asker = come(&registry, one.token_id, UID, &[6, 5]).unwrap();
    let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
    assert!(registry.reaches(&one, &one.id) && registry.reaches(&one, &child.id));
    assert!(!registry.reaches(&one, &two.id) && !registry.reaches(&child, &one.id));
    assert!(!registry.reaches(&one, &SessionId::owner()));
    let owner = registry.get(&SessionId::owner()).unwrap();
    assert!(registry.reaches(owner, &two.id));
    assert!(registry.end(&SessionId::owner(), EndReason::Revoked, NOW).is_empty());
}

#[test]
fn capacity_at_its_edges() {
    let owner = verifier();
    let token_id = owner.id();
    let limits = Limits { sessions: 3, sessions_per_uid: 2, ..Limits::default() };
    let mut registry = Registry::new(UID, owner, NOW, limits);
    let asker = come(&registry, token_id, UID, &[99]).unwrap();
    for pid in [5, 6] {
        registry.create(&asker, maker(pid), ask("a"), NOW).unwrap();
    }
    assert_eq!(registry.create(&asker, maker(7), ask("a"), NOW).unwrap_err(), NotMade::FullForUid(2));
    let other = Maker { uid: UID + 1, ..maker(8) };
    let (last, _) = registry.create(&asker, other.clone(), ask("a"), NOW).unwrap();
    assert_eq!(registry.create(&asker, other.clone(), ask("a"), NOW).unwrap_err(), NotMade::Full(3));
    registry.end(&last.id, EndReason::Revoked, NOW);
    assert!(registry.create(&asker, other, ask("a"), NOW).is_ok());
}

#[test]
fn a_user_whose_token_was_removed_counts_as_before_and_gets_another() {
    let (mut registry, _) = fixture();
    let (first, second) = (verifier(), verifier());
    let (old, new) = (first.id(), second.id());
    registry.set_user(UID + 1, first, &least(), NOW);
    assert!(registry.has_user(UID + 1) && registry.is_empty());
    registry.forget_user(UID + 1, NOW);
    assert!(!registry.has_user(UID + 1) && registry.is_empty() && registry.users().next().is_none());
    assert!(registry.grace_of(old).is_none());
    registry.forget_user(UID + 1, NOW);
    registry.set_user(UID + 1, second, &least(), NOW);
    assert!(registry.has_user(UID + 1) && registry.is_empty() && registry.grace_of(new).is_some());
}

#[test]
fn a_process_that_led_a_session_counts_for_as_long_as_it_lives() {
    let owner = verifier();
    let token_id = owner.id();
    let limits = Limits { sessions: 3, sessions_per_uid: 2, ..Limits::default() };
    let mut registry = Registry::new(UID, owner, NOW, limits);
    let asker = come(&registry, token_id, UID, &[99]).unwrap();
    let make_and_end = |registry: &mut Registry, maker: Maker| {
        let (session, _) = registry.create(&asker, maker, ask("a"), NOW)?;
        registry.end(&session.id, EndReason::Revoked, NOW);
        Ok::<(), NotMade>(())
    };
    for pid in [5, 6, 5, 6] {
        make_and_end(&mut registry, maker(pid)).unwrap();
    }
    assert!(registry.is_empty());
    let full = NotMade::FullOfLeadersForUid(2);
    assert_eq!(make_and_end(&mut registry, maker(7)).unwrap_err(), full);
    let of_another = |pid| Maker { uid: UID + pid, ..maker(pid) };
    make_and_end(&mut registry, of_another(8)).unwrap();
    assert_eq!(make_and_end(&mut registry, of_another(9)).unwrap_err(), NotMade::FullOfLeaders(3));
    leader_ends(&mut registry, &maker(5).leader);
    make_and_end(&mut registry, maker(7)).unwrap();
    for pid in [6, 7, 8] {
        leader_ends(&mut registry, &maker(pid).leader);
    }
    assert!(registry.leaders.is_empty() && registry.leaders.of_uid(UID) == 0);
}

#[test]
fn a_session_ends_at_its_expiry_and_not_before() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[99]).unwrap();
    let wish = NewSession { ttl: Some(100), ..ask("a") };
    let (session, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
    let comer = Comer { uid: UID, walk_up: &|visit| Ok(climb(&[5, 1], visit)) };
    assert!(registry.admit(session.token_id, &comer, NOW + 99).is_ok());
    assert_eq!(code(registry.admit(session.token_id, &comer, NOW + 100)), Code::Expired);
    assert_eq!(registry.next_deadline(), Some(NOW + 100));
    assert!(registry.expired(usize::MAX, NOW + 99).is_empty());
    for id in registry.expired(usize::MAX, NOW + 100) {
        registry.end(&id, EndReason::Expired, NOW + 100);
    }
    assert_eq!(code(registry.admit(session.token_id, &comer, NOW + 100)), Code::Expired);
}

#[test]
fn a_rotated_token_connects_for_its_grace_but_makes_nothing() {
    let (mut registry, owner) = fixture();
    let before = come(&registry, owner, UID, &[99]).unwrap();
    let fresh = verifier();
    let fresh_id = fresh.id();
    registry.rotate(&before, &SessionId::owner(), fresh, 100, NOW).unwrap();
    let old = come(&registry, owner, UID, &[99]).unwrap();
    assert_eq!(old.until, Some(NOW + 100));
    assert_eq!(registry.create(&old, maker(5), ask("a"), NOW).unwrap_err(), NotMade::Rotated);
    assert_eq!(registry.create(&before, maker(5), ask("a"), NOW).unwrap_err(), NotMade::Rotated);
    let again = registry.rotate(&old, &SessionId::owner(), verifier(), 100, NOW);
    assert_eq!(again.unwrap_err(), NotMade::Rotated);
    let new = come(&registry, fresh_id, UID, &[99]).unwrap();
    assert!(registry.create(&new, maker(5), ask("a"), NOW).is_ok());
    registry.end_graces(NOW + 100);
    assert_eq!(code(come(&registry, owner, UID, &[99])), Code::Revoked);
}

#[test]
fn a_token_id_stands_for_one_session() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[99]).unwrap();
    let token = Token::generate().unwrap();
    let wish = || NewSession { verifier: Verifier::of(&token), ..ask("a") };
    registry.create(&asker, maker(5), wish(), NOW).unwrap();
    assert_eq!(registry.create(&asker, maker(6), wish(), NOW).unwrap_err(), NotMade::TokenTaken);
}

/// A registry as it is after a restart, with the same owner's token.
fn after_restart(registry: &Registry, owner: TokenId, capacity: usize) -> Registry {
    let owner = registry.verifier(owner).unwrap().clone();
    Registry::new(
        UID,
        owner,
        NOW,
        Limits { sessions: capacity, sessions_per_uid: capacity, ..Limits::default() },
    )
}

#[test]
fn a_restored_session_is_what_it_was_and_its_descendants_with_it() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let wish = NewSession { ttl: Some(100), ..ask("parent") };
    let (parent, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
    let asker = come(&registry, parent.token_id, UID, &[6, 5, 1]).unwrap();
    let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
    let records = [&parent, &child].map(|session| registry.record(&session.id).unwrap());
    let mut again = after_restart(&registry, owner, 2);
    assert_eq!(again.restore(&records[1], NOW), Err(NotRestored::Orphan), "parents come first");
    assert_eq!(again.restore(&records[0], NOW), Ok(true));
    assert_eq!(again.restore(&records[0], NOW), Err(NotRestored::Taken));
    assert_eq!(again.restore(&records[1], NOW), Ok(true));
    assert_eq!(again.len(), 2);
    assert!(come(&again, child.token_id, UID, &[7, 6, 5, 1]).is_ok());
    assert_eq!(code(come(&again, parent.token_id, UID, &[7, 6, 5, 1])), Code::Binding);
    assert_eq!(code(come(&again, owner, UID, &[7, 6, 5, 1])), Code::Binding);
    assert_eq!(again.next_deadline(), Some(NOW + 100));
    assert_eq!(again.end(&parent.id, EndReason::Revoked, NOW).len(), 2);
}

#[test]
fn a_record_that_is_wider_than_its_parent_revives_nobody() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let wish = NewSession { ttl: Some(100), realm: Some("r".parse().unwrap()), ..ask("parent") };
    let (parent, _) = registry.create(&asker, maker(5), wish, NOW).unwrap();
    let asker = come(&registry, parent.token_id, UID, &[6, 5, 1]).unwrap();
    let (child, _) = registry.create(&asker, maker(6), ask("child"), NOW).unwrap();
    let mut again = after_restart(&registry, owner, 100);
    again.restore(&registry.record(&parent.id).unwrap(), NOW).unwrap();
    let good = registry.record(&child.id).unwrap();
    type Widen = fn(&mut Session);
    let wider: [Widen; 6] = [
        |session| session.uid += 1,
        |session| session.binding = Binding::Uid,
        |session| session.realm = Realm::default(),
        |session| session.scopes = Scopes::all(),
        |session| session.expires = None,
        |session| session.expires = Some(NOW + 101),
    ];
    for (number, widen) in wider.into_iter().enumerate() {
        let mut record = good.clone();
        widen(&mut record.session);
        assert_eq!(again.restore(&record, NOW), Err(NotRestored::Wider), "{number}");
    }
    assert_eq!(again.len(), 1, "nothing has changed");
    assert_eq!(again.restore(&good, NOW), Ok(true));
}

#[test]
fn no_more_sessions_are_restored_than_fit() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[99]).unwrap();
    let records = [5, 6, 7].map(|pid| {
        let (session, _) = registry.create(&asker, maker(pid), ask("a"), NOW).unwrap();
        registry.record(&session.id).unwrap()
    });
    let mut again = after_restart(&registry, owner, 2);
    let restored = records.map(|record| again.restore(&record, NOW));
    assert_eq!(restored, [Ok(true), Ok(true), Err(NotRestored::Full(2))]);
    assert_eq!(again.leaders(), 2);
}

#[test]
fn what_was_taken_back_has_never_been() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let wish = NewSession { ttl: Some(100), ..ask("a") };
    let verifier = wish.verifier.clone();
    let (session, is_new) = registry.create(&asker, maker(5), wish, NOW).unwrap();
    registry.take_back(&session, is_new);
    assert!(registry.is_empty() && registry.leaders() == 0 && registry.next_deadline().is_none());
    assert!(registry.verifier(session.token_id).is_none());
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    assert!(registry.create(&asker, maker(5), NewSession { verifier, ..ask("a") }, NOW).is_ok());
}

#[test]
fn a_grace_ends_when_it_would_have_whether_or_not_a_daemon_ran() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
    let old = session.token_id;
    let asker = come(&registry, old, UID, &[5, 1]).unwrap();
    let fresh = verifier();
    let new = fresh.id();
    let kept = registry.rotated(&asker, &session.id, &fresh, 100, NOW).unwrap();
    registry.rotate(&asker, &session.id, fresh, 100, NOW).unwrap();
    let is = registry.record(&session.id).unwrap();
    assert_eq!(format!("{kept:?}"), format!("{is:?}"), "what is kept beforehand is what comes about");
    let mut again = after_restart(&registry, owner, 9);
    again.restore(&kept, NOW + 99).unwrap();
    assert_eq!(come(&again, old, UID, &[5, 1]).unwrap().until, Some(NOW + 100));
    assert_eq!(come(&again, new, UID, &[5, 1]).unwrap().until, None);
    let mut again = after_restart(&registry, owner, 9);
    again.restore(&kept, NOW + 100).unwrap();
    assert_eq!(code(come(&again, old, UID, &[5, 1])), Code::Revoked);
    assert!(come(&again, new, UID, &[5, 1]).is_ok());
}

#[test]
fn the_owner_s_old_token_finishes_its_grace_only_beside_the_token_that_replaced_it() {
    let (mut registry, old) = fixture();
    let asker = come(&registry, old, UID, &[99]).unwrap();
    let fresh = verifier();
    let new = fresh.id();
    registry.rotate(&asker, &SessionId::owner(), fresh, 100, NOW).unwrap();
    let record = registry.record(&SessionId::owner()).unwrap();
    let mut again = after_restart(&registry, new, 9);
    again.restore_grace(&record, NOW);
    assert_eq!(come(&again, old, UID, &[99]).unwrap().until, Some(NOW + 100));
    assert_eq!(again.next_deadline(), Some(NOW + 100));
    let (mut other, _) = fixture();
    other.restore_grace(&record, NOW);
    assert_eq!(code(come(&other, old, UID, &[99])), Code::Denied);
}

#[test]
fn a_user_s_session_comes_back_below_the_user_and_the_user_s_old_token_has_its_grace() {
    const ADA: u32 = 2001;
    let (mut registry, owner) = fixture();
    let scopes = Scopes::default_of_a_run();
    let (old, fresh) = (verifier(), verifier());
    registry.set_user(ADA, old.clone(), &scopes, NOW);
    let ada = come(&registry, old.id(), ADA, &[9, 1]).unwrap();
    let maker = Maker { uid: ADA, leader: process(5), cwd: None };
    let wish = NewSession { realm: Some("r".parse().unwrap()), ..ask("a") };
    let (session, _) = registry.create(&ada, maker, wish, NOW).unwrap();
    registry.rotate(&ada, &SessionId::of_user(ADA), fresh.clone(), 100, NOW).unwrap();
    let records = [&session.id, &SessionId::of_user(ADA)].map(|id| registry.record(id).unwrap());
    let mut again = after_restart(&registry, owner, 1);
    assert_eq!(again.restore(&records[0], NOW), Err(NotRestored::Orphan), "the user has no token any more");
    again.set_user(ADA, fresh.clone(), &scopes, NOW);
    again.restore_grace(&records[1], NOW);
    assert_eq!(again.restore(&records[0], NOW), Ok(true), "and who stands for users takes no place");
    assert_eq!(come(&again, old.id(), ADA, &[9, 1]).unwrap().until, Some(NOW + 100));
    assert_eq!(code(come(&again, fresh.id(), ADA, &[8, 5, 1])), Code::Binding);
    assert!(come(&again, session.token_id, ADA, &[8, 5, 1]).is_ok());
    // With fewer scopes for users since, what had more does not come back.
    let mut narrower = after_restart(&registry, owner, 9);
    narrower.set_user(ADA, fresh, &least(), NOW);
    assert_eq!(narrower.restore(&records[0], NOW), Err(NotRestored::Wider));
}

#[test]
fn a_session_that_ended_before_the_restart_still_holds_back_the_owner_below_its_leader() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[5, 1]).unwrap();
    let (session, _) = registry.create(&asker, maker(5), ask("a"), NOW).unwrap();
    let record = registry.record(&session.id).unwrap();
    let mut again = after_restart(&registry, owner, 9);
    assert!(again.restore_ended(&record, EndReason::Expired, NOW, true, NOW));
    assert!(again.is_empty() && again.leads(&process(5)));
    assert_eq!(code(come(&again, owner, UID, &[8, 5, 1])), Code::Binding);
    assert_eq!(code(come(&again, session.token_id, UID, &[8, 5, 1])), Code::Expired);
    leader_ends(&mut again, &process(5));
    assert!(come(&again, owner, UID, &[8, 5, 1]).is_ok());
}

/// A session below another, made by a process below that one's leader.
fn child(registry: &mut Registry, parent: &Session, new: NewSession) -> Result<Arc<Session>, NotMade> {
    let pid = parent.leader.map_or(4, |leader| leader.pid.0) + 1;
    let chain: Vec<u32> = (1..=pid).rev().collect();
    let asker = come(registry, parent.token_id, UID, &chain).unwrap();
    registry.create(&asker, maker(pid), new, NOW).map(|(session, _)| session)
}

#[test]
fn sessions_are_within_each_other_as_deep_as_the_limit_says_and_no_deeper() {
    let (mut registry, _) = fixture();
    registry.set_limits(Limits { session_depth: 3, ..Limits::default() }, NOW);
    let mut parent = registry.get(&SessionId::owner()).unwrap().clone();
    for name in ["one", "two", "three"] {
        parent = child(&mut registry, &parent, ask(name)).unwrap();
    }
    assert_eq!(child(&mut registry, &parent, ask("four")).unwrap_err(), NotMade::TooDeep(3));
    assert_eq!(registry.len(), 3, "nothing has changed");
}

#[test]
fn below_a_session_are_as_many_as_the_limit_says_at_any_depth_and_what_ends_makes_room() {
    let (mut registry, _) = fixture();
    registry.set_limits(Limits { session_descendants: 3, ..Limits::default() }, NOW);
    let owner = registry.get(&SessionId::owner()).unwrap().clone();
    let asker = come(&registry, owner.token_id, UID, &[4, 1]).unwrap();
    let top = child(&mut registry, &owner, ask("top")).unwrap();
    let middle = child(&mut registry, &top, ask("middle")).unwrap();
    let leaf = child(&mut registry, &middle, ask("leaf")).unwrap();
    child(&mut registry, &top, ask("another")).unwrap();
    let full = NotMade::TooManyBelow(3, top.id);
    assert_eq!(child(&mut registry, &top, ask("more")).unwrap_err(), full);
    assert_eq!(child(&mut registry, &middle, ask("more")).unwrap_err(), full, "it is above this one too");
    leader_ends(&mut registry, &leaf.leader.unwrap());
    let leaf = child(&mut registry, &middle, ask("leaf")).unwrap();
    leader_ends(&mut registry, &middle.leader.unwrap());
    leader_ends(&mut registry, &leaf.leader.unwrap());
    assert!(registry.get(&leaf.id).is_none());
    for name in ["a", "b", "c"] {
        child(&mut registry, &top, ask(name)).unwrap();
    }
    assert_eq!(child(&mut registry, &top, ask("d")).unwrap_err(), full);
    let unlimited = registry.create(&asker, maker(5), ask("the owner has no such limit"), NOW);
    assert!(unlimited.is_ok());
}

#[test]
fn what_has_ended_is_listed_for_its_time_and_of_each_user_as_many_as_may_live() {
    let (mut registry, owner) = fixture();
    let limits = Limits { sessions_per_uid: 2, ended_kept: 100, ..Limits::default() };
    registry.set_limits(limits, NOW);
    let asker = come(&registry, owner, UID, &[99]).unwrap();
    let mut make_and_end = |uid: u32, at: Millis| {
        let (session, _) = registry.create(&asker, Maker { uid, ..maker(uid) }, ask("a"), NOW).unwrap();
        registry.end(&session.id, EndReason::Revoked, at);
        session
    };
    let (a, b, c) = (make_and_end(7, NOW), make_and_end(7, NOW + 10), make_and_end(8, NOW + 20));
    assert!(registry.take_forgotten().is_empty());
    let ids = |registry: &Registry| -> BTreeSet<SessionId> {
        registry.ended_after(None).map(|ended| ended.session.id).collect()
    };
    assert_eq!(ids(&registry), BTreeSet::from([a.id, b.id, c.id]));
    let (third, _) = registry.create(&asker, Maker { uid: 7, ..maker(7) }, ask("a"), NOW).unwrap();
    registry.end(&third.id, EndReason::Expired, NOW + 30);
    assert_eq!(registry.take_forgotten(), [a.id], "the oldest of this user, and nobody else's");
    assert_eq!(registry.next_deadline(), Some(NOW + 110));
    registry.end_graces(NOW + 109);
    assert!(registry.ended(&b.id).is_some_and(|ended| ended.at == NOW + 10));
    registry.end_graces(NOW + 110);
    assert!(registry.ended(&b.id).is_none());
    assert_eq!(ids(&registry), BTreeSet::from([c.id, third.id]));
    assert_eq!(code(come(&registry, third.token_id, 7, &[7])), Code::Expired);
    assert_eq!(code(come(&registry, b.token_id, 7, &[7])), Code::Denied, "forgotten");
}

#[test]
fn the_end_of_a_leader_ends_all_that_it_led_and_nothing_else() {
    let (mut registry, owner) = fixture();
    let asker = come(&registry, owner, UID, &[99]).unwrap();
    let mut make = |pid: u32| registry.create(&asker, maker(pid), ask("a"), NOW).unwrap().0.id;
    let (first, second, other) = (make(5), make(5), make(6));
    registry.end(&first, EndReason::Revoked, NOW);
    let ended = leader_ends(&mut registry, &process(5));
    assert_eq!(ended.iter().map(|ended| ended.session.id).collect::<Vec<_>>(), [second]);
    assert!(registry.get(&other).is_some() && registry.leaders() == 1);
    leader_ends(&mut registry, &process(6));
    assert!(registry.leaders.is_empty() && registry.is_empty());
}

fn change(name: Option<&str>, scopes: Option<&[&str]>, ttl: Option<Millis>) -> Change {
    Change {
        name: name.map(|name| name.parse().unwrap()),
        scopes: scopes.map(|scopes| scopes.iter().map(|scope| scope.parse().unwrap()).collect()),
        ttl,
    }
}

#[test]
fn a_change_takes_away_and_never_adds_and_what_is_below_follows() {
    let (mut registry, _) = fixture();
    let owner = registry.get(&SessionId::owner()).unwrap().clone();
    let top = child(&mut registry, &owner, NewSession { ttl: Some(1000), ..ask("top") }).unwrap();
    let middle = child(&mut registry, &top, ask("middle")).unwrap();
    let leaf = child(&mut registry, &middle, NewSession { ttl: Some(100), ..ask("leaf") }).unwrap();
    let asker = come(&registry, top.token_id, UID, &[5, 1]).unwrap();
    let refused = |change: Change| registry.updated(&asker, &top.id, change, NOW).unwrap_err();
    assert!(matches!(refused(change(None, Some(&["verify"]), None)), NotMade::Scope(_)));
    assert!(matches!(refused(change(None, Some(&[">"]), None)), NotMade::Scope(_)));
    assert_eq!(refused(change(None, None, Some(1001))), NotMade::Expiry);
    let of_owner = registry.updated(&asker, &SessionId::owner(), change(Some("a"), None, None), NOW);
    assert_eq!(of_owner.unwrap_err(), NotMade::StandsForSomebody(SessionId::owner()));
    // A name alone concerns nobody else.
    let renamed = registry.updated(&asker, &top.id, change(Some("new"), None, None), NOW).unwrap();
    assert_eq!(renamed.iter().map(|session| session.name.as_str()).collect::<Vec<_>>(), ["new"]);
    let narrow = change(None, Some(&["session:create", "events:publish:a.>"]), Some(500));
    let changed = registry.updated(&asker, &top.id, narrow, NOW).unwrap();
    assert_eq!(changed.iter().map(|session| session.id).collect::<Vec<_>>(), [leaf.id, middle.id, top.id]);
    registry.update(&changed);
    let now = |id| registry.get(&id).unwrap().clone();
    let words =
        |session: &Session| session.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    for (id, end) in [(top.id, 500), (middle.id, 500), (leaf.id, 100)] {
        assert_eq!(words(&now(id)), "session:self session:create events:publish:a.>");
        assert_eq!(now(id).expires, Some(NOW + end));
    }
    assert_eq!(registry.next_deadline(), Some(NOW + 100));
    assert_eq!(registry.expired(usize::MAX, NOW + 500).len(), 3);
    assert_eq!(registry.expired(usize::MAX, NOW + 499).len(), 1);
    // With a token that was rotated away nothing is changed.
    registry.rotate(&asker, &top.id, verifier(), 1000, NOW).unwrap();
    let late = registry.updated(&asker, &top.id, change(Some("late"), None, None), NOW);
    assert_eq!(late.unwrap_err(), NotMade::Rotated);
}

#[test]
fn a_process_that_outlives_its_session_counts_below_the_ones_around_it() {
    let (mut registry, _) = fixture();
    registry.set_limits(Limits { session_descendants: 2, ..Limits::default() }, NOW);
    let owner = registry.get(&SessionId::owner()).unwrap().clone();
    let top = child(&mut registry, &owner, ask("top")).unwrap();
    let asker = come(&registry, top.token_id, UID, &[5, 1]).unwrap();
    let make_and_end = |registry: &mut Registry, pid: u32| {
        let (session, _) = registry.create(&asker, maker(pid), ask("brief"), NOW)?;
        registry.end(&session.id, EndReason::Revoked, NOW);
        Ok::<(), NotMade>(())
    };
    // One process may do so as often as it likes; each further one takes a place.
    for pid in [6, 6, 6, 7] {
        make_and_end(&mut registry, pid).unwrap();
    }
    assert_eq!(make_and_end(&mut registry, 8).unwrap_err(), NotMade::TooManyBelow(2, top.id));
    assert_eq!(make_and_end(&mut registry, 6).unwrap_err(), NotMade::TooManyBelow(2, top.id));
    leader_ends(&mut registry, &process(7));
    make_and_end(&mut registry, 8).unwrap();
    // With an ordinary end of a leader nothing is left.
    for pid in [6, 8] {
        leader_ends(&mut registry, &process(pid));
    }
    for pid in 10..20 {
        registry.create(&asker, maker(pid), ask("brief"), NOW).unwrap();
        leader_ends(&mut registry, &process(pid));
    }
}
