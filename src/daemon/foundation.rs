//! What a daemon stands on: configuration, state directory, lock, token, the sessions' records. It is all there or the daemon cannot serve.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::store::Store;
use super::users::Users;
use super::watched::Watched;
use crate::client::{self, Client};
use crate::config::{BadConfig, Config};
use crate::init::Starter;
use crate::kernel::dir::{self, Dir, Lock, Unusable, own_uid};
use crate::kernel::socket::inode_at;
use crate::place::{self, Places, service_runtime_directory, var};
use crate::secret::file::{self, BadTokenFile, Origin};
use crate::secret::token::TokenId;
use crate::secret::verifier::Verifier;
use crate::session::scope::{self, BadScopes, Scopes};

/// How long a daemon waits for the one before it to let go of the state directory.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it looks. flock(2) has no deadline, and a thread that waits could not be called back.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why a daemon cannot serve: what its clients hear as `unavailable`, its status and log in full.
#[derive(Debug, thiserror::Error)]
pub enum CannotServe {
    /// The configuration is broken.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The state directory cannot be used.
    #[error("state directory {0}")]
    State(#[from] Unusable),
    /// The token's file cannot be used.
    #[error("token {0}")]
    Token(#[from] BadTokenFile),
    /// The daemon of the whole machine gives files to users.
    #[error(
        "a daemon of the whole machine runs as root, not as uid {0}; without --system it is the user's own"
    )]
    NotRoot(u32),
    /// The unit loads a directory as the credential: of each file in it systemd makes one of another name.
    #[error("{path} is there, but no authsock.token: LoadCredential=authsock.token: names a directory; name the file that holds the token", path = .0.display())]
    CredentialDirectory(PathBuf),
    /// Another daemon has the state directory.
    #[error("another daemon{} has the state directory {path}{advice}", .holder.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it, as far as the lock says.
        holder: Option<u32>,
        /// What may help.
        advice: String,
    },
}

/// What a daemon stands on.
pub(super) struct Foundation {
    pub(super) config: Config,
    pub(super) state: Dir,
    pub(super) owner: Verifier,
    pub(super) lock: Lock,
    pub(super) store: Store,
    /// The users' tokens, if this is the daemon of the whole machine.
    pub(super) users: Option<Users>,
    /// Whether the service's credential says what the owner's token is.
    pub(super) has_credential: bool,
    pub(super) ground: Ground,
}

/// What a daemon holds, by the names that clients and other daemons know it by: state directory, lock and
/// owner's token.
pub(super) struct Ground {
    held: Vec<(PathBuf, Option<(u64, u64)>)>,
    token: PathBuf,
    watched: Watched,
}

impl Ground {
    fn of(state: &Dir, is_system: bool) -> Ground {
        let below = |name: &str| state.path().join(name);
        let token = below(place::TOKEN_FILE);
        let mut held = vec![state.path().to_path_buf(), below(place::LOCK_FILE), below(place::SESSIONS_DIR)];
        if is_system {
            held.extend([below(place::USERS_DIR), below(place::VERIFIERS_DIR)]);
        }
        let watched = Watched::of(held.iter().chain([&token]).map(PathBuf::as_path));
        let held = held.into_iter().map(|path| (path.clone(), inode_at(&path))).collect();
        Ground { held, token, watched }
    }

    /// Waits until it may have been taken away. Cancel safe.
    pub(super) async fn stirred(&mut self) {
        self.watched.stirred().await;
    }

    /// What has been removed, or replaced by somebody else's. The token is the one that this daemon goes by, `own`, which
    /// is another file after each rotation. A file that holds none, or cannot be trusted, is for its user to mend.
    pub(super) fn missing(&self, own: Option<TokenId>) -> Option<&Path> {
        let other = self.held.iter().find(|(path, inode)| inode_at(path) != *inode).map(|(path, _)| path);
        let is_other = || match file::read_as_client(&self.token) {
            Ok(token) => own.is_some_and(|own| token.id() != own),
            Err(BadTokenFile::Unusable(unusable)) => unusable.is_missing(),
            Err(_) => false,
        };
        other.or_else(|| is_other().then_some(&self.token)).map(PathBuf::as_path)
    }
}

impl Foundation {
    /// Lays it, in this order: configuration, directory, lock, token, records. What is there is kept. A daemon
    /// that answers clients meanwhile has no `patience` to wait for one that is ending.
    pub(super) async fn lay(
        starter: Starter,
        places: &Places,
        config: Option<&Path>,
        patience: Duration,
    ) -> Result<Foundation, CannotServe> {
        if places.is_system() && own_uid() != 0 {
            return Err(CannotServe::NotRoot(own_uid()));
        }
        let config = load_config(places, config)?;
        // Only a daemon that was started as one may believe this variable.
        let given = match starter {
            Starter::Init => service_runtime_directory(&place::process_env),
            // A client names one, whatever is in its name.
            Starter::Client => place::process_env(var::RUNTIME_DIRECTORY).map(PathBuf::from),
        };
        let state_path = given.unwrap_or_else(|| places.state().to_path_buf());
        let state = Dir::open_or_create(&state_path, own_uid())?;
        let mut lock = take_lock(starter, places, &state, patience).await?;
        let _ = lock.note_holder(std::process::id());
        // A daemon that was killed may have left a token that nobody goes by.
        state.sweep_unfinished()?;
        let credential = credential(starter)?;
        let (token, origin) = match &credential {
            Some(credential) => file::install_credential(&state, place::TOKEN_FILE, credential)?,
            None => file::open_or_mint(&state, place::TOKEN_FILE)?,
        };
        let path = state_path.join(place::TOKEN_FILE);
        match origin {
            Origin::Kept => tracing::debug!("the token in {} is kept", path.display()),
            Origin::Minted => tracing::info!(
                authsock_event = "token_minted",
                "there was no token in {}: a new one was made",
                path.display()
            ),
            Origin::Installed => tracing::info!(
                authsock_event = "token_installed",
                "{} holds the token of the service's credential now",
                path.display()
            ),
            Origin::Remade => tracing::warn!(
                authsock_event = "token_remade",
                "{} held no token (64 hexadecimal digits): a new one was made, and every client's credential just became invalid",
                path.display()
            ),
        }
        let users = if places.is_system() { Some(Users::open(&state)?) } else { None };
        let store = Store::open(&state)?;
        let ground = Ground::of(&state, places.is_system());
        Ok(Foundation {
            config,
            state,
            owner: Verifier::of(&token),
            lock,
            users,
            store,
            has_credential: credential.is_some(),
            ground,
        })
    }
}

/// The credential of the service that says what the owner's token is, if an init system gave one. Others are none of
/// ours: only one of this name counts, and of a directory systemd makes one of another name for each file in it
/// (systemd.exec(5), LoadCredential=).
fn credential(starter: Starter) -> Result<Option<PathBuf>, CannotServe> {
    let given = place::service_credential(&place::process_env).filter(|_| starter == Starter::Init);
    let Some(own) = given else { return Ok(None) };
    if own.symlink_metadata().is_ok() {
        return Ok(Some(own));
    }
    let prefix = format!("{}_", place::CREDENTIAL_FILE);
    let entries = own.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let is_part = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    match entries.map(|entry| entry.path()).find(|path| path.file_name().is_some_and(is_part)) {
        Some(part) => Err(CannotServe::CredentialDirectory(part)),
        None => Ok(None),
    }
}

/// Reads the configuration that a daemon goes by.
pub(super) fn load_config(places: &Places, given: Option<&Path>) -> Result<Config, BadConfig> {
    let config = Config::load(places.config(), given)?;
    user_scopes(&config).map_err(|error| BadConfig::Invalid {
        path: given.or(places.config()).map(Path::to_path_buf).unwrap_or_default(),
        problem: format!("policy.scopes: {error}"),
    })?;
    Ok(config)
}

/// What the session of each user of a system daemon may do.
pub(super) fn user_scopes(config: &Config) -> Result<Scopes, BadScopes> {
    match &config.scopes {
        None => Ok(Scopes::default_of_a_run()),
        Some(scopes) => Ok(Scopes::of_a_user(&scope::read(scopes)?)?),
    }
}

/// The lock on the state directory. A daemon of an init system asks one that a client started to
/// retire; otherwise it waits for one that is just ending.
async fn take_lock(
    starter: Starter,
    places: &Places,
    state: &Dir,
    mut patience: Duration,
) -> Result<Lock, CannotServe> {
    if let Some(lock) = state.try_lock(place::LOCK_FILE)? {
        return Ok(lock);
    }
    let mut advice = match starter {
        Starter::Init => "; it does not end, and is not one that could be asked to: see who it is, and stop it".to_owned(),
        // Had its socket been where clients look, none would have been started.
        _ => "; the file of its socket is not where clients look: `systemctl --user restart authsock.socket` if systemd started it; `authsock doctor` says more".to_owned(),
    };
    if starter == Starter::Init && !places.is_system() {
        match ask_to_retire(places).await {
            Ok(()) => {
                tracing::info!(authsock_event = "takeover", "a daemon that a client had started retires");
                patience = LOCK_TIMEOUT;
                advice = "; it was asked to retire, and has not ended yet".to_owned();
            }
            Err(reason) => advice = format!("; it would not retire ({reason})"),
        }
    }
    let deadline = Instant::now() + patience;
    loop {
        if let Some(lock) = state.try_lock(place::LOCK_FILE)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            let holder = dir::noted_holder(&state.path().join(place::LOCK_FILE));
            return Err(CannotServe::Locked { path: state.path().to_path_buf(), holder, advice });
        }
        sleep(LOCK_PAUSE).await;
    }
}

/// Proves the owner's token to the daemon that a client started, and asks it to go.
async fn ask_to_retire(places: &Places) -> Result<(), String> {
    let options = client::Options {
        socket: Some(places.ondemand_socket()),
        token_file: Some(places.owner_token()),
        timeout: Some(LOCK_TIMEOUT),
        ..client::Options::default()
    };
    let mut client = Client::connect(&options).await.map_err(|error| error.to_string())?;
    client.call("daemon.retire", None).await.map_err(|error| error.to_string())?;
    Ok(())
}
