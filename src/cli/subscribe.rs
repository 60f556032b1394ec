//! `authsock subscribe`: events line by line, those that are kept and those that come, for as long as somebody reads them.

use std::future::pending;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::os::fd::AsFd;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::args::{Common, Subscribe};
use super::output::Output;
use super::{Failure, client_options, exit, logging, runtime};
use crate::client::events::{Event, Subscribed, Unsubscribed};
use crate::client::follow::{FollowError, Heard};
use crate::client::{CallError, Client, Follower, Gap, Start, Subscription, Told};
use crate::kernel::{clock, fds};
use crate::wire::event::GapReason;
use crate::wire::text::{in_brackets, printable};

pub(super) fn subscribe(common: &Common, args: &Subscribe, output: &Output) -> Result<(), Failure> {
    logging::for_a_client();
    let start = args.since.or(args.lines);
    let subscription = Subscription {
        subjects: args.subjects.iter().map(ToString::to_string).collect(),
        start: start.unwrap_or_default(),
        realm: args.realm.clone(),
    };
    runtime()?.block_on(async {
        let shown = async {
            if args.follow || start.is_none() {
                follow(common, subscription, output).await
            } else {
                show_kept(common, &subscription, output).await
            }
        };
        tokio::select! {
            shown = shown => shown,
            // As when the next line finds it out.
            () = reader_leaves() => Ok(()),
        }
    })
}

/// Shows what is kept, and ends.
async fn show_kept(common: &Common, subscription: &Subscription, output: &Output) -> Result<(), Failure> {
    let mut client = Client::connect(&client_options(common)).await?;
    let subscribed = client.subscribe(subscription).await?;
    note_nothing_kept(subscription.start, &subscribed, output);
    if output.is_json() && say(output, &Line::Subscribed(&subscribed))?.is_break() {
        return Ok(());
    }
    let (mut gaps, mut events) = (u64::from(subscribed.gap), subscribed.replayed);
    while gaps > 0 || events > 0 {
        let patience = client.timeout();
        let told = timeout(patience, client.next()).await.map_err(|_| CallError::Timeout(patience))??;
        if show(output, &told)?.is_break() {
            return Ok(());
        }
        match told {
            Told::Gap(_) => gaps = gaps.saturating_sub(1),
            Told::Event(_) => events = events.saturating_sub(1),
            // What was still to come does not come any more.
            Told::Unsubscribed(_) => return Err(FollowError::NothingLeft.into()),
        }
    }
    Ok(())
}

/// Shows what comes, whatever becomes of the daemon meanwhile.
async fn follow(common: &Common, subscription: Subscription, output: &Output) -> Result<(), Failure> {
    let (subjects, start) = (subscription.subjects.join(", "), subscription.start);
    let (mut follower, subscribed) = Follower::begin(client_options(common), subscription).await?;
    note_nothing_kept(start, &subscribed, output);
    output.note(&format!("subscribed to {subjects}"));
    let mut heard = Heard::Subscribed(subscribed);
    // Each attempt is a line for programs. People are told that it is gone, and that it is back, or why it is given up.
    let mut is_away = false;
    loop {
        let then = match &heard {
            Heard::Subscribed(subscribed) => {
                if is_away {
                    output.note("the daemon is back: subscribed again");
                }
                is_away = false;
                match output.is_json() {
                    true => say(output, &Line::Subscribed(subscribed))?,
                    false => ControlFlow::Continue(()),
                }
            }
            Heard::Told(told) => show(output, told)?,
            Heard::Away { why, pause } => {
                if !is_away {
                    output.note(&format!("{why}; trying to come back"));
                }
                is_away = true;
                match output.is_json() {
                    true => {
                        let pause_seconds = pause.as_secs();
                        say(output, &Line::Away { why: why.to_string(), pause_seconds })?
                    }
                    false => ControlFlow::Continue(()),
                }
            }
        };
        if then.is_break() {
            return Ok(());
        }
        heard = follower.next().await?;
    }
}

/// Says why what is kept does not come, where nothing is: who asked for it would take silence for "nobody said
/// anything".
fn note_nothing_kept(start: Start, subscribed: &Subscribed, output: &Output) {
    let asks_for_kept = matches!(start, Start::Kept | Start::Last(1..) | Start::AfterNumber(0));
    // All that is kept comes after the newest event.
    if !asks_for_kept || subscribed.replayed > 0 || subscribed.after != subscribed.seq {
        return;
    }
    output.note(match subscribed.seq {
        0 => {
            "no event came here yet; what was kept before ended with the daemon that kept it, which exits when it is idle (lifecycle.idle_exit_seconds), or with its realm (events.realms_per_uid)"
        }
        _ => {
            "this daemon keeps no event here that came: its configuration says so (events.kept), or the newest one was too long (events.kept_bytes)"
        }
    });
}

/// Waits until nobody reads standard output any more: a subscriber whom nobody hears would be counted by every publisher,
/// until the next event. For ever where the kernel does not tell (a file, say). A terminal tells by a signal.
async fn reader_leaves() {
    if io::stdout().is_terminal() {
        return pending().await;
    }
    let (leaves, left) = oneshot::channel();
    // It waits for as long as this program runs, and goes with it.
    let watch = move || {
        if fds::wait_until_unread(io::stdout().as_fd()).is_ok() {
            let _ = leaves.send(());
        }
    };
    if std::thread::Builder::new().spawn(watch).is_err() || left.await.is_err() {
        pending::<()>().await;
    }
}

/// A line for programs.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Subscribed(&'a Subscribed),
    Event(&'a Event),
    Gap(&'a Gap),
    Unsubscribed(&'a Unsubscribed),
    Away { why: String, pause_seconds: u64 },
}

fn say(output: &Output, line: &Line<'_>) -> io::Result<ControlFlow<()>> {
    output.json_line(line)
}

fn show(output: &Output, told: &Told) -> io::Result<ControlFlow<()>> {
    if output.is_json() {
        return say(
            output,
            &match told {
                Told::Event(event) => Line::Event(event),
                Told::Gap(gap) => Line::Gap(gap),
                Told::Unsubscribed(gone) => Line::Unsubscribed(gone),
            },
        );
    }
    output.line(&match told {
        Told::Event(event) => of_event(event),
        Told::Gap(gap) => format!("-- {}", of_gap(gap)),
        Told::Unsubscribed(gone) => {
            let words = format!("this session may not hear {} any more", gone.subjects.join(", "));
            format!("-- {}", printable(&words))
        }
    })
}

/// When, which number, what about, by whom, and what. A line that is no event begins otherwise, so that no event can look
/// like one.
fn of_event(event: &Event) -> String {
    let mut line = format!("{} {} {}", time(event.time_ms), event.seq, printable(&event.subject));
    // Only the daemon itself has no session, and only it publishes below its own subject.
    if let Some(publisher) = &event.publisher {
        line.push_str(&format!(" ({})", in_brackets(&publisher.name)));
    }
    let data = event.data.get();
    match serde_json::from_str::<String>(data) {
        _ if data == "null" => {}
        Ok(text) => line.push_str(&format!(" {}", printable(&text))),
        // White space between the parts of JSON may be tabs.
        Err(_) => line.push_str(&format!(" {}", printable(&data.replace('\t', " ")))),
    }
    line
}

fn time(milliseconds: u64) -> String {
    match clock::local(milliseconds / 1000) {
        Some(at) => format!(
            "{}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
            at.year,
            at.month,
            at.day,
            at.hour,
            at.minute,
            at.second,
            milliseconds % 1000
        ),
        None => format!("{milliseconds}"),
    }
}

fn of_gap(gap: &Gap) -> String {
    let numbers = match (gap.from, gap.to) {
        (Some(from), Some(to)) if from == to => format!(" (number {from})"),
        (Some(from), Some(to)) => format!(" (numbers {from} to {to})"),
        _ => String::new(),
    };
    let count = gap.missed.map_or_else(|| "events".to_owned(), |missed| format!("{missed} events"));
    match gap.reason {
        Some(GapReason::Slow) => format!("{count} lost{numbers}: they came faster than they were read here"),
        Some(GapReason::Forgotten) => format!("{count} missing{numbers}: so old ones are not kept any more"),
        Some(GapReason::Restarted) => {
            "events may be missing: the daemon began anew, or forgot this realm, and the numbers with it"
                .to_owned()
        }
        Some(GapReason::Ahead) => {
            "events may be missing: this number was not given out yet, unless it was before the numbers began anew, with another daemon or once this realm was forgotten"
                .to_owned()
        }
        None => format!("{count} missing{numbers}, for a reason that this version of authsock does not know"),
    }
}

impl From<FollowError> for Failure {
    fn from(error: FollowError) -> Failure {
        match error {
            FollowError::Connect(error) => error.into(),
            FollowError::Call(error) => error.into(),
            error => Failure::new(exit::REFUSED, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::events::Publisher;
    use crate::wire::event::Epoch;
    use serde_json::value::RawValue;

    fn event(name: Option<&str>, data: &str) -> Event {
        let named = |name: &str| Publisher { id: "i".into(), name: name.into() };
        Event {
            subject: "a.b".into(),
            realm: "r".into(),
            seq: 7,
            epoch: Epoch(1),
            time_ms: 1,
            publisher: name.map(named),
            data: RawValue::from_string(data.to_owned()).unwrap(),
        }
    }

    #[test]
    fn an_event_is_one_line_in_which_nothing_can_pass_for_something_else() {
        let shown = |name, data| {
            let line = of_event(&event(name, data));
            line.split_once(".001 7 a.b").unwrap().1.to_owned()
        };
        for (name, data, expected) in [
            (Some("make"), r#""done""#, " (make) done"),
            (Some("make"), r#""a\nb\u001b[2J""#, r" (make) a\u{a}b\u{1b}[2J"),
            (Some("make"), "null", " (make)"),
            (Some("make"), "{\"a\":\t1E400}", " (make) {\"a\": 1E400}"),
            (Some("make"), r#""\ud800""#, r#" (make) "\ud800""#),
            (Some("x) y"), "1", r#" ("x) y") 1"#),
            (None, r#"{"id":"i"}"#, r#" {"id":"i"}"#),
        ] {
            assert_eq!(shown(name, data), expected);
        }
    }

    #[test]
    fn programs_get_the_data_as_it_was_written() {
        let event = event(None, r#"{"n":1E400}"#);
        let line = serde_json::to_string(&Line::Event(&event)).unwrap();
        assert!(line.starts_with(r#"{"type":"event","subject":"a.b","#), "{line}");
        assert!(line.ends_with(r#""publisher":null,"data":{"n":1E400}}"#), "{line}");
    }

    #[test]
    fn gaps_say_what_is_known_of_them() {
        let gap = |reason, missed, from, to| {
            of_gap(&Gap { reason, realm: "r".into(), missed, from, to, epoch: Epoch(1) })
        };
        let slow = gap(Some(GapReason::Slow), Some(12), Some(18), Some(40));
        assert!(slow.starts_with("12 events lost (numbers 18 to 40)"), "{slow}");
        let forgotten = gap(Some(GapReason::Forgotten), None, Some(3), Some(3));
        assert!(forgotten.starts_with("events missing (number 3)"), "{forgotten}");
        assert!(gap(Some(GapReason::Restarted), None, None, None).starts_with("events may be missing"));
        let ahead = gap(Some(GapReason::Ahead), None, None, None);
        assert!(ahead.starts_with("events may be missing: this number was not given out yet"), "{ahead}");
        assert!(gap(None, Some(1), None, None).contains("this version"));
    }
}
