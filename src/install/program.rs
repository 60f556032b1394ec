//! Whether a program is one that an init system can start for years: it stays, and nobody else can put another in its place.

use std::path::{Path, PathBuf};

use super::{CannotInstall, Scope};
use crate::kernel::path;
use crate::place::{HOMES, TEMPORARY};

/// Refuses a program that will not stay, that others could replace, or that the daemon would not see.
///
/// # Errors
/// [`CannotInstall::Program`], with advice.
pub fn examine_program(program: &Path, scope: Scope) -> Result<PathBuf, CannotInstall> {
    let way_out = match scope {
        Scope::User => {
            ". Put authsock where it stays, with `cargo install --path .` or in /usr/local/bin, and run `authsock install` there"
                .to_owned()
        }
        Scope::System => format!(
            ". Put it where root alone can change it, `sudo install -m 755 {} /usr/local/bin/authsock`, and run `sudo /usr/local/bin/authsock install --system`",
            program.display()
        ),
    };
    let refuse = |path: &Path, problem: String| CannotInstall::Program {
        path: path.to_path_buf(),
        problem,
        way_out: way_out.clone(),
    };
    let real = program.canonicalize().map_err(|error| refuse(program, error.to_string()))?;
    // Cargo puts this file into every build directory.
    if let Some(build) = real.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()) {
        let problem = format!("it lies in the build directory {}, which may be emptied", build.display());
        return Err(refuse(&real, problem));
    }
    if let Some(hidden) = hidden(&real).filter(|_| scope == Scope::System && cfg!(target_os = "linux")) {
        let problem = format!("the machine's daemon does not see what lies below {hidden}");
        return Err(refuse(&real, problem));
    }
    path::refuse_replaceable(&real).map_err(|unusable| refuse(&real, unusable.to_string()))?;
    Ok(real)
}

/// The directory below which the machine's daemon sees nothing, if the path lies in one: its unit has `ProtectHome=yes`
/// and `PrivateTmp=yes`.
fn hidden(path: &Path) -> Option<&'static str> {
    HOMES.into_iter().chain(TEMPORARY).find(|hidden| path.starts_with(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dir::{Dir, own_uid};
    use std::os::unix::fs::PermissionsExt;

    /// Not below /tmp, where nothing stays.
    fn fixture() -> Option<(tempfile::TempDir, PathBuf)> {
        let temp = tempfile::tempdir_in(std::env::home_dir()?).ok()?;
        let dir = Dir::open_or_create(&temp.path().join("target/debug"), own_uid()).unwrap();
        dir.replace_with_mode("authsock", b"", 0o755).unwrap();
        let program = dir.path().join("authsock").canonicalize().unwrap();
        Some((temp, program))
    }

    #[test]
    fn a_program_in_a_build_directory_is_refused_with_advice() {
        let Some((temp, program)) = fixture() else { return };
        assert_eq!(examine_program(&program, Scope::User).unwrap(), program);
        let tag = Dir::open(&temp.path().join("target"), own_uid()).unwrap();
        tag.replace("CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55").unwrap();
        let error = examine_program(&program, Scope::User).unwrap_err().to_string();
        assert!(error.contains("build directory") && error.contains("cargo install"), "{error}");
    }

    #[test]
    fn a_directory_in_which_anybody_may_take_a_name_that_was_given_up_is_no_place_to_stay() {
        let Some((_temp, program)) = fixture() else { return };
        let open = program.parent().unwrap();
        std::fs::set_permissions(open, PermissionsExt::from_mode(0o1777)).unwrap();
        let error = examine_program(&program, Scope::User).unwrap_err().to_string();
        assert!(error.contains(&open.display().to_string()) && error.contains("others"), "{error}");
    }

    #[test]
    fn the_machine_s_daemon_is_not_given_a_program_that_it_would_not_see() {
        for path in ["/root/.cargo/bin/authsock", "/home/ada/bin/authsock", "/tmp/authsock", "/run/user/7/a"]
        {
            assert!(hidden(Path::new(path)).is_some(), "{path}");
        }
        for path in ["/usr/local/bin/authsock", "/rooted/authsock", "/opt/home/authsock"] {
            assert_eq!(hidden(Path::new(path)), None, "{path}");
        }
    }
}
