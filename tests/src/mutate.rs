//! Inputs that are nearly right: drawn from a corpus that grows by what was answered in a way that had not been seen before.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::collections::BTreeSet;

/// Inputs that are kept.
const KEPT: usize = 4096;
/// The longest input.
const LONGEST: usize = 64 << 10;

/// Pieces that parsers stumble over.
const TOKENS: [&[u8]; 44] = [
    b"%",
    b"%00",
    b"%2f",
    b"%25",
    b"..",
    b"/",
    b"//",
    b";",
    b"\0",
    b"\r\n",
    b"\n",
    b" ",
    b"\t",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[[[[[[[[[[[[[[[",
    b":",
    b",",
    b"-",
    b"-1",
    b"0",
    b"1e400",
    b"18446744073709551616",
    b"99999999999999999999999",
    b"null",
    b"true",
    b"NaN",
    b"\\ud83d",
    b"\\u0000",
    b"\xff",
    b"\xc0\x80",
    b"\xf0\x9f\x98\x80",
    b"5\xc2\xb5s",
    b"1h",
    b"* * * * *",
    b"*/0",
    b"2026-02-30T25:61:61Z",
    b"sum(",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"x=1",
];

/// A source of inputs for one parser or door.
pub struct Mutator {
    rng: StdRng,
    corpus: Vec<Vec<u8>>,
    seen: BTreeSet<String>,
}

impl Mutator {
    /// Begins with inputs that are right.
    pub fn of(seed: u64, corpus: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), corpus: corpus.into_iter().collect(), seen: BTreeSet::new() }
    }

    /// The next input.
    pub fn draw(&mut self) -> Vec<u8> {
        let mut input = self.corpus.choose(&mut self.rng).cloned().unwrap_or_default();
        for _ in 0..self.rng.random_range(1..5) {
            self.change(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    /// How an input was answered: what had not been answered like that before is a place to go on from.
    pub fn answered(&mut self, input: &[u8], how: String) {
        if self.seen.len() < KEPT && self.seen.insert(how) {
            self.corpus.push(input.to_vec());
        }
    }

    /// How many ways of answering were seen.
    pub fn ways(&self) -> usize {
        self.seen.len()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.random_range(0..=input.len());
        let end = (at + self.rng.random_range(0..16)).min(input.len());
        match self.rng.random_range(0..9) {
            0 if at < input.len() => input[at] ^= 1 << self.rng.random_range(0..8),
            1 if at < input.len() => input[at] = self.rng.random(),
            2 => drop(input.drain(at..end)),
            3 => {
                let copy = input[at..end].to_vec();
                let most = if self.rng.random_range(0..20) == 0 { 600 } else { 4 };
                let times = self.rng.random_range(1..most);
                input.splice(at..at, copy.repeat(times));
            }
            4 => {
                let other = self.corpus.choose(&mut self.rng).cloned().unwrap_or_default();
                let from = self.rng.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            5 => input.truncate(at),
            _ => {
                let token = TOKENS.choose(&mut self.rng).copied().unwrap_or_default();
                input.splice(at..end, token.iter().copied());
            }
        }
    }
}
