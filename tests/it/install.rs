//! Installing, in front of a systemctl that only notes what it is asked: what is written, in which order, what is left alone, and what is said.

use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use authsock::install::Step;
use authsock::kernel::dir::{Dir, Problem, own_uid};
use authsock::kernel::path::{refuse_replaceable, settle};
use serde_json::Value;

use crate::ground::{AUTHSOCK, Ground, is_root, place_to_stay, put, skip_unless, text_of};

/// A stand-in for systemctl: it notes each call, and answers from files beside it.
const SYSTEMCTL: &str = r#"#!/bin/sh
state=$(dirname "$0")
echo "$*" >>"$state/calls"
[ -e "$state/away" ] && { echo "Failed to connect to bus: No medium found" >&2; exit 1; }
case "$*" in
    *--property=Version*) echo Version=252 ;;
    *show*) cat "$state/$(eval "echo \${$#}")" 2>/dev/null; exit 0 ;;
    *daemon-reload*) [ -e "$state/no-reload" ] && { echo "reload refused" >&2; exit 1; } ;;
    *enable*--now*)
        echo "UnitFileState=enabled
ActiveState=active
LoadState=loaded" >"$state/authsock.socket" ;;
esac
exit 0
"#;

struct Machine {
    ground: Ground,
    bin: PathBuf,
    _stays: tempfile::TempDir,
}

impl Machine {
    fn new() -> Option<Machine> {
        let mut ground = Ground::new();
        let stays = place_to_stay()?;
        let bin = stays.path().canonicalize().unwrap();
        // The one under test lies in a build directory.
        ground.binary = bin.join("authsock");
        // Written by other processes: whatever another test starts meanwhile would inherit a
        // descriptor that is open for writing, and the kernel would not execute the file.
        let write = |script: &str, to: &Path, what: &str| {
            let mut shell = std::process::Command::new("sh");
            assert!(shell.args(["-c", script]).arg(to).arg(what).status().unwrap().success());
        };
        write("cp \"$1\" \"$0\"", &ground.binary, AUTHSOCK);
        write("printf %s \"$1\" >\"$0\"; chmod 755 \"$0\"", &bin.join("systemctl"), SYSTEMCTL);
        Some(Machine { ground, bin, _stays: stays })
    }

    fn run<const N: usize>(&self, args: [&str; N]) -> Output {
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap());
        self.ground.authsock(args).env("PATH", path).output().unwrap()
    }

    /// What systemctl was told since the last time: not what it was asked.
    fn told(&self) -> Vec<String> {
        let path = self.bin.join("calls");
        let calls = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(&path);
        let told = calls.lines().filter(|call| !call.contains("show"));
        told.map(|call| call.strip_prefix("--user --no-pager ").unwrap().to_owned()).collect()
    }

    fn units(&self) -> PathBuf {
        self.ground.home().join(".config/systemd/user")
    }

    fn say(&self, unit: &str, properties: &str) {
        put(&self.bin.join(unit), properties, 0o644);
    }
}

/// Every file below a directory with what changes when it is touched.
fn files(dir: &Path) -> Vec<(PathBuf, u64, i64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let meta = entry.path().symlink_metadata().unwrap();
        if meta.is_dir() {
            all.extend(files(&entry.path()));
        }
        all.push((entry.path(), meta.ino(), meta.mtime_nsec()));
    }
    all.sort();
    all
}

#[test]
fn a_dry_run_says_each_step_in_its_order_and_changes_nothing() {
    let Some(machine) = Machine::new() else { return };
    let before = files(&machine.ground.home());
    let output = machine.run(["install", "--dry-run", "--json"]);
    assert!(output.status.success(), "{}", text_of(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps: Vec<&str> =
        report["steps"].as_array().unwrap().iter().map(|step| step["text"].as_str().unwrap()).collect();
    let units = machine.units();
    assert_eq!(
        steps,
        [
            format!("write {}/authsock.service (mode 0644)", units.display()),
            format!("write {}/authsock.socket (mode 0644)", units.display()),
            "run systemctl --user --no-pager daemon-reload".to_owned(),
            "run systemctl --user --no-pager enable --now authsock.socket".to_owned(),
        ]
    );
    assert_eq!((&report["dry_run"], &report["changed"]), (&true.into(), &false.into()));
    assert_eq!(files(&machine.ground.home()), before);
    assert!(machine.told().is_empty());
}

#[test]
fn the_units_have_this_program_s_path_and_a_second_time_nothing_is_touched() {
    let Some(machine) = Machine::new() else { return };
    let daemon = machine.ground.serve();
    let output = machine.run(["install"]);
    assert!(output.status.success(), "{}", text_of(&output));
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.contains(&format!("process {}", daemon.child.id())), "{words}");
    assert!(words.contains("authsock uninstall") && words.contains("enable-linger"), "{words}");
    assert_eq!(machine.told(), ["daemon-reload", "enable --now authsock.socket"]);
    let service = std::fs::read_to_string(machine.units().join("authsock.service")).unwrap();
    let program = machine.ground.binary.canonicalize().unwrap();
    assert!(service.contains(&format!("\nExecStart={} serve\n", program.display())), "{service}");
    let before = files(&machine.ground.home());
    let output = machine.run(["install"]);
    assert!(output.status.success(), "{}", text_of(&output));
    assert!(text_of(&output).contains("nothing to do"), "{}", text_of(&output));
    assert_eq!(files(&machine.ground.home()), before);
    assert!(machine.told().is_empty());
}

#[test]
fn a_program_that_moved_is_written_anew_and_only_then_a_running_service_is_restarted() {
    let Some(machine) = Machine::new() else { return };
    let _daemon = machine.ground.serve();
    assert!(machine.run(["install"]).status.success());
    machine.told();
    let loaded = |program: &Path| {
        let words = format!("ActiveState=active\nExecStart={{ path={} ; argv[]=x }}\n", program.display());
        machine.say("authsock.service", &words);
    };
    let unit = machine.units().join("authsock.service");
    let written = std::fs::read_to_string(&unit).unwrap();
    // A newer unit for the same program.
    put(&unit, &written.replace("UMask=0077\n", ""), 0o644);
    loaded(&machine.ground.binary.canonicalize().unwrap());
    assert!(machine.run(["install"]).status.success());
    assert_eq!(machine.told(), ["daemon-reload"]);
    assert_eq!(std::fs::read_to_string(&unit).unwrap(), written);
    let moved =
        written.replace(machine.ground.binary.canonicalize().unwrap().to_str().unwrap(), "/old/authsock");
    assert_ne!(moved, written);
    put(&unit, &moved, 0o644);
    loaded(Path::new("/old/authsock"));
    assert!(machine.run(["install"]).status.success());
    assert_eq!(machine.told(), ["daemon-reload", "try-restart authsock.service"]);
}

#[test]
fn an_attempt_that_failed_in_the_middle_is_brought_to_its_end_by_the_next() {
    let Some(machine) = Machine::new() else { return };
    let _daemon = machine.ground.serve();
    put(&machine.bin.join("no-reload"), "", 0o644);
    let output = machine.run(["install"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output).contains("reload refused"), "{}", text_of(&output));
    assert_eq!(machine.told(), ["daemon-reload"], "nothing is enabled that systemd has not read");
    std::fs::remove_file(machine.bin.join("no-reload")).unwrap();
    machine.say("authsock.service", "NeedDaemonReload=yes\n");
    assert!(machine.run(["install"]).status.success());
    assert_eq!(machine.told(), ["daemon-reload", "enable --now authsock.socket"]);
}

#[test]
fn a_unit_that_somebody_else_wrote_is_neither_overwritten_nor_removed() {
    for unit in ["authsock.service", "authsock.socket"] {
        let Some(machine) = Machine::new() else { return };
        std::fs::create_dir_all(machine.units()).unwrap();
        put(&machine.units().join(unit), "[Unit]\nDescription=mine\n", 0o644);
        let before = files(&machine.ground.home());
        let output = machine.run(["install"]);
        assert_eq!(output.status.code(), Some(1));
        let words = text_of(&output);
        assert!(words.contains(unit) && words.contains("move it away"), "{words}");
        let output = machine.run(["uninstall"]);
        assert!(output.status.success(), "{}", text_of(&output));
        assert!(text_of(&output).contains(unit), "{}", text_of(&output));
        assert_eq!(files(&machine.ground.home()), before);
        assert!(machine.told().is_empty());
    }
}

#[test]
fn without_a_user_manager_nothing_is_half_done_and_the_way_out_is_said() {
    let Some(machine) = Machine::new() else { return };
    put(&machine.bin.join("away"), "", 0o644);
    let before = files(&machine.ground.home());
    for verb in ["install", "uninstall"] {
        let output = machine.run([verb]);
        assert_eq!(output.status.code(), Some(1));
        let words = text_of(&output);
        assert!(words.contains("No medium found"), "{words}");
        // What else is said depends on the machine.
        let way_out = match (Path::new("/run/systemd/system").exists(), is_root()) {
            (false, _) => "not booted with systemd",
            (true, true) => "as the user whom authsock is to serve",
            (true, false) => "loginctl enable-linger",
        };
        assert!(words.contains(way_out), "{words}");
    }
    assert_eq!(files(&machine.ground.home()), before);
}

#[test]
fn a_masked_unit_is_named_before_anything_is_written() {
    for unit in ["authsock.service", "authsock.socket"] {
        let Some(machine) = Machine::new() else { return };
        machine.say(unit, "LoadState=masked\nActiveState=inactive\n");
        let before = files(&machine.ground.home());
        let output = machine.run(["install"]);
        assert_eq!(output.status.code(), Some(1));
        let words = text_of(&output);
        assert!(words.contains(&format!("systemctl --user unmask {unit}")), "{words}");
        assert_eq!(files(&machine.ground.home()), before);
    }
}

#[test]
fn a_program_in_a_build_directory_is_not_installed() {
    let Some(mut machine) = Machine::new() else { return };
    machine.ground.binary = AUTHSOCK.into();
    let output = machine.run(["install"]);
    assert_eq!(output.status.code(), Some(1));
    let words = text_of(&output);
    assert!(words.contains("build directory") && words.contains("cargo install"), "{words}");
    assert!(!machine.units().exists());
}

#[test]
fn uninstalling_leaves_what_was_there_before_and_the_configuration() {
    let Some(machine) = Machine::new() else { return };
    let before = files(&machine.ground.home());
    let daemon = machine.ground.serve();
    assert!(machine.run(["install"]).status.success());
    drop(daemon);
    // The fixture itself still listens on the old one; a stopped unit leaves one that is dead.
    std::fs::remove_file(machine.ground.init_socket()).unwrap();
    drop(crate::ground::bind_private(&machine.ground.init_socket()));
    machine.told();
    let output = machine.run(["uninstall"]);
    assert!(output.status.success(), "{}", text_of(&output));
    let names = |files: Vec<(PathBuf, u64, i64)>| files.into_iter().map(|file| file.0).collect::<Vec<_>>();
    assert_eq!(names(files(&machine.ground.home())), names(before));
    assert_eq!(std::fs::read_dir(machine.ground.runtime()).unwrap().count(), 0);
    assert_eq!(
        machine.told(),
        [
            "stop authsock.socket authsock.service",
            "daemon-reload",
            "reset-failed authsock.socket authsock.service"
        ]
    );
    std::fs::remove_file(machine.bin.join("authsock.socket")).unwrap();
    let output = machine.run(["uninstall"]);
    assert!(output.status.success() && text_of(&output).contains("nothing to do"), "{}", text_of(&output));
    assert!(machine.told().is_empty());
    machine.ground.configure("");
    let output = machine.run(["uninstall"]);
    assert!(text_of(&output).contains("--purge"), "{}", text_of(&output));
    assert!(machine.ground.home().join(".config/authsock/config.toml").exists());
    assert!(machine.run(["uninstall", "--purge"]).status.success());
    assert_eq!(std::fs::read_dir(machine.ground.home()).unwrap().count(), 0);
}

#[test]
fn a_daemon_that_a_client_started_keeps_what_it_uses() {
    let Some(machine) = Machine::new() else { return };
    machine.ground.json(["whoami"]);
    let output = machine.run(["uninstall"]);
    assert!(output.status.success(), "{}", text_of(&output));
    assert!(text_of(&output).contains("kept"), "{}", text_of(&output));
    machine.ground.json(["whoami"]);
    assert!(machine.ground.token_path().exists() && !machine.ground.log().is_empty());
}

#[test]
fn the_machine_s_units_are_for_root() {
    let Some(machine) = Machine::new() else { return };
    if is_root() {
        // Its unit would not see a program in a home.
        let output = machine.run(["install", "--system", "--dry-run"]);
        let words = text_of(&output);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("does not see") && words.contains("/usr/local/bin/authsock"), "{words}");
    } else {
        let output = machine.run(["install", "--system"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text_of(&output).contains("--system is for root"), "{}", text_of(&output));
    }
    assert_eq!(machine.run(["install", "--system", "--user"]).status.code(), Some(2));
}

#[test]
fn a_program_that_was_replaced_is_taken_up_and_a_socket_s_file_that_was_removed_is_made_anew() {
    let Some(machine) = Machine::new() else { return };
    let daemon = machine.ground.serve();
    assert!(machine.run(["install"]).status.success());
    machine.told();
    let program = machine.ground.binary.canonicalize().unwrap();
    let running = |pid: u32| {
        let words = format!(
            "ActiveState=active\nExecStart={{ path={} ; argv[]=x }}\nMainPID={pid}\n",
            program.display()
        );
        machine.say("authsock.service", &words);
    };
    running(daemon.child.id());
    assert!(machine.run(["install"]).status.success());
    assert!(machine.told().is_empty(), "the daemon runs what lies there");
    // As an upgrade does: another file by the same name.
    let next = machine.bin.join("next");
    std::fs::copy(&program, &next).unwrap();
    std::fs::rename(&next, &program).unwrap();
    assert!(machine.run(["install"]).status.success());
    assert_eq!(machine.told(), ["try-restart authsock.service"]);
    running(0);
    let aside = machine.ground.root().join("aside");
    std::fs::rename(machine.ground.init_socket(), &aside).unwrap();
    machine.run(["install", "--timeout", "1"]);
    assert_eq!(machine.told(), ["restart authsock.socket"]);
}

#[test]
fn what_has_its_place_cannot_be_named_to_install() {
    let Some(machine) = Machine::new() else { return };
    for option in ["--socket", "--token-file"] {
        for verb in ["install", "uninstall"] {
            let output = machine.run([verb, option, "/nowhere"]);
            assert_eq!(output.status.code(), Some(2));
            assert!(
                text_of(&output).contains(&format!("{option} has no meaning here")),
                "{}",
                text_of(&output)
            );
        }
    }
}

#[test]
fn a_program_with_more_rights_than_its_user_runs_no_systemctl_of_that_user_s() {
    let Some(machine) = Machine::new() else { return };
    if skip_unless(is_root(), "a set-user-ID program of another user needs root") {
        return;
    }
    const STRANGER: u32 = 54_321;
    std::os::unix::fs::chown(&machine.ground.binary, Some(STRANGER), Some(STRANGER)).unwrap();
    let set_id = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(&machine.ground.binary, set_id).unwrap();
    for verb in ["install", "uninstall", "logs"] {
        let output = machine.run([verb]);
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        assert!(text_of(&output).contains("set-user-ID"), "{}", text_of(&output));
        assert!(!machine.bin.join("calls").exists(), "{verb} asked somebody");
    }
}

#[test]
fn what_lies_behind_a_stranger_s_link_is_neither_written_nor_removed() {
    if skip_unless(is_root(), "only root can give a link away") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    let real = Dir::open_or_create(&root.join("etc/authsock"), own_uid()).unwrap();
    for name in ["config", "log", "token"] {
        real.replace(name, b"x").unwrap();
    }
    symlink(root.join("etc"), root.join("state")).unwrap();
    lchown(root.join("state"), Some(54_321), None).unwrap();
    let at = |name: &str| root.join("state/authsock").join(name);
    let steps = [
        Step::Write { path: at("unit"), text: String::new(), mode: 0o644 },
        Step::Remove { path: at("config"), and_if_empty: Vec::new() },
        Step::RemoveTree { path: root.join("state/authsock"), and_if_empty: Vec::new() },
        Step::RemoveState { state: root.join("state/authsock"), log: None, and_if_empty: Vec::new() },
        Step::RemoveState { state: root.join("none"), log: Some(at("log")), and_if_empty: Vec::new() },
        Step::RemoveDeadSocket(at("socket")),
    ];
    for step in steps {
        let error = step.carry_out().unwrap_err().to_string();
        assert!(error.contains("54321"), "{step}: {error}");
    }
    assert_eq!(real.names().unwrap().len(), 3);
    // Nor what programs left that were run, in a runtime directory that was lent.
    let Some(machine) = Machine::new() else { return };
    let victim = Dir::open_or_create(&root.join("victim/data"), own_uid()).unwrap();
    victim.replace("file", b"x").unwrap();
    let lent = root.join("lent");
    std::fs::create_dir(&lent).unwrap();
    symlink(root.join("victim"), lent.join("authsock-run")).unwrap();
    lchown(lent.join("authsock-run"), Some(54_321), None).unwrap();
    for owner in [Some(0), Some(54_321)] {
        lchown(&lent, owner, None).unwrap();
        let path = format!("{}:{}", machine.bin.display(), std::env::var("PATH").unwrap());
        let mut command = machine.ground.authsock(["uninstall"]);
        command.env("PATH", path).env("XDG_RUNTIME_DIR", &lent).output().unwrap();
        assert_eq!(victim.names().unwrap(), ["file"]);
    }
    // Nor by a home that was lent.
    std::fs::create_dir(root.join("home")).unwrap();
    lchown(root.join("home"), Some(54_321), None).unwrap();
    assert!(settle(&root.join("home/.config")).is_err());
}

#[test]
fn a_group_of_others_may_not_write_on_the_way_to_a_program_also_where_it_is_root_s() {
    if skip_unless(is_root(), "only root can give a directory to a group") {
        return;
    }
    let Some(temp) = place_to_stay() else { return };
    let dir = temp.path().canonicalize().unwrap();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o775)).unwrap();
    refuse_replaceable(&dir).unwrap();
    lchown(&dir, None, Some(54_321)).unwrap();
    let refused = refuse_replaceable(&dir).unwrap_err();
    assert!(matches!(refused.problem, Problem::OthersMayWrite { .. }), "{refused}");
    // Nor anybody whom an access list names: there the group's bits are what the list may give.
    lchown(&dir, None, Some(0)).unwrap();
    refuse_replaceable(&dir).unwrap();
    if skip_unless(give_by_access_list(&dir, 54_321), "this file system has no access lists") {
        return;
    }
    let refused = refuse_replaceable(&dir).unwrap_err();
    assert!(matches!(refused.problem, Problem::OthersMayWrite { .. }), "{refused}");
    assert!(settle(&dir.join("below")).is_err());
}

/// Lets a user write a directory by an access list (acl(5)), as setfacl(1) does.
fn give_by_access_list(dir: &Path, uid: u32) -> bool {
    use std::os::unix::ffi::OsStrExt;
    // linux/posix_acl_xattr.h: the version, then tag, permissions and id of each entry.
    let nobody = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, nobody), (2, 7, uid), (4, 5, nobody), (0x10, 7, nobody), (0x20, 5, nobody)];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).unwrap();
    let name = c"system.posix_acl_access";
    // SAFETY: both names end with NUL, and the value has the length that is said.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    set == 0
}
