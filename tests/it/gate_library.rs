//! The gate as a library: a server of one's own that only proven sessions get into, with the real client at the other end.

use std::sync::{Arc, Mutex};

use authsock::config::Config;
use authsock::gate::{self, Gate, Settings};
use authsock::kernel::dir::{Dir, own_uid};
use authsock::secret::{file, verifier::Verifier};
use authsock::session::limits::Limits;
use authsock::session::registry::Registry;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::ground::{Ground, Line, bind_private, refusal};

/// A gate on the ground's init socket, and the owner's token file.
fn put_up_a_gate(ground: &Ground) -> Gate {
    let state = Dir::open_or_create(&ground.state(), own_uid()).unwrap();
    let (token, _) = file::open_or_mint(&state, "token").unwrap();
    let limits = Limits { sessions: 9, ..Limits::default() };
    let registry = Registry::new(own_uid(), Verifier::of(&token), gate::now(), limits);
    let settings = Settings::of(&Config::default(), own_uid());
    let listener = bind_private(&ground.init_socket());
    Gate::new(vec![listener], Arc::new(Mutex::new(registry)), settings).unwrap()
}

fn on_a_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_server_of_one_s_own_gets_proven_connections_with_their_early_bytes() {
    let ground = Ground::new();
    on_a_runtime(async {
        let mut gate = put_up_a_gate(&ground);
        let client =
            ground.authsock(["call", "anything"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let connection = gate.accept().await;
        assert_eq!(connection.session().name.as_str(), "owner");
        assert_eq!(connection.peer().pid.0, client.id());
        let mut parts = connection.announce().await.unwrap();
        let mut request = String::from_utf8(std::mem::take(&mut parts.early)).unwrap();
        let (reader, mut writer) = parts.stream.split();
        if !request.ends_with('\n') {
            BufReader::new(reader).read_line(&mut request).await.unwrap();
        }
        assert!(request.contains("\"method\":\"anything\""), "{request}");
        writer.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"ours\"}\n").await.unwrap();
        let output = client.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "\"ours\"");
    });
}

#[test]
fn strangers_are_refused_while_the_gate_waits_and_it_never_yields_them() {
    let ground = Ground::new();
    on_a_runtime(async {
        let mut gate = put_up_a_gate(&ground);
        let (path, token) = (ground.init_socket(), ground.token());
        let strangers = std::thread::spawn(move || {
            for _ in 0..20 {
                let mut stranger = Line::connect(&path);
                assert_eq!(refusal(&stranger.plain(&"12".repeat(32))), "denied");
            }
            let mut last = Line::connect(&path);
            assert_eq!(last.plain(&token)["success"], true);
            // It stays until the server has looked at it.
            assert_eq!(last.rest(), b"bye");
        });
        let connection = gate.accept().await;
        assert_eq!(connection.session().name.as_str(), "owner");
        let mut parts = connection.announce().await.unwrap();
        parts.stream.write_all(b"bye").await.unwrap();
        drop(parts);
        strangers.join().unwrap();
        assert_eq!(gate.in_handshake(), 0);
    });
}

#[test]
fn accepting_can_be_given_up_and_taken_up_again_without_losing_anybody() {
    let ground = Ground::new();
    on_a_runtime(async {
        let mut gate = put_up_a_gate(&ground);
        let (path, token) = (ground.init_socket(), ground.token());
        let clients = std::thread::spawn(move || {
            for _ in 0..50 {
                let mut client = Line::connect(&path);
                assert_eq!(client.plain(&token)["success"], true);
            }
        });
        let mut seen = 0;
        while seen < 50 {
            // Dropped after every turn of the loop that is not ready at once.
            let turn = tokio::time::timeout(std::time::Duration::from_micros(50), gate.accept()).await;
            if let Ok(connection) = turn {
                let _ = connection.announce().await;
                seen += 1;
            }
        }
        clients.join().unwrap();
    });
}
