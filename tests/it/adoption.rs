//! What the daemon makes of the descriptors and variables that it is started with: the systemd contract, to the letter.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::ground::{AUTHSOCK, Daemon, Ground, Line, bind_private, pass_as, refusal, text_of};

/// Runs `authsock serve` with these variables and, as descriptor 3, this; expects it to give up.
fn refused_start(ground: &Ground, variables: &[(&str, &str)], three: Option<OwnedFd>) -> String {
    let mut command = shell(ground, variables);
    if let Some(fd) = &three {
        pass_as(&mut command, fd.as_raw_fd(), 3);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
    String::from_utf8(output.stderr).unwrap()
}

/// `authsock serve` behind a shell that puts its own pid where a value says `$$`.
fn shell(ground: &Ground, variables: &[(&str, &str)]) -> Command {
    let sets: String = variables.iter().map(|(name, value)| format!("{name}={value} ")).collect();
    let mut command = ground.command("sh");
    command.args(["-c", &format!("{sets}exec \"$0\" serve"), AUTHSOCK]).stdout(Stdio::null());
    command
}

#[test]
fn without_a_socket_the_daemon_says_how_to_start_it() {
    let ground = Ground::new();
    for variables in [
        &[][..],
        &[("LISTEN_FDS", "1")],
        &[("LISTEN_PID", "1"), ("LISTEN_FDS", "1")],
        &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "0")],
        &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "1"), ("LISTEN_PIDFDID", "1")],
    ] {
        let words = refused_start(&ground, variables, None);
        assert!(
            words.contains("no socket was passed") && words.contains("systemctl --user restart"),
            "{words}"
        );
    }
}

#[test]
fn variables_that_make_no_sense_are_named() {
    let ground = Ground::new();
    for (named, variables) in [
        ("LISTEN_FDS", &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "3x")][..]),
        ("LISTEN_FDS", &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "99999")]),
        ("LISTEN_PID", &[("LISTEN_PID", "me"), ("LISTEN_FDS", "1")]),
        ("LISTEN_FDNAMES", &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "a:b")]),
    ] {
        let words = refused_start(&ground, variables, None);
        assert!(words.contains(&format!("{named}=")), "{words}");
    }
}

#[test]
fn a_descriptor_of_another_kind_is_never_taken_on_faith() {
    let ground = Ground::new();
    let announced = [("LISTEN_PID", "$$"), ("LISTEN_FDS", "1")];
    let path = |name: &str| ground.root().join(name);
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let datagram = std::os::unix::net::UnixDatagram::bind(path("datagram")).unwrap();
    let listener = bind_private(&path("listener"));
    let connected = std::os::unix::net::UnixStream::connect(path("listener")).unwrap();
    let file = std::fs::File::create(path("file")).unwrap();
    drop(listener);
    for (fd, what) in [
        (OwnedFd::from(tcp), "is not a Unix socket"),
        (datagram.into(), "not of type stream"),
        (connected.into(), "does not listen"),
        (file.into(), "is not a socket"),
    ] {
        let words = refused_start(&ground, &announced, Some(fd));
        assert!(words.contains("descriptor 3") && words.contains(what), "{words}");
    }
    let words = refused_start(&ground, &[("LISTEN_PID", "$$"), ("LISTEN_FDS", "2")], None);
    assert!(words.contains("descriptor 3") && words.contains("descriptor 4"), "{words}");
}

#[test]
#[cfg(target_os = "linux")]
fn an_adopted_socket_is_close_on_exec_and_the_variables_are_gone() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let pid = daemon.child.id();
    let flags = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/3")).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
    let flags = i32::from_str_radix(&flags, 8).unwrap();
    assert_ne!(flags & libc::O_CLOEXEC, 0, "no child of the daemon's has its listener");
    assert_ne!(flags & libc::O_NONBLOCK, 0);
}

#[test]
fn a_socket_whose_name_means_nothing_is_answered_and_complained_of() {
    let ground = Ground::new();
    let other = bind_private(&ground.runtime().join("other.sock"));
    let daemon = ground.serve_as(|command| {
        command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "authsock:docker");
        pass_as(command, other.as_raw_fd(), 4);
    });
    let mut stranger = Line::connect(&ground.runtime().join("other.sock"));
    stranger.send("{}\n");
    assert_eq!(refusal(&stranger.receive().unwrap()), "unknown_service");
    let status = ground.json(["status"]);
    assert!(status["complaints"][0].as_str().unwrap().contains("\"docker\""), "{status}");
    drop(daemon);
}

#[test]
fn the_daemon_never_binds_and_never_unlinks() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let before = std::fs::symlink_metadata(ground.init_socket()).unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("STOPPING=1");
    let mut daemon = daemon;
    assert!(daemon.child.wait().unwrap().success());
    let after = std::fs::symlink_metadata(ground.init_socket()).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&after));
}

#[test]
fn a_second_daemon_on_the_same_state_cannot_serve_says_so_and_changes_nothing() {
    let ground = Ground::new();
    let first = ground.serve();
    let token = ground.token();
    let listener = bind_private(&ground.runtime().join("second.sock"));
    let second = Daemon::start(&ground, listener, |_| {});
    let words = second.wait_for_log("cannot serve");
    assert!(words.contains("another daemon") && words.contains(&first.child.id().to_string()), "{words}");
    let mut client = Line::connect(&ground.runtime().join("second.sock"));
    assert_eq!(refusal(&client.plain(&token)), "unavailable");
    assert!(ground.authsock(["whoami"]).output().unwrap().status.success(), "the first still serves");
    assert_eq!(ground.token(), token);
    // Once the first has gone, a connection is what makes the second try again.
    drop(first);
    let end = std::time::Instant::now() + crate::ground::PATIENCE;
    loop {
        let mut client = Line::connect(&ground.runtime().join("second.sock"));
        let result = client.plain(&token);
        if result["success"] == true {
            break;
        }
        assert_eq!(refusal(&result), "unavailable");
        assert!(std::time::Instant::now() < end, "it never healed: {}", second.stderr());
        // At most one attempt a second is made.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(ground.token(), token);
}
