//! Events as a client has them: publishing, subscribing, and what comes, in order, whatever else the client asks meanwhile.

use std::collections::VecDeque;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::calls::{CallError, Client};
use crate::wire::event::{EVENT, Epoch, GAP, GapReason, Place, UNSUBSCRIBED};

/// Who published an event, by the daemon's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publisher {
    /// The session's id.
    pub id: String,
    /// Its name, which need not be unique.
    pub name: String,
}

/// An event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// What it is about.
    pub subject: String,
    /// The realm it was published in.
    pub realm: String,
    /// Its number in that realm.
    pub seq: u64,
    /// Of which numbering.
    pub epoch: Epoch,
    /// When it was published: milliseconds since 1970 (UTC).
    pub time_ms: u64,
    /// Who published it; the daemon itself if nobody.
    pub publisher: Option<Publisher>,
    /// What the publisher says: JSON, as it was written.
    pub data: Box<RawValue>,
}

impl Event {
    /// Its place, for [`Start::After`].
    pub fn place(&self) -> Place {
        Place { epoch: self.epoch, seq: self.seq }
    }
}

/// Events that do not come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Why; `None` if this version does not know the reason.
    #[serde(default, deserialize_with = "if_known")]
    pub reason: Option<GapReason>,
    /// The realm.
    pub realm: String,
    /// How many would have come, where that is known.
    pub missed: Option<u64>,
    /// The first number that may be among them.
    pub from: Option<u64>,
    /// The last one.
    pub to: Option<u64>,
    /// Of which numbering.
    pub epoch: Epoch,
}

/// A later daemon may have other reasons.
fn if_known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<GapReason>, D::Error> {
    let reason = serde_json::Value::deserialize(deserializer)?;
    Ok(GapReason::deserialize(reason).ok())
}

/// What a session may not hear any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsubscribed {
    /// The patterns.
    pub subjects: Vec<String>,
    /// The realm.
    pub realm: String,
}

/// What a daemon tells a subscriber.
#[derive(Debug, Clone)]
pub enum Told {
    /// An event.
    Event(Event),
    /// Events that do not come.
    Gap(Gap),
    /// The session's scopes were narrowed.
    Unsubscribed(Unsubscribed),
}

impl Told {
    /// What a notification tells; `None` for one that is not about events.
    pub(super) fn of(method: &str, params: Option<&RawValue>) -> Result<Option<Told>, CallError> {
        let params = params.map_or("null", RawValue::get);
        let told = match method {
            EVENT => serde_json::from_str(params).map(Told::Event),
            GAP => serde_json::from_str(params).map(Told::Gap),
            UNSUBSCRIBED => serde_json::from_str(params).map(Told::Unsubscribed),
            _ => return Ok(None),
        };
        told.map(Some).map_err(|error| CallError::Unreadable(format!("{method}: {error}")))
    }
}

/// From where on a subscriber wants events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// From now on.
    #[default]
    Now,
    /// Also all that are kept.
    Kept,
    /// Also those that came after a place. What of them is not kept any more is told as a [`Gap`].
    After(Place),
    /// As that, in the present numbering, whichever it is.
    AfterNumber(u64),
    /// Also so many of those that are kept and match, the newest.
    Last(usize),
}

/// What is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subscription {
    /// Patterns of subjects (docs/events.md).
    pub subjects: Vec<String>,
    /// From where on.
    pub start: Start,
    /// Another realm than the session's own; only who stands for the owner or a user enters one.
    pub realm: Option<String>,
}

/// What came of subscribing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// Of which numbering the following are.
    pub epoch: Epoch,
    /// The newest event so far; 0 if there is none.
    pub seq: u64,
    /// The number that all that follows comes after.
    pub after: u64,
    /// How many kept events follow first.
    pub replayed: u64,
    /// All that the connection subscribes to in that realm.
    pub subjects: Vec<String>,
    /// Whether a [`Gap`] comes before them.
    #[serde(skip)]
    pub gap: bool,
}

/// What came of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The event's number.
    pub seq: u64,
    /// Of which numbering.
    pub epoch: Epoch,
    /// In how many subscribers' queues it is.
    pub reached: u64,
}

impl Published {
    /// The event's place.
    pub fn place(&self) -> Place {
        Place { epoch: self.epoch, seq: self.seq }
    }
}

#[derive(Serialize)]
struct PublishParams<'a> {
    subject: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    realm: Option<&'a str>,
}

#[derive(Serialize)]
struct SubscribeParams<'a> {
    subjects: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<Option<Epoch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    realm: Option<&'a str>,
}

impl<'a> SubscribeParams<'a> {
    fn of(subscription: &'a Subscription) -> SubscribeParams<'a> {
        let (since, epoch, last) = match subscription.start {
            Start::Now => (None, None, None),
            Start::Kept => (Some(0), None, None),
            Start::After(place) => (Some(place.seq), Some(Some(place.epoch)), None),
            Start::AfterNumber(seq) => (Some(seq), Some(None), None),
            Start::Last(count) => (None, None, Some(count)),
        };
        let (subjects, realm) = (&subscription.subjects[..], subscription.realm.as_deref());
        SubscribeParams { subjects, since, epoch, last, realm }
    }
}

impl Start {
    /// Whether something is missing, or may be, where all that follows comes after `after`.
    fn leaves_a_gap(self, epoch: Epoch, after: u64) -> bool {
        match self {
            Start::Now | Start::Kept | Start::Last(_) => false,
            Start::After(place) => place != Place { epoch, seq: after },
            Start::AfterNumber(seq) => seq != after,
        }
    }
}

impl Client {
    /// Publishes an event in the session's own realm. It never waits for subscribers.
    ///
    /// As cancel safe as [`Client::call`].
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn publish<D>(&mut self, subject: &str, data: &D) -> Result<Published, CallError>
    where
        D: Serialize + ?Sized,
    {
        self.publish_in(None, subject, data).await
    }

    /// As [`Client::publish`], perhaps in another realm.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn publish_in<D>(
        &mut self,
        realm: Option<&str>,
        subject: &str,
        data: &D,
    ) -> Result<Published, CallError>
    where
        D: Serialize + ?Sized,
    {
        let data = to_raw_value(data).map_err(|error| CallError::NotJson(error.to_string()))?;
        self.ask("events.publish", Some(&PublishParams { subject, data: &data, realm })).await
    }

    /// Subscribes, beside what this connection subscribes to already; [`Client::next`] has what comes.
    ///
    /// As cancel safe as [`Client::call`].
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn subscribe(&mut self, subscription: &Subscription) -> Result<Subscribed, CallError> {
        let asked = SubscribeParams::of(subscription);
        let mut subscribed: Subscribed = self.ask("events.subscribe", Some(&asked)).await?;
        subscribed.gap = subscription.start.leaves_a_gap(subscribed.epoch, subscribed.after);
        Ok(subscribed)
    }
}

/// What was told while an answer was waited for, until somebody asks for it. Bounded as a queue of the daemon is: what
/// does not fit is counted and told as a gap in its place, so that a client that calls while events stream loses
/// nothing in silence and does not grow. Gaps of another kind than that, and what is unsubscribed, are few: each comes
/// of a subscription, and of a narrowing that takes one away.
#[derive(Debug)]
pub(super) struct Waiting {
    told: VecDeque<(Told, usize)>,
    bytes: usize,
    limit: usize,
    /// What did not fit behind the last one that did, by realm and numbering.
    missed: Vec<Gap>,
}

impl Waiting {
    pub(super) fn new(limit: usize) -> Waiting {
        Waiting { told: VecDeque::new(), bytes: 0, limit, missed: Vec::new() }
    }

    /// Takes in what was told in a line of this length.
    pub(super) fn push(&mut self, told: Told, length: usize) {
        match told {
            // One that is larger than all that may wait is no reason to hear nothing.
            Told::Event(event) if self.bytes > 0 && self.bytes + length > self.limit => {
                let seq = Some(event.seq);
                self.miss(Gap {
                    reason: Some(GapReason::Slow),
                    realm: event.realm,
                    missed: Some(1),
                    from: seq,
                    to: seq,
                    epoch: event.epoch,
                });
            }
            Told::Gap(gap) if !self.missed.is_empty() && gap.reason == Some(GapReason::Slow) => {
                self.miss(gap);
            }
            told => {
                self.tell_missed();
                self.bytes += length;
                self.told.push_back((told, length));
            }
        }
    }

    /// What was told first.
    pub(super) fn pop(&mut self) -> Option<Told> {
        if self.told.is_empty() {
            self.tell_missed();
        }
        let (told, length) = self.told.pop_front()?;
        self.bytes -= length;
        if self.told.is_empty() {
            // An idle client holds no buffer.
            self.told = VecDeque::new();
        }
        Some(told)
    }

    fn miss(&mut self, gap: Gap) {
        match self.missed.iter_mut().find(|known| known.realm == gap.realm && known.epoch == gap.epoch) {
            Some(known) => {
                known.missed = known.missed.zip(gap.missed).map(|(before, more)| before + more);
                known.to = gap.to;
            }
            None => self.missed.push(gap),
        }
    }

    fn tell_missed(&mut self) {
        self.told.extend(self.missed.drain(..).map(|gap| (Told::Gap(gap), 0)));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::handshake::client::Bound;
    use crate::wire::auth::SessionBrief;
    use serde_json::json;
    use std::time::Duration;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;

    fn event(seq: u64) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"event","params":{{"subject":"a.b","realm":"r","seq":{seq},"epoch":"{}","time_ms":1,"publisher":null,"data":[{seq}],"later":1}}}}"#,
            Epoch(7)
        )
    }

    fn gap(missed: u64, from: u64, to: u64) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"event.gap","params":{{"reason":"slow","realm":"r","missed":{missed},"from":{from},"to":{to},"epoch":"{}"}}}}"#,
            Epoch(7)
        )
    }

    /// A client, and the other end of its connection.
    pub(in crate::client) fn pair(queued: usize) -> (Client, BufReader<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let session: SessionBrief =
            serde_json::from_value(json!({ "id": "owner", "name": "owner", "realm": "r" })).unwrap();
        let limits = super::super::calls::Limits { timeout: Duration::from_secs(30), queued };
        let client = Client::new(ours, Vec::new(), session, Bound::Yes, "/s".into(), limits);
        (client, BufReader::new(theirs))
    }

    async fn send(daemon: &mut BufReader<UnixStream>, lines: &[String]) {
        daemon.get_mut().write_all(format!("{}\n", lines.join("\n")).as_bytes()).await.unwrap();
    }

    /// Reads a request and answers it behind these lines.
    async fn answer(daemon: &mut BufReader<UnixStream>, before: &[String], result: &str) -> String {
        let mut request = String::new();
        daemon.read_line(&mut request).await.unwrap();
        let id = crate::wire::json_rpc::Request::read(request.as_bytes()).unwrap().id.unwrap();
        let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
        send(daemon, &[before, &[answer]].concat()).await;
        request
    }

    /// The numbers of events, and how many a gap says are missing, and from where to where.
    fn shown(told: &Told) -> String {
        match told {
            Told::Event(event) => event.seq.to_string(),
            Told::Gap(gap) => {
                format!("gap of {} from {} to {}", gap.missed.unwrap(), gap.from.unwrap(), gap.to.unwrap())
            }
            Told::Unsubscribed(gone) => gone.subjects.join(" "),
        }
    }

    fn block_on(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn what_comes_while_an_answer_is_waited_for_comes_out_afterwards_and_in_order() {
        block_on(async {
            let (mut client, mut daemon) = pair(1 << 20);
            send(&mut daemon, &[event(1)]).await;
            let daemons = async {
                answer(&mut daemon, &[event(2), gap(2, 3, 4)], r#"{"pong":true}"#).await;
                send(&mut daemon, &[event(5)]).await;
            };
            let (answer, ()) = tokio::join!(client.call("ping", None), daemons);
            assert_eq!(answer.unwrap()["pong"], true);
            for expected in ["1", "2", "gap of 2 from 3 to 4", "5"] {
                assert_eq!(shown(&client.next().await.unwrap()), expected);
            }
            drop(daemon);
            assert!(matches!(client.next().await, Err(CallError::Over)));
            assert!(matches!(client.call("ping", None).await, Err(CallError::Closed)));
        });
    }

    #[test]
    fn as_much_waits_as_the_limit_says_and_the_rest_is_counted_in_its_place() {
        block_on(async {
            let length = event(1).len();
            for (limit, fit) in [(3 * length, 3), (3 * length - 1, 2), (1, 1)] {
                let (mut client, mut daemon) = pair(limit);
                let lines = [event(1), event(2), event(3), event(4), gap(10, 5, 20), event(21)];
                let call = async { client.call("ping", None).await.unwrap() };
                tokio::join!(call, answer(&mut daemon, &lines, "1"));
                for seq in 1..=fit {
                    assert_eq!(shown(&client.next().await.unwrap()), seq.to_string());
                }
                // What fits again comes behind the gap.
                let call = async { client.call("ping", None).await.unwrap() };
                let more = [event(22)];
                tokio::join!(call, answer(&mut daemon, &more, "1"));
                let missed = 4 - fit + 10 + 1;
                let expected = format!("gap of {missed} from {} to 21", fit + 1);
                assert_eq!(shown(&client.next().await.unwrap()), expected);
                assert_eq!(shown(&client.next().await.unwrap()), "22");
            }
        });
    }

    #[test]
    fn next_that_is_dropped_at_any_moment_loses_nothing() {
        block_on(async {
            let (mut client, mut daemon) = pair(1 << 20);
            let text = (1..=3).map(|seq| event(seq) + "\n").collect::<String>();
            let mut seen = Vec::new();
            for byte in text.as_bytes() {
                daemon.get_mut().write_all(&[*byte]).await.unwrap();
                tokio::select! {
                    biased;
                    told = client.next() => seen.push(shown(&told.unwrap())),
                    () = tokio::task::yield_now() => {}
                }
            }
            while seen.len() < 3 {
                seen.push(shown(&client.next().await.unwrap()));
            }
            assert_eq!(seen, ["1", "2", "3"]);
        });
    }

    #[test]
    fn the_end_of_a_session_is_told_behind_all_that_came_before() {
        block_on(async {
            let (mut client, mut daemon) = pair(1 << 20);
            let ended = r#"{"jsonrpc":"2.0","method":"session.ended","params":{"reason":"revoked"}}"#;
            let other = r#"{"jsonrpc":"2.0","method":"of.later.versions","params":[]}"#;
            let call = async { client.call("ping", None).await.unwrap() };
            let lines = [event(1), other.to_owned(), ended.to_owned()];
            tokio::join!(call, answer(&mut daemon, &lines, "1"));
            drop(daemon);
            assert_eq!(shown(&client.next().await.unwrap()), "1");
            for _ in 0..2 {
                let error = client.next().await.unwrap_err();
                assert!(matches!(&error, CallError::SessionEnded(reason) if reason == "revoked"), "{error}");
            }
        });
    }

    #[test]
    fn data_is_sent_and_received_as_it_was_written() {
        block_on(async {
            let (mut client, mut daemon) = pair(1 << 20);
            let huge = r#"{"n":123456789012345678901234567890,"e":1E400}"#;
            let data = RawValue::from_string(huge.to_owned()).unwrap();
            let result = format!(r#"{{"seq":1,"epoch":"{}","reached":2}}"#, Epoch(7));
            let (published, request) =
                tokio::join!(client.publish("a.b", &data), answer(&mut daemon, &[], &result));
            assert!(request.contains(huge), "{request}");
            let published = published.unwrap();
            assert_eq!((published.place(), published.reached), (Place { epoch: Epoch(7), seq: 1 }, 2));
            send(&mut daemon, &[event(1).replace("[1]", huge)]).await;
            let Told::Event(event) = client.next().await.unwrap() else { panic!() };
            assert_eq!(event.data.get(), huge);
            let no_text = std::collections::BTreeMap::from([((1, 2), 3)]);
            assert!(matches!(client.publish("a.b", &no_text).await, Err(CallError::NotJson(_))));
        });
    }

    #[test]
    fn a_gap_is_expected_exactly_where_what_follows_does_not_follow() {
        let place = |epoch, seq| Place { epoch: Epoch(epoch), seq };
        for (start, epoch, after, expected) in [
            (Start::Now, 1, 9, false),
            (Start::Kept, 1, 9, false),
            (Start::Last(3), 1, 9, false),
            (Start::After(place(1, 9)), 1, 9, false),
            (Start::After(place(1, 3)), 1, 9, true),
            (Start::After(place(2, 9)), 1, 9, true),
            (Start::AfterNumber(9), 1, 9, false),
            (Start::AfterNumber(10), 1, 9, true),
        ] {
            assert_eq!(start.leaves_a_gap(Epoch(epoch), after), expected, "{start:?}");
        }
        let params = |start| {
            let subscription = Subscription { subjects: vec!["a".into()], start, realm: None };
            serde_json::to_value(SubscribeParams::of(&subscription)).unwrap()
        };
        assert_eq!(params(Start::Now), json!({ "subjects": ["a"] }));
        assert_eq!(params(Start::Kept), json!({ "subjects": ["a"], "since": 0 }));
        assert_eq!(params(Start::AfterNumber(3)), json!({ "subjects": ["a"], "since": 3, "epoch": null }));
        let after = json!({ "subjects": ["a"], "since": 3, "epoch": "0000000000000001" });
        assert_eq!(params(Start::After(place(1, 3))), after);
        assert_eq!(params(Start::Last(3)), json!({ "subjects": ["a"], "last": 3 }));
    }

    #[test]
    fn a_reason_of_a_later_version_is_a_gap_all_the_same() {
        let line = gap(1, 2, 3).replace("slow", "moved");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let params = to_raw_value(&value["params"]).unwrap();
        let Some(Told::Gap(gap)) = Told::of(GAP, Some(&params)).unwrap() else { panic!() };
        assert_eq!((gap.reason, gap.missed), (None, Some(1)));
    }
}
