//! Traffic: read from a file, or generated from a seed.

use capstan_common::time::Time;
use serde::Deserialize;

/// One input: when it arrives, and how long its run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// When.
    pub at: Time,
    /// How long, in microseconds.
    pub run_us: u64,
}

/// Arrivals in their order, and how long starts took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// Sorted by time.
    pub arrivals: Vec<Arrival>,
    /// Durations of recorded starts in microseconds, taken in turn; empty where none is known.
    pub starts_us: Vec<u64>,
}

/// A line of a trace file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Seconds, or a time.
    at: Written,
    /// Milliseconds.
    #[serde(default)]
    run_ms: Option<f64>,
    /// Milliseconds of a start: such a line is no input.
    #[serde(default)]
    start_ms: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(f64),
    Text(String),
}

impl Written {
    fn time(&self) -> Result<Time, String> {
        match self {
            Self::Seconds(seconds) if (0.0..=1e11).contains(seconds) => Ok(Time((seconds * 1e6) as u64)),
            Self::Seconds(seconds) => Err(format!("{seconds} is not a number of seconds")),
            Self::Text(text) => {
                let read = chrono::DateTime::parse_from_rfc3339(text);
                let micros = read.map_err(|e| format!("`{text}` is not a time: {e}"))?.timestamp_micros();
                u64::try_from(micros).map(Time).map_err(|_| format!("`{text}` is before 1970"))
            }
        }
    }
}

fn micros(ms: f64, what: &str) -> Result<u64, String> {
    if !(0.0..=1e10).contains(&ms) {
        return Err(format!("{what} must be a number of milliseconds, is {ms}"));
    }
    Ok((ms * 1000.0) as u64)
}

impl Trace {
    /// Of arrivals in any order.
    pub fn of(mut arrivals: Vec<Arrival>) -> Self {
        arrivals.sort();
        Self { arrivals, starts_us: Vec::new() }
    }

    /// Reads NDJSON (`{"at": seconds or time, "run_ms": n}`) or CSV (`at,run_ms`, with or without a head). A line that is
    /// wrong is named by its number.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut trace = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line = line.trim();
            let told = |error: String| format!("line {}: {error}", number + 1);
            let read = if line.starts_with('{') {
                serde_json::from_str::<Line>(line).map_err(|e| told(e.to_string()))?
            } else {
                match csv(line) {
                    Some(read) => read,
                    None if number == 0 && is_head(line) => continue,
                    None => return Err(told(format!("`{line}` is neither JSON nor `seconds,run_ms`"))),
                }
            };
            let at = read.at.time().map_err(told)?;
            match read.start_ms {
                Some(ms) => trace.starts_us.push(micros(ms, "start_ms").map_err(told)?),
                None => {
                    let run_us = micros(read.run_ms.unwrap_or(0.0), "run_ms").map_err(told)?;
                    trace.arrivals.push(Arrival { at, run_us });
                }
            }
        }
        trace.arrivals.sort();
        Ok(trace)
    }
}

/// Whether a line names columns: it has no figure in it.
fn is_head(line: &str) -> bool {
    line.split(',').all(|cell| cell.trim().starts_with(|c: char| c.is_alphabetic() || c == '"'))
}

fn csv(line: &str) -> Option<Line> {
    let (at, run) = line.split_once(',')?;
    let (at, run) = (at.trim(), run.trim());
    let at = at.parse().map(Written::Seconds).unwrap_or_else(|_| Written::Text(at.into()));
    at.time().ok()?;
    Some(Line { at, run_ms: Some(run.parse().ok()?), start_ms: None })
}

/// Shapes of generated traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As many a second all the time.
    Steady,
    /// From nothing to twice the mean.
    Ramp,
    /// Nothing, then twice the mean.
    Step,
    /// Up and down again, ten times.
    Sawtooth,
    /// Long pauses and short floods.
    Bursty,
    /// Steady arrivals, a few of which run very long (Pareto).
    HeavyTailed,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Steady, Self::Ramp, Self::Step, Self::Sawtooth, Self::Bursty, Self::HeavyTailed];

    /// The rate at a part of the time, against the mean.
    fn rate(self, part: f64) -> f64 {
        match self {
            Self::Steady | Self::HeavyTailed => 1.0,
            Self::Ramp => 2.0 * part,
            Self::Step => f64::from(u8::from(part >= 0.5)) * 2.0,
            Self::Sawtooth => 2.0 * (part * 10.0).fract(),
            Self::Bursty => f64::from(u8::from((part * 8.0).fract() < 0.1)) * 10.0,
        }
    }

    /// `per_s` arrivals a second on the mean, for `seconds`, each with a run of about `run_ms`: a Poisson process drawn from
    /// the seed.
    pub fn generate(self, seed: u64, per_s: f64, seconds: f64, run_ms: f64) -> Trace {
        let mut draw = Draw(seed ^ 0x9e37_79b9_7f4a_7c15);
        let mut arrivals = Vec::new();
        // Thinned from the highest rate (Lewis and Shedler, 1979).
        let highest = per_s * 10.0f64.min(if self == Self::Bursty { 10.0 } else { 2.0 });
        let mut at = 0.0;
        loop {
            at += -draw.unit().ln() / highest;
            if at >= seconds {
                return Trace::of(arrivals);
            }
            if draw.unit() * highest < self.rate(at / seconds) * per_s {
                let long = match self {
                    Self::HeavyTailed => draw.unit().powf(-1.0 / 1.5).min(200.0) / 3.0,
                    _ => 0.5 + draw.unit(),
                };
                arrivals.push(Arrival { at: Time((at * 1e6) as u64), run_us: (run_ms * long * 1000.0) as u64 });
            }
        }
    }
}

/// Numbers from a seed (SplitMix64, Steele et al. 2014).
struct Draw(u64);

impl Draw {
    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((n ^ (n >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_wrong_lines_are_named() {
        let json =
            Trace::read("{\"at\":1.5,\"run_ms\":20}\n{\"at\":\"1970-01-01T00:00:01Z\"}\n{\"at\":0,\"start_ms\":7}\n");
        let json = json.unwrap();
        let expected = [Arrival { at: Time(1_000_000), run_us: 0 }, Arrival { at: Time(1_500_000), run_us: 20_000 }];
        assert_eq!((json.arrivals.as_slice(), json.starts_us.as_slice()), (&expected[..], &[7_000][..]));
        let csv = Trace::read("at,run_ms\n1,0\n1.5, 20\n").unwrap();
        assert_eq!(csv.arrivals, expected);
        assert!(Trace::read("1,2\nnonsense\n").unwrap_err().starts_with("line 2"));
        assert!(Trace::read("{\"at\":-1}").unwrap_err().starts_with("line 1"));
    }

    #[test]
    fn traffic_follows_its_shape_and_its_seed() {
        let count = |shape: Shape, seed| shape.generate(seed, 50.0, 100.0, 10.0).arrivals.len();
        for shape in Shape::ALL {
            assert!((4_000..6_000).contains(&count(shape, 1)), "{shape:?}: {}", count(shape, 1));
            assert_eq!(shape.generate(3, 50.0, 10.0, 10.0), shape.generate(3, 50.0, 10.0, 10.0));
        }
        let step = Shape::Step.generate(1, 50.0, 100.0, 10.0);
        assert!(step.arrivals[0].at >= Time(50_000_000));
    }
}
