//! The road of every verb, whatever the door: may who asks ask this, who answers, and what is answered.
//!
//! In this order: the role, which needs no look-up; the owner, which is entered, or asked over one call; the record's own namespace,
//! which the owner compares; then the verb runs. Doors know nothing of owners, and owners nothing of doors.

mod peer;
pub mod rights;

pub use crate::api::Api as Owner;
pub use peer::{FORWARDED, PATH, Peers, VERB_LENGTH, answer, connector};

use crate::{
    api::{
        Api,
        owner::{LOOK, Owner as Found, PATIENCE},
    },
    cluster::Peer,
    shard::Guest,
};
use bytes::Bytes;
use capstan_common::{
    input::Payload,
    refusal::{Code, Refusal},
};
use capstan_verb::{At, Repeat, Verb, access::Subject};
use futures_util::future::join_all;
use peer::{Heard, Question};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A question that was passed on so often runs after owners that change faster than it.
pub const HOPS: u32 = 3;
/// How long one of several schedulers may take to answer for what it owns.
const PART: Duration = Duration::from_secs(2);
/// How long one that owns a function no more may still take to answer.
const STILL: Duration = Duration::from_secs(3);
/// What is told where the owner ended in the middle.
const BROKEN_OFF: &str = "the scheduler that owns this ended in the middle of the request; whether it was done is not known: ask, or send it again (inputs with an Idempotency-Key)";

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    /// What they may do.
    pub subject: Subject,
    /// Their token's id, by which what they hold is counted; empty where none is needed.
    pub by: Arc<str>,
    /// Their own token, by which another scheduler sees for itself what they may do; none where none is needed.
    pub token: Option<Arc<str>>,
    /// How often the question was passed on by schedulers.
    pub hops: u32,
}

/// A verb that may be run here and now: only [`Route`] makes one, after it has looked at the rights and at who owns what the verb is
/// about.
pub struct Granted<V> {
    /// What is asked.
    pub verb: V,
    /// What who asks may do: an owner compares it with the record's own namespace, and shows no more than it may see.
    pub who: Subject,
    /// Their token's id, by which what they hold is counted.
    pub by: Arc<str>,
    /// While it lives the shard is not given up.
    _in_flight: Option<Guest>,
}

impl<V> Granted<V> {
    /// A wait begins: it holds up nobody who gives the shard up, and ends with it.
    pub fn waits(&mut self) {
        self._in_flight = None;
    }
}

/// Whoever runs a verb.
pub trait Run<V: Verb> {
    /// Runs it.
    ///
    /// # Errors
    /// Why not.
    fn run(self: &Arc<Self>, ask: Granted<V>) -> impl Future<Output = Result<V::Answer, Refusal>>;
}

/// The road; one for each thread of a door.
pub struct Route {
    owner: Arc<Api>,
    peers: Peers,
}

/// An answer, and the schedulers that should have said something and were silent.
#[derive(Debug)]
pub struct Gathered<A> {
    /// What is known.
    pub answer: A,
    /// Where those are reached that did not answer: what they own is missing.
    pub silent: Vec<String>,
}

impl Route {
    /// To this scheduler's own functions, and to those of others.
    pub fn new(owner: Arc<Api>, peers: Peers) -> Self {
        Self { owner, peers }
    }

    /// The bytes of a payload that an answer refers to: all schedulers have them.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn bytes_of(&self, payload: &Payload) -> Result<Bytes, Refusal> {
        self.owner.bytes_of(payload).await
    }

    /// Asks a verb.
    ///
    /// # Errors
    /// The asker may not, whoever owns it says no, or cannot be reached.
    pub async fn ask<V: Verb>(&self, who: &Asker, verb: V) -> Result<V::Answer, Refusal>
    where
        Api: Run<V>,
    {
        self.gather(who, verb).await.map(|gathered| gathered.answer)
    }

    /// The same, and tells who was silent.
    ///
    /// # Errors
    /// As there.
    pub async fn gather<V: Verb>(&self, who: &Asker, verb: V) -> Result<Gathered<V::Answer>, Refusal>
    where
        Api: Run<V>,
    {
        rights::authorize(V::ROLE, verb.scope(), &who.subject)?;
        let whole = |answer| Gathered { answer, silent: Vec::new() };
        match verb.at() {
            At::Here => self.run(who, verb, None).await.map(whole),
            At::Owner(place) => self.ask_owner(who, place, verb).await.map(whole),
            At::Whoever => self.ask_whoever(who, verb).await.map(whole),
            At::All => self.ask_all(who, verb).await,
        }
    }

    async fn run<V: Verb>(&self, who: &Asker, verb: V, in_flight: Option<Guest>) -> Result<V::Answer, Refusal>
    where
        Api: Run<V>,
    {
        self.owner.run(Granted { verb, who: who.subject.clone(), by: who.by.clone(), _in_flight: in_flight }).await
    }

    /// Finds the owner, and asks the next one where the one before is lost and that cannot do harm.
    async fn ask_owner<V: Verb>(&self, who: &Asker, place: u16, verb: V) -> Result<V::Answer, Refusal>
    where
        Api: Run<V>,
    {
        let (begun, mut written) = (Instant::now(), None);
        loop {
            let peer = match self.owner.owner(place).await {
                Found::Here(guest) => return self.run(who, verb, Some(guest)).await,
                Found::There(peer) => peer,
                Found::Nobody => {
                    return Err(unavailable(
                        "the scheduler that owns this function is being replaced; try again in a moment",
                    ));
                }
            };
            if who.hops >= HOPS {
                return Err(unavailable("owners change too fast; try again"));
            }
            let body = written.get_or_insert_with(|| write(&verb)).clone();
            let heard = tokio::select! {
                heard = self.peers.ask(&peer, V::NAME, body, who) => heard,
                () = self.moved(place, &peer) => Heard::Lost { sent: true },
            };
            match heard {
                Heard::Answer(answer) => return read::<V>(&answer),
                Heard::Refusal(refusal) => return Err(refusal),
                Heard::Lost { sent } if (!sent || V::REPEAT == Repeat::Safe) && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(LOOK).await;
                }
                Heard::Lost { .. } => return Err(unavailable(BROKEN_OFF)),
            }
        }
    }

    /// Waits until another scheduler than this one owns the place, and a while longer: one that hands over in order still answers.
    async fn moved(&self, place: u16, peer: &Peer) {
        loop {
            tokio::time::sleep(LOOK * 10).await;
            let elsewhere = match self.owner.enter(place) {
                Ok(_guest) => true,
                Err(owner) => owner.is_some_and(|owner| owner != *peer),
            };
            if elsewhere {
                return tokio::time::sleep(STILL).await;
            }
        }
    }

    /// Asks here, and then the others one after the other, until one knows what it is about.
    async fn ask_whoever<V: Verb>(&self, who: &Asker, verb: V) -> Result<V::Answer, Refusal>
    where
        Api: Run<V>,
    {
        let body = write(&verb);
        let ours = match self.run(who, verb, None).await {
            Err(refusal) if refusal.code == Code::NotFound && who.hops == 0 => refusal,
            known => return known,
        };
        let mut refused = None;
        for peer in self.owner.peers() {
            match tokio::time::timeout(PART, self.peers.ask(&peer, V::NAME, body.clone(), who)).await {
                Ok(Heard::Answer(answer)) => return read::<V>(&answer),
                Ok(Heard::Refusal(refusal)) if refusal.code != Code::NotFound => refused = Some(refusal),
                Ok(Heard::Refusal(_)) => {}
                // Whoever did not answer may be the one that knows.
                Ok(Heard::Lost { .. }) | Err(_) => {
                    refused =
                        Some(unavailable(format!("{}; the scheduler at {} does not answer", ours.detail, peer.rest)));
                }
            }
        }
        Err(refused.unwrap_or(ours))
    }

    /// Asks all at once. What is not there here may be there elsewhere; one that is asked by another scheduler asks nobody.
    async fn ask_all<V: Verb>(&self, who: &Asker, verb: V) -> Result<Gathered<V::Answer>, Refusal>
    where
        Api: Run<V>,
    {
        let peers = if who.hops == 0 { self.owner.peers() } else { Vec::new() };
        if peers.is_empty() {
            let answer = self.run(who, verb, None).await?;
            return Ok(Gathered { answer, silent: Vec::new() });
        }
        let body = write(&verb);
        let ask = |peer| tokio::time::timeout(PART, self.peers.ask(peer, V::NAME, body.clone(), who));
        let theirs = join_all(peers.iter().map(ask));
        let (ours, theirs) = futures_util::future::join(self.run(who, verb.clone(), None), theirs).await;
        let (mut answers, mut refused, mut silent) = (Vec::new(), None, Vec::new());
        match ours {
            Ok(answer) => answers.push(answer),
            Err(refusal) if refusal.code == Code::NotFound => refused = Some(refusal),
            Err(refusal) => return Err(refusal),
        }
        for (heard, peer) in theirs.into_iter().zip(peers) {
            match heard {
                Ok(Heard::Answer(answer)) => answers.push(read::<V>(&answer)?),
                Ok(Heard::Refusal(refusal)) if refusal.code == Code::NotFound => {}
                Ok(Heard::Refusal(_) | Heard::Lost { .. }) | Err(_) => silent.push(peer.rest),
            }
        }
        let none = || refused.unwrap_or_else(|| unavailable("no scheduler answers"));
        let answer = verb.page(answers).ok_or_else(none)?;
        Ok(Gathered { answer, silent })
    }
}

/// A verb as it travels: its JSON, and behind it the bytes of the input that it brings.
fn write<V: Verb>(verb: &V) -> Question {
    // What cannot be written is refused by whoever reads it.
    let mut body = serde_json::to_vec(verb).unwrap_or_default();
    let json = body.len();
    let input = verb.clone().input().map(|input| input.bytes().clone());
    body.extend_from_slice(input.as_ref().map_or(&[][..], |input| input));
    Question { body: body.into(), json: input.map(|_| json) }
}

fn read<V: Verb>(answer: &[u8]) -> Result<V::Answer, Refusal> {
    serde_json::from_slice(answer).map_err(|error| {
        unavailable(format!("another scheduler's answer cannot be read: {error}; are their versions far apart?"))
    })
}

/// Not now, and soon again.
pub fn unavailable(detail: impl Into<String>) -> Refusal {
    Refusal::unavailable(detail, 1)
}
