//! Who may come in with a token that is proven: one function decides.
//!
//! Pure but for the walk up the process tree, which the caller passes in.

use std::io;
use std::sync::Arc;

use super::{Living, Registry};
use crate::kernel::is_exhausted;
use crate::kernel::process::Identity;
use crate::secret::token::TokenId;
use crate::session::{Binding, EndReason, Millis, Session, SessionId};
use crate::wire::auth::Code;

/// Why a proven token is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAdmitted {
    /// What the peer hears.
    pub code: Code,
    /// What the log says.
    pub reason: String,
    /// Whose token it was.
    pub session: Option<SessionId>,
}

/// Looks at one process on the way up, given how many steps it is above the one that came, and says
/// what follows; `None` goes on.
pub type Visit<'a> = &'a mut dyn FnMut(usize, &Identity) -> Option<bool>;

/// What the kernel says of the one who comes in with a token.
pub struct Comer<'a> {
    /// Its user.
    pub uid: u32,
    /// Walks from the process itself up to the top of the pid namespace, until a visit says
    /// something; an error if the way cannot be known.
    pub walk_up: &'a dyn Fn(Visit<'_>) -> io::Result<Option<bool>>,
}

/// A session let in with a token.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The session.
    pub session: Arc<Session>,
    /// Whether the token was rotated away and only finishes its grace.
    pub until: Option<Millis>,
    /// The token it came in with.
    pub token_id: TokenId,
}

/// What a token stands for, wherever it is shown.
struct Standing<'r> {
    session: &'r Arc<Session>,
    until: Option<Millis>,
}

fn refuse<T>(code: Code, session: Option<&SessionId>, reason: String) -> Result<T, NotAdmitted> {
    Err(NotAdmitted { code, reason, session: session.copied() })
}

impl Registry {
    /// Lets somebody in whose token is proven, or says why not. The order of the checks: the token
    /// stands for a living session; in time; of its user; bound to its process.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn admit(&self, token_id: TokenId, comer: &Comer<'_>, now: Millis) -> Result<Admitted, NotAdmitted> {
        let Standing { session, until } = self.stands(token_id, now)?;
        let id = Some(&session.id);
        // Root stands above users: the daemon's policy decided already whether it may come at all.
        if session.uid != comer.uid && comer.uid != 0 {
            let reason = format!("the session is of uid {}, the process of uid {}", session.uid, comer.uid);
            return refuse(Code::Binding, id, reason);
        }
        let (bound, words) = if session.stands_for_somebody() {
            let words = if session.is_owner() {
                "the owner's token was used at or below a session's leader"
            } else {
                "the user's own token was used at or below a session's leader"
            };
            (self.is_outside(comer), words)
        } else {
            (
                self.is_bound(session, comer),
                "the process is neither the session's leader nor below it, or another leader is in between",
            )
        };
        match bound {
            Ok(true) => Ok(Admitted { session: session.clone(), until, token_id }),
            Ok(false) => refuse(Code::Binding, id, words.into()),
            // That the process table cannot be read now says nothing of the process.
            Err(error) if is_exhausted(&error) => {
                refuse(Code::Busy, id, format!("the process's parents cannot be looked at now: {error}"))
            }
            Err(error) => refuse(Code::Binding, id, format!("{words}, or that cannot be known: {error}")),
        }
    }

    /// Judges a token that is proven, and that somebody else asks about, without a process: what is bound to a tree of
    /// them is good for nothing there.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn judge(&self, token_id: TokenId, now: Millis) -> Result<Admitted, NotAdmitted> {
        let Standing { session, until } = self.stands(token_id, now)?;
        if session.binding == Binding::Tree {
            let reason =
                "asked about a token that is bound to processes; `run --bind uid` makes one that is not"
                    .to_owned();
            return refuse(Code::Binding, Some(&session.id), reason);
        }
        Ok(Admitted { session: session.clone(), until, token_id })
    }

    /// The living session that a token stands for, in time.
    fn stands(&self, token_id: TokenId, now: Millis) -> Result<Standing<'_>, NotAdmitted> {
        let Some(credential) = self.credentials.get(&token_id) else {
            return match self.past.token(token_id) {
                Some(former) if former.reason == EndReason::Expired => {
                    refuse(Code::Expired, Some(&former.session), "the session has expired".into())
                }
                Some(former) if self.sessions.contains_key(&former.session) => {
                    let reason = "the token was rotated and its grace is over".into();
                    refuse(Code::Revoked, Some(&former.session), reason)
                }
                Some(former) => {
                    let reason = format!("the session has ended ({})", former.reason.as_str());
                    refuse(Code::Revoked, Some(&former.session), reason)
                }
                None => refuse(Code::Denied, None, "the session was forgotten meanwhile".into()),
            };
        };
        let Some(Living { session, .. }) = self.sessions.get(&credential.session) else {
            return refuse(Code::Denied, None, "the token stands for no session".into());
        };
        let id = Some(&session.id);
        if credential.until.is_some_and(|until| now >= until) {
            return refuse(Code::Revoked, id, "the token was rotated and its grace is over".into());
        }
        if session.expires.is_some_and(|expires| now >= expires) {
            return refuse(Code::Expired, id, "the session has expired".into());
        }
        Ok(Standing { session, until: credential.until })
    }

    /// Whether a process is at or below the session's leader, with no other leader on the way: below
    /// one, another session's token is what counts, which may be narrower. A process that leads a
    /// session itself is not bound by that one.
    fn is_bound(&self, session: &Session, comer: &Comer<'_>) -> io::Result<bool> {
        let leader = match (session.binding, &session.leader) {
            (Binding::Uid, _) => return Ok(true),
            (Binding::Tree, Some(leader)) => leader,
            (Binding::Tree, None) => return Ok(false),
        };
        let found = (comer.walk_up)(&mut |step, process| {
            if process.is_same(leader) {
                return Some(true);
            }
            (step > 0 && self.leaders.contains(process)).then_some(false)
        });
        Ok(found?.unwrap_or(false))
    }

    /// Who runs inside a session must not be the owner, although it can read the owner's file.
    fn is_outside(&self, comer: &Comer<'_>) -> io::Result<bool> {
        // Where the platform cannot walk up (macOS), no session is bound to a tree either.
        if self.leaders.is_empty() || !cfg!(target_os = "linux") {
            return Ok(true);
        }
        let mut top = 0;
        let found = (comer.walk_up)(&mut |_, process| {
            top = process.pid.0;
            self.leaders.contains(process).then_some(false)
        });
        // A way up that does not end at process 1 ended at a process that was moved into our pid
        // namespace: what is above it cannot be seen, and may be a leader that cannot be either.
        const INIT: u32 = 1;
        Ok(found?.unwrap_or(top == INIT || !self.leaders.has_unseen()))
    }
}
